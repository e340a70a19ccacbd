"""What slot models learn: segment proposals, or reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch

from perception.discovery.losses import Batch, LossConfig, SlotLoss, reconstruction_loss
from perception.discovery.train import DiscoveryConfig, discover
from perception.images import as_images
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.segments import SegmentProposals
from tests.perception.scene import SIZE, empty_floor, roll_scene

SMALL = SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE))


def model() -> SlotModel:
    torch.manual_seed(0)
    return SlotModel(SMALL, torch.from_numpy(empty_floor())[None])


def batch(rows: int = 4) -> tuple[Batch, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a loss takes: frames of two things, half of them seen as first ones, the slots of the
    frames before, and the usual order of segments."""
    scene = roll_scene(rows, 3, 2, seed=0)
    truth, frames = torch.from_numpy(scene.segmentation[:, 1]), torch.from_numpy(scene.frames[:, 1])
    shares = torch.stack([truth == 1, truth == 2], dim=1).float()
    slots = torch.randn(rows, SMALL.slots, SMALL.width)
    first = torch.arange(rows) % 2 == 0
    return Batch(frames, first, shares), slots, torch.zeros(rows, dtype=torch.int64), first


def test_reconstruction_is_least_where_the_frame_is_drawn() -> None:
    some, slots, *_ = batch()
    output = model()(some.frames, slots, some.is_first)
    images = as_images(some.frames)
    assert reconstruction_loss(output, images) > 0
    assert reconstruction_loss(output, output.decoded.image) == 0


def test_reconstruction_changes_the_loss_and_bfloat16_little() -> None:
    some = batch()
    usual = SlotLoss(model())(*some)[0].item()
    other = SlotLoss(model(), LossConfig(pseudo_label_loss=False))(*some)[0].item()
    assert other != pytest.approx(usual, rel=1e-5)
    loss, seen, _ = SlotLoss(model(), LossConfig(precision="bfloat16"))(*some)
    assert loss.item() == pytest.approx(usual, rel=0.05)
    assert (loss.dtype, seen.dtype) == (torch.float32, torch.float32)


def test_twins_change_places_where_that_fits_best_and_keep_them_afterwards() -> None:
    some, slots, order, first = batch()
    torch.manual_seed(0)
    proposals = SegmentProposals(torch.rand(1, 3), torch.zeros(1), 1, twins=[2])
    twins = SlotLoss(SlotModel(SMALL, torch.from_numpy(empty_floor())[None], proposals))
    swapped = replace(some, shares=some.shares.flip(1))
    loss, _, kept = twins(some, slots, order, first)
    assert torch.equal(kept[~first], order[~first]), "they are followed"
    loss_of_swapped, _, other = twins(swapped, slots, 1 - order, first)
    assert torch.equal(other, 1 - kept) and loss_of_swapped.item() == loss.item(), (
        "whatever the order in which they are proposed"
    )
    wrong = torch.where(first, kept, 1 - kept)
    assert twins(some, slots, wrong, first)[0] != loss, "a later frame keeps to the order"
    best = min(twins(some, slots, own, first & False)[0].item() for own in orders_of(first, kept))
    assert loss.item() == pytest.approx(best), "at first frames"


def orders_of(chosen: torch.Tensor, order: torch.Tensor) -> Iterator[torch.Tensor]:
    """All orders (B,) of two twins that differ from `order` in chosen rows alone."""
    for own in product([0, 1], repeat=int(chosen.sum())):
        yield order.clone().masked_scatter_(chosen, torch.tensor(own))


@pytest.mark.slow
def test_compiled_training_learns_what_eager_training_learns() -> None:
    scenes = [roll_scene(4, 20, 2, seed=0).frames]
    eager, compiled = (
        discover(scenes, SMALL, DiscoveryConfig(steps=5, compiled=flag)) for flag in (False, True)
    )
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(
            compiled.state_dict()[name], value, atol=1e-4, rtol=1e-3, msg=name
        )
