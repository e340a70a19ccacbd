"""Positional encoding of coordinates: what lets a bonus or a network tell small displacements
apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_FREQUENCIES = 6
"""The paper's state setting: 2^0 .. 2^5."""


def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """x, sin(2^i x) and cos(2^i x) for i < frequencies: (..., C), about [-1, 1], -> (..., C * (1 +
    2 * frequencies))."""
    scales = 1 << torch.arange(
        frequencies, device=x.device
    )  # compiled code takes a power of 2.0 again for each number
    angles = (x.unsqueeze(-1) * scales).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def encoded_width(coordinates: int, frequencies: int) -> int:
    """Width of the encoding of `coordinates` scalars."""
    return coordinates * (1 + 2 * frequencies)


def frequencies_for(jitter: float, limit: float = 0.3) -> int:
    """The most frequencies (1 to 6) whose highest turns by less than `limit` radian under a resting
    object's measured `jitter`.

    Beyond it the code of an object at rest would be noise, and noise looks forever new to an
    exploration bonus.
    """
    if jitter <= 0:
        return MAX_FREQUENCIES
    highest = math.ceil(math.log2(limit / jitter)) - 1
    return max(1, min(MAX_FREQUENCIES, highest + 1))
