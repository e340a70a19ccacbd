"""Positional encoding of coordinates, which lets networks and the bonus resolve small motions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

MAX_FREQUENCIES = 6
"""Frequencies of the paper's state setting: 2^0 .. 2^5."""


def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """Concatenate x, sin(2^i x) and cos(2^i x) for i < frequencies.

    Args:
        x: (..., C), about [-1, 1].
        frequencies: Number of frequencies.

    Returns:
        (..., C * (1 + 2 * frequencies)).
    """
    # Integers: compiled code would recompute a power of 2.0 for each number.
    scales = 1 << torch.arange(frequencies, device=x.device)
    angles = (x.unsqueeze(-1) * scales).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def log_scale(x: Tensor, near: float) -> Tensor:
    """Return sign(x) log(1 + |x| / near) / log(1 + 1 / near), which leaves -1, 0 and 1 in place.

    Args:
        x: (...), about [-1, 1], 0 where two things touch, say.
        near: |x| up to which little is compressed.
    """
    return symlog(x / near) / math.log1p(1 / near)


def encoded_width(coordinates: int, frequencies: int) -> int:
    """Return the width of the encoding of `coordinates` scalars."""
    return coordinates * (1 + 2 * frequencies)


MOVED = 0.02
"""Displacement in one step that counts as full motion, in units of half a picture (0.6 of 64
pixels), or of coordinates scaled to [-1, 1]."""


REACH = 0.5
"""Displacement since an episode began that is encoded as 1, in the same units: a touch is told
twice as finely as a place, and so is the jitter of what rests (`frequencies_for`)."""

Reading = Literal["all", "moving", "scene", "displaced"]
"""How the RND reads objects: always, each while it moves itself, all while anything moves that
mostly rests, or as displaced since the episode began."""


def motion(
    reading: Reading, now: Tensor, before: Tensor, presence: Tensor | float = 1.0
) -> Tensor | float:
    """Return the factor on each object's part of the RND's input.

    An object's motion is its displacement in a step over MOVED, up to 1. That of the scene is the
    greatest over objects of motion times the share of the batch in which the object rests: what
    always moves, such as the robot, hardly counts, and an arrangement of objects is new only while
    one of them is brought there.

    Args:
        reading: Which motion.
        now: Coordinates (T, B, N, C).
        before: Those of a step earlier.
        presence: Of the objects, (T, B, N, 1); one that is absent does not move.

    Returns:
        (T, B, N, 1), of the scene (T, B, 1, 1); 1 where motion does not count.
    """
    if reading in ("all", "displaced"):
        return 1.0
    moved = ((now - before).norm(dim=-1, keepdim=True) / MOVED).clamp(max=1.0)
    if reading == "moving":
        return moved
    moved = moved * presence
    rests = 1 - moved.mean((0, 1), keepdim=True)
    return (moved * rests).amax(-2, keepdim=True)


def frequencies_for(jitter: float, limit: float = 0.3) -> int:
    """Choose the most frequencies (1 to 6) that stay steady for an object at rest.

    The highest turns by less than `limit` under its jitter; beyond, the code of an object at rest
    would be noise, which looks forever new to an exploration bonus.

    Args:
        jitter: Measured displacement of a resting object, in units of the coordinates.
        limit: Radians.
    """
    if jitter <= 0:
        return MAX_FREQUENCIES
    highest = math.ceil(math.log2(limit / jitter)) - 1
    return max(1, min(MAX_FREQUENCIES, highest + 1))
