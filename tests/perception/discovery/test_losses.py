"""What slot models learn: segment proposals, or reconstruction."""

from __future__ import annotations

import pytest
import torch

from perception.discovery.losses import Batch, LossConfig, SlotLoss, reconstruction_loss
from perception.discovery.train import DiscoveryConfig, discover
from perception.images import as_images
from perception.slots.model import SlotConfig, SlotModel
from tests.perception.scene import SIZE, empty_floor, roll_scene

SMALL = SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE))


def model() -> SlotModel:
    torch.manual_seed(0)
    return SlotModel(SMALL, torch.from_numpy(empty_floor())[None])


def batch(rows: int = 4) -> tuple[Batch, torch.Tensor]:
    """Frames of two things, half of them seen as first ones, and the slots of the frames before."""
    scene = roll_scene(rows, 3, 2, seed=0)
    truth, frames = torch.from_numpy(scene.segmentation[:, 1]), torch.from_numpy(scene.frames[:, 1])
    shares = torch.stack([truth == 1, truth == 2], dim=1).float()
    slots = torch.randn(rows, SMALL.slots, SMALL.width)
    return Batch(frames, torch.arange(rows) % 2 == 0, shares), slots


def test_reconstruction_is_least_where_the_frame_is_drawn() -> None:
    some, slots = batch()
    output = model()(some.frames, slots, some.is_first)
    images = as_images(some.frames)
    assert reconstruction_loss(output, images) > 0
    output.decoded.image = images
    assert reconstruction_loss(output, images) == 0


def test_reconstruction_changes_the_loss_and_bfloat16_little() -> None:
    some, slots = batch()
    usual = SlotLoss(model())(some, slots)[0].item()
    other = SlotLoss(model(), LossConfig(pseudo_label_loss=False))(some, slots)[0].item()
    assert other != pytest.approx(usual, rel=1e-5)
    loss, seen = SlotLoss(model(), LossConfig(precision="bfloat16"))(some, slots)
    assert loss.item() == pytest.approx(usual, rel=0.05)
    assert (loss.dtype, seen.dtype) == (torch.float32, torch.float32)


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
