"""The static background of a fixed camera, and what stands before it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def estimate_background(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """For each pixel the colour that the scene keeps coming back to: (E, T, H, W, 3) long clips -> (H, W, 3).

    A median over time would take an object that rests at its start in every clip for background. Instead a colour gets one
    vote for every separate stay at the pixel, however long: an object that rests in one place for long has stayed once, while
    the background returns whenever something has passed.
    """
    clips_count, steps, height, width, _ = clips.shape
    levels = (clips >> 3).astype(np.uint32)  # rendering noise is below one of 32 levels
    colour = (levels[..., 0] << 10) | (levels[..., 1] << 5) | levels[..., 2]
    starts = np.ones(colour.shape, dtype=bool)
    starts[:, 1:] = colour[:, 1:] != colour[:, :-1]
    background = np.empty((height, width, 3), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            seen = colour[:, :, y, x]
            values, votes = np.unique(seen[starts[:, :, y, x]], return_counts=True)
            stays = seen == values[votes.argmax()]
            background[y, x] = np.median(clips[:, :, y, x][stays], axis=0)
    return background


def foreground_alpha(frames: Tensor, background: Tensor, threshold: float, softness: float) -> Tensor:
    """How far a pixel belongs to the foreground: frames (B, 3, H, W) and background (3, H, W) in [0, 1] -> (B, H, W) in [0, 1].

    threshold: colour distance at which alpha is one half; softness: width of the transition, both in units of the colour cube.
    """
    distance = (frames - background).square().sum(dim=1).add(1e-8).sqrt()
    return torch.sigmoid((distance - threshold) / softness)
