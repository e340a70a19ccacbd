"""Small drawn films, known to the pixel: for tests of segment proposals without a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIZE = 32
RED, ORANGE, CYAN, BLUE, WHITE = (
    (200, 50, 40),
    (220, 130, 40),
    (40, 190, 200),
    (60, 70, 220),
    (235, 235, 235),
)


@dataclass
class Square:
    """A square of `side` pixels whose upper left corner follows `path` (T, 2), x before y, in
    pixels."""

    colour: tuple[int, int, int]
    path: NDArray[np.int64]
    side: int = 4


@dataclass
class Film:
    """images (T, 3, 32, 32) in [0, 1]; squares (T, 32, 32): which one is seen at a pixel, -1 for
    the floor."""

    images: Tensor
    squares: Tensor

    @property
    def foreground(self) -> Tensor:
        return self.squares >= 0


def draw(squares: Sequence[Square]) -> Film:
    """Squares on a grey floor, the later ones before the earlier ones; what lies beyond the picture
    is out of sight."""
    steps = len(squares[0].path)
    frames = np.full((steps, SIZE, SIZE, 3), 90, dtype=np.uint8)
    which = np.full((steps, SIZE, SIZE), -1)
    for i, square in enumerate(squares):
        for t, (x, y) in enumerate(square.path):
            box = np.s_[t, y : y + square.side, x : x + square.side]
            frames[box], which[box] = square.colour, i
    return Film(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(which))


def places(
    seed: int, x: tuple[int, int] = (0, 28), y: tuple[int, int] = (0, 28), steps: int = 120
) -> NDArray[np.int64]:
    """A path (T, 2) that lies anywhere in a box of the picture, in every frame anew."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(*x, steps), rng.integers(*y, steps)], axis=1)
