"""The static background of a fixed camera, and what stands before it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST = 20
"""Frames for which one stay of a colour counts."""


def estimate_background(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """For each pixel the colour that the scene comes back to: (E, T, H, W, 3) long clips -> (H, W, 3).

    A median over time would take an object that rests at its start in every clip for background. Instead a colour is counted only
    after the pixel has turned to it: what has rested since the start of a clip does not count, and what comes to rest later (in a
    corner, for good) counts for LONGEST frames at most. A pixel that never changes keeps its colour.
    """
    height, width = clips.shape[2:4]
    levels = (clips >> 3).astype(np.uint32)  # rendering noise is below one of 32 levels
    colours = (levels[..., 0] << 10) | (levels[..., 1] << 5) | levels[..., 2]
    turns = colours[:, 1:] != colours[:, :-1]
    counted = np.zeros(colours.shape, dtype=bool)
    left = np.zeros(colours[:, 0].shape, dtype=np.int64)
    for t in range(turns.shape[1]):
        left = np.where(turns[:, t], LONGEST, np.maximum(left - 1, 0))
        counted[:, t + 1] = left > 0
    background = np.empty((height, width, 3), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            seen, votes = colours[:, :, y, x], counted[:, :, y, x]
            values, counts = np.unique(seen[votes] if votes.any() else seen, return_counts=True)
            background[y, x] = np.median(clips[:, :, y, x][seen == values[counts.argmax()]], axis=0)
    return background


def nearest_background(frames: Tensor, backgrounds: Tensor) -> Tensor:
    """For each pixel the background colour nearest to the frame's: (B, 3, H, W), (V, 3, H, W) -> (B, 3, H, W).

    A task's variants (one block or two, each with its goal) share a camera, not a floor: V images of the empty scene.
    """
    distance = (frames.unsqueeze(1) - backgrounds).square().sum(dim=2, keepdim=True)  # (B, V, 1, H, W)
    index = distance.argmin(dim=1, keepdim=True).expand(-1, -1, 3, -1, -1)
    return backgrounds.expand(len(frames), -1, -1, -1, -1).gather(1, index).squeeze(1)


def foreground_alpha(frames: Tensor, background: Tensor, threshold: float, softness: float) -> Tensor:
    """How far a pixel belongs to the foreground: frames and background (B, 3, H, W) in [0, 1] -> (B, H, W) in [0, 1].

    threshold: colour distance at which alpha is one half; softness: width of the transition, both in units of the colour cube.
    """
    distance = (frames - background).square().sum(dim=1).add(1e-8).sqrt()
    return torch.sigmoid((distance - threshold) / softness)
