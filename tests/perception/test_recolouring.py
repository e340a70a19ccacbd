"""Frames in other colours: what they leave as it is, how long they last, and which slot is to see what there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perception.background import as_images
from perception.recolouring import EACH, Recolouring
from tests.perception.scene import roll_scene


@pytest.fixture
def scene() -> tuple[Tensor, Tensor]:
    """Two images with two things, and what these have of them."""
    rolled = roll_scene(2, 3, 2, seed=0)
    truth = torch.from_numpy(rolled.segmentation[:, 0])
    return as_images(torch.from_numpy(rolled.frames[:, 0])), torch.stack([truth == 1, truth == 2], dim=1).float()


def all_of(rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.bool)


def test_the_background_and_rows_that_are_not_chosen_stay(scene: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    images, shares = scene
    changed = torch.zeros_like(shares, dtype=torch.bool)
    for _ in range(30):
        recolouring = Recolouring(2, 2, 1.0)
        recolouring.renew(torch.tensor([True, False]))
        painted = recolouring.paint(images, shares)
        assert torch.equal(painted[1], images[1])
        differs = (painted[0] - images[0]).abs().amax(dim=0) > 0.05
        assert not differs[shares[0].sum(dim=0) == 0].any()
        assert painted.min() >= 0 and painted.max() <= 1
        changed[0] |= differs & (shares[0] > 0)
    assert torch.equal(changed[0], shares[0] > 0), "each thing's pixels are all given other colours now and then"


def test_each_thing_keeps_its_colours_now_and_then() -> None:
    torch.manual_seed(0)
    recolouring = Recolouring(4000, 2, 1.0)
    recolouring.renew(all_of(4000))
    images = torch.rand(1, 3, 1, 2).expand(4000, -1, -1, -1)
    shares = torch.eye(2).view(1, 2, 1, 2).expand(4000, -1, -1, -1)
    same = (recolouring.paint(images, shares) == images).all(dim=1).squeeze(1)
    torch.testing.assert_close(same.float().mean(dim=0), torch.full((2,), 1 - EACH), atol=0.03, rtol=0)
    torch.testing.assert_close(same.all(dim=1).float().mean(), torch.tensor((1 - EACH) ** 2), atol=0.03, rtol=0)


def test_colours_last_until_a_row_begins_another_clip(scene: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    images, shares = scene
    recolouring = Recolouring(2, 2, 1.0)
    recolouring.renew(all_of(2))
    before = recolouring.paint(images, shares)
    kept = [recolouring.paint(images, shares)]
    for _ in range(5):
        recolouring.renew(torch.tensor([True, False]))
        kept.append(recolouring.paint(images, shares))
    assert all(torch.equal(now[1], before[1]) for now in kept)
    assert not all(torch.equal(now[0], before[0]) for now in kept)


def test_as_many_rows_are_chosen_as_asked() -> None:
    torch.manual_seed(0)
    recolouring = Recolouring(4000, 2, 0.25)
    recolouring.renew(all_of(4000))
    assert recolouring.chosen.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_slot_keeps_the_thing_that_it_took_first_until_it_is_lost() -> None:
    torch.manual_seed(0)
    recolouring = Recolouring(3, 2, 1.0)
    recolouring.renew(torch.tensor([True, True, False]))
    crossed, straight = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # cost of thing by slot
    first = recolouring.seat(crossed.expand(3, -1, -1), all_of(3)).clone()
    assert first.tolist() == [[1, 0], [1, 0], [0, 1]], "a row that is not chosen keeps each thing to its own slot"
    later = recolouring.seat(straight.expand(3, -1, -1), torch.tensor([False, True, False]))
    assert later.tolist() == [[1, 0], [0, 1], [0, 1]]
    recolouring.share = 0.0
    recolouring.renew(all_of(3))
    assert recolouring.seats.tolist() == [[0, 1]] * 3
