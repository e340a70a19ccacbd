"""Conversion of frames to network inputs."""

from __future__ import annotations

from torch import Tensor


def as_images(frames: Tensor) -> Tensor:
    """Convert frames (B, H, W, 3) uint8 to images (B, 3, H, W) in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255
