"""Positional encoding of coordinates, which lets networks and the bonus resolve small motions."""

from __future__ import annotations

import math

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


def encoded_width(coordinates: int, frequencies: int) -> int:
    """Return the width of the encoding of `coordinates` scalars."""
    return coordinates * (1 + 2 * frequencies)


MOVED = 0.02
"""Displacement in one step that counts as full motion, in units of half a picture (0.6 of 64
pixels), or of coordinates scaled to [-1, 1]."""


def motion(now: Tensor, before: Tensor) -> Tensor:
    """Return how much objects move, up to 1: coordinates (..., N, C) -> (..., N, 1)."""
    return ((now - before).norm(dim=-1, keepdim=True) / MOVED).clamp(max=1.0)


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
