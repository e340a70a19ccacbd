"""Objects behind others: what another object hides is still where it was.

B frames, K objects, H and W of the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_EXPLAINED = 1.0
"""Pixels that others must have covered or uncovered before an object is taken to be at rest."""
MAX_UNEXPLAINED = 0.25
"""Other changes of its mask that an object at rest may show, as a share of the explained ones."""
MAX_CHANGED = 0.15
"""The same, as a share of what is seen of it and not beside others."""
LEAST_CHANGE = 0.1
"""Pixels that may change beyond that share: a thing that is hidden whole rests."""
CLEAR = 0.9
"""Share of a pixel from which on an object is taken to be seen there, and not a mixture."""


def bodies_seen(masks: Tensor, bodies: Tensor) -> Tensor:
    """Tell which body is seen in each pixel, -1 for background.

    Args:
        masks: (B, K, H, W) in [0, 1].
        bodies: (K,) the body of each object, equal for the parts of one.

    Returns:
        (B, H, W) int8.
    """
    own = bodies.to(torch.int8).view(1, -1, 1, 1)
    most = masks == masks.amax(dim=1, keepdim=True)  # argmax over few is a hundred times as slow
    body = torch.where(most, own, -1).amax(dim=1)
    return body.masked_fill_(masks.sum(dim=1) <= 0.5, -1)


def fill_holes(masks: Tensor, seen: Tensor, bodies: Tensor) -> Tensor:
    """Complete masks where another body is seen amid an object: it is before the object.

    For the first step of an episode, of which nothing is remembered yet.

    Args:
        masks: (B, K, H, W) in [0, 1].
        seen: `bodies_seen` of them.
        bodies: (K,) as of `bodies_seen`.

    Returns:
        (B, K, H, W): 1 where another body is seen and the object lies left, right, above and below.
    """
    own = bodies.to(torch.int8).view(1, -1, 1, 1)
    amid = _others(seen, own)
    there = masks > 0.5
    for axis in (2, 3):
        amid = amid & (there.cumsum(axis) > 0) & (there.flip(axis).cumsum(axis) > 0).flip(axis)
    return torch.where(amid, 1.0, masks)


def remember_hidden(
    masks: Tensor, seen: Tensor, before: Tensor, kept: Tensor, bodies: Tensor
) -> Tensor:
    """Complete the masks of objects that others hide, from what was seen of them before.

    A pixel that an object loses where another body is seen now, or gains where one was seen a step
    earlier, is explained by that body. An object whose mask changes almost nowhere else is at rest:
    beside others it keeps its mask, and gains what was uncovered and is its own for the most part;
    elsewhere its mask is what is seen. Any other object has moved: its mask is what is seen of it
    now. What reappears where it was hidden, and fills its pixel, explains nothing that is lost
    there: it lies behind, so that a hand which moves before a door that has been seen whole is not
    taken to be hidden by it.

    Args:
        masks: (B, K, H, W) in [0, 1], as seen.
        seen: `bodies_seen` of them.
        before: That of the step before.
        kept: What this function returned a step before; at an episode's first step `fill_holes`.
        bodies: (K,) as of `bodies_seen`; the parts of one body do not hide each other.

    Returns:
        (B, K, H, W), the masks whole.
    """
    own = bodies.to(torch.int8).view(1, -1, 1, 1)
    uncovered = _others(before, own)
    reappeared = ((masks > CLEAR) & uncovered & (kept > 0.5)).any(dim=1, keepdim=True)
    # A rim is mixed of both, so that neighbours of another body's pixels count as well.
    beside = _others_around(seen, own)
    change = masks - kept
    gains, amount = change > 0, change.abs()
    lost_to = beside & ~(reappeared & _others(seen, own))
    explains = (gains & _others_around(before, own)) | (~gains & lost_to)
    # Products and differences of sums: torch.where is slow on a CPU.
    explained = (amount * explains).sum(dim=(2, 3))
    unexplained = amount.sum(dim=(2, 3)) - explained
    apart = masks.sum(dim=(2, 3)) - (masks * beside).sum(dim=(2, 3))
    most = torch.minimum(MAX_UNEXPLAINED * explained, LEAST_CHANGE + MAX_CHANGED * apart)
    at_rest = (explained > MIN_EXPLAINED) & (unexplained < most)
    keeps = beside & ~(gains & uncovered & (masks > CLEAR))
    return torch.where(at_rest[..., None, None] & keeps, kept, masks)


def _others(seen: Tensor, own: Tensor) -> Tensor:
    """Where (B, K, H, W) another body than an object's own is seen (B, H, W)."""
    seen = seen.unsqueeze(1)
    return (seen >= 0) & (seen != own)


def _others_around(seen: Tensor, own: Tensor) -> Tensor:
    """Where another body is seen in a pixel or next to it: where not all there is one's own.

    Two maps of the frame, the greatest and the least body around, tell that of all objects.
    """
    greatest = _greatest_around(seen).unsqueeze(1)
    least = -_greatest_around(torch.where(seen < 0, -127, -seen)).unsqueeze(1)
    return (greatest >= 0) & ((greatest != own) | (least != own))


def _greatest_around(values: Tensor) -> Tensor:
    """Greatest of each pixel (B, H, W) and its eight neighbours."""
    for axis in (1, 2):
        around = values.clone()
        length = values.shape[axis] - 1
        ahead, behind = around.narrow(axis, 0, length), around.narrow(axis, 1, length)
        torch.maximum(ahead, values.narrow(axis, 1, length), out=ahead)
        torch.maximum(behind, values.narrow(axis, 0, length), out=behind)
        values = around
    return values
