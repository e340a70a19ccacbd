"""Objects that others hide keep their masks while they rest, and only then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perception.slots.occlusion import bodies_seen, fill_holes, remember_hidden

APART = torch.arange(2)


def frame(thing: tuple[int, int] | None, hand: tuple[int, int] | None) -> Tensor:
    """Masks (1, 2, 16, 16) of a thing, 6 x 6, and of the hand of 6 x 12 before it, whose corners
    these are."""
    thing_mask, hand_mask = torch.zeros(16, 16), torch.zeros(16, 16)
    if thing:
        thing_mask[thing[0] : thing[0] + 6, thing[1] : thing[1] + 6] = 1.0
    if hand:
        hand_mask[hand[0] : hand[0] + 12, hand[1] : hand[1] + 6] = 1.0
    return torch.stack([thing_mask * (1 - hand_mask), hand_mask])[None]


def film(*frames: Tensor, parts: Tensor = APART) -> list[Tensor]:
    """What is remembered of each frame."""
    before = bodies_seen(frames[0], parts)
    kept = fill_holes(frames[0], before, parts)
    found = [kept]
    for masks in frames[1:]:
        seen = bodies_seen(masks, parts)
        kept, before = remember_hidden(masks, seen, before, kept, parts), seen
        found.append(kept)
    return found


def test_a_thing_at_rest_keeps_its_mask_behind_a_hand_that_passes() -> None:
    hands = [None, (2, 0), (2, 2), (2, 4), (2, 6), (2, 9)]
    for kept in film(*[frame((4, 4), hand) for hand in hands]):
        assert torch.equal(kept[:, 0], frame((4, 4), None)[:, 0])


def test_a_thing_hidden_from_the_start_is_completed_as_it_is_uncovered() -> None:
    found = film(*[frame((4, 4), (2, column)) for column in (2, 4, 6, 8, 10)])
    assert found[0][0, 0].sum() == 12
    assert torch.equal(found[-1][:, 0], frame((4, 4), None)[:, 0])


@pytest.mark.parametrize("hidden", [1, 2, 3, 4])
@pytest.mark.parametrize("way", [(1, 0), (-1, 0), (0, 1)], ids=["down", "up", "along"])
def test_a_thing_that_a_hand_hides_and_moves_by_a_pixel_has_moved(
    hidden: int, way: tuple[int, int]
) -> None:
    """Of its six columns the hand hides up to four, and goes with it."""
    down, right = way
    after = frame((4 + down, 4 + right), (2 + down, hidden - 2 + right))
    frames = [frame((4, 4), None), frame((4, 4), (2, hidden - 2)), after]
    assert torch.equal(film(*frames)[-1], after)


def test_a_mixed_rim_beside_a_hand_is_not_gained() -> None:
    """Where the hand was, beside the thing, the pixels now show half of each."""
    frames = [frame((4, 4), (2, column)) for column in (10, 11)]
    frames[1][0, 0, 4:10, 10] = frames[1][0, 1, 4:10, 10] = 0.5
    assert torch.equal(film(*frames)[-1][:, 0], frame((4, 4), None)[:, 0])


def test_a_hand_that_is_mixed_with_what_lies_behind_still_hides() -> None:
    """A latch before a door, and a hand that passes both: of it little more than half a pixel is
    the door's, by mistake."""
    frames = []
    for column in (16, 7, 8):
        door, latch, hand = torch.zeros(3, 20, 24)
        door[2:18, 2:14] = latch[8:12, 5:11] = 1.0
        hand[4:16, column : column + 6] = 1.0
        frames.append(torch.stack([door * (1 - latch), latch, hand])[None])
        frames[-1][:, :2] *= 1 - hand
    frames[2][0, 0, 8:12, 8:11], frames[2][0, 2, 8:12, 8:11] = 0.55, 0.45
    kept = film(*frames, parts=torch.arange(3))[-1]
    assert torch.equal(kept[:, 1], frames[0][:, 1])


def test_a_large_thing_that_moves_by_half_a_pixel_behind_a_small_hand_has_moved() -> None:
    frames = []
    for down, hidden in ((0.0, False), (0.0, True), (0.5, True)):
        thing, hand = torch.zeros(2, 20, 20)
        thing[4:16, 4:16] = 1.0
        thing[4, 4:16], thing[16, 4:16] = 1 - down, down
        hand[9:12, 2:6] = hidden
        frames.append(torch.stack([thing * (1 - hand), hand])[None])
    found = film(*frames)
    assert torch.equal(found[1], torch.cat([frames[0][:, :1], frames[1][:, 1:]], 1))
    assert torch.equal(found[-1], frames[-1])


def test_a_hole_is_filled_in_the_part_that_it_lies_in() -> None:
    """Of a hand and a forearm that are one body, the hand is behind a thing."""
    hand, forearm, thing = torch.zeros(3, 16, 24)
    hand[2:14, 2:12] = forearm[2:14, 12:22] = thing[6:9, 5:8] = 1.0
    masks = torch.stack([hand * (1 - thing), thing, forearm])[None]
    parts = torch.tensor([0, 1, 0])
    filled = fill_holes(masks, bodies_seen(masks, parts), parts)
    assert torch.equal(filled[0], torch.stack([hand, thing, forearm]))


def test_a_thing_that_moves_behind_a_hand_is_where_it_is_seen() -> None:
    """The hand covers its left half and pushes it down by a pixel."""
    after = frame((5, 4), (2, 1))
    assert torch.equal(film(frame((4, 4), (2, 1)), after)[-1], after)


def test_a_thing_that_a_hand_pushes_before_it_is_where_it_is_seen() -> None:
    """What it leaves is covered, what it gains is not."""
    frames = [frame((4, 6 + t), (2, t)) for t in range(4)]
    for seen, kept in zip(frames, film(*frames), strict=True):
        assert torch.equal(seen, kept)


def test_the_parts_of_one_body_do_not_hide_each_other() -> None:
    frames = [frame((4, 4), None), frame((4, 4), (2, 2))]
    assert torch.equal(film(*frames, parts=torch.zeros(2, dtype=torch.long))[-1], frames[-1])
    assert not torch.equal(film(*frames)[-1], frames[-1])


def test_rows_do_not_meet() -> None:
    one, other = [frame((4, 4), (2, c)) for c in (0, 2)], [frame((4 + d, 4), None) for d in (0, 2)]
    together = film(*[torch.cat(pair) for pair in zip(one, other, strict=True)])[-1]
    assert torch.equal(together, torch.cat([film(*one)[-1], film(*other)[-1]]))


@pytest.mark.parametrize("start", [0, 7], ids=["beside", "before"])
def test_a_hand_that_moves_before_a_thing_is_not_hidden_by_it(start: int) -> None:
    """A hand of 4 x 4 that crosses a door of 12 x 12, or begins amid it."""
    frames = []
    for column in (start, *range(8, 14, 2)):
        door, hand = torch.zeros(16, 20), torch.zeros(16, 20)
        door[2:14, 5:17] = 1.0
        hand[6:10, column : column + 4] = 1.0
        frames.append(torch.stack([door * (1 - hand), hand])[None])
    whole = frames[0].clone()
    whole[0, 0, 2:14, 5:17] = 1.0
    for seen, kept in zip(frames, film(*frames), strict=True):
        assert torch.equal(kept[:, 1], seen[:, 1])
        assert torch.equal(kept[:, 0], whole[:, 0])
