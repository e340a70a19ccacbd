"""Whether a camera is exact, as a renderer's is, and frames without its shaking and flicker.

E clips of T frames, H and W of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.images import as_images
from perception.slots.alignment import Alignment, shifted
from perception.slots.background import ALONE, LUMA, NORMAL, aligned, luma_chroma

SHAKES, FLICKERS = 0.05, 0.002
"""Median shift in pixels, and median change of brightness, from which a camera is not exact."""
PROBED = 200
"""About how many pairs of frames are measured."""
QUANTILE, CHI = 0.3, 1.193
"""Of the distance of a pixel from its background, and that quantile of the length of a vector of
three normal numbers."""
COARSE, COLOURED = 1.25, 5e-4
"""Second over first differences of a colour channel below which it is coarse, and its mean first
difference from which that can be told."""
ROUNDED = 4.0
"""Difference, of 255, that is more than rounding leaves."""
TEMPLATE, ROUNDS = 400, 3
"""About how many frames the template of a scene is the median of, and how often it is made anew."""


@dataclass(frozen=True)
class Camera:
    """What a camera does to a scene that rests."""

    noise: float
    """Standard deviation of each channel's noise, of a range of 1."""
    shift: float
    """Median shift, in pixels, between two frames."""
    flicker: float
    """Median change of brightness between two frames."""
    compressed: bool
    """Whether colours are coarser than brightness, as JPEG and video leave them."""

    @property
    def exact(self) -> bool:
        """Whether what rests looks the same in every frame."""
        moves = self.noise or self.shift >= SHAKES or self.flicker >= FLICKERS
        return not (moves or self.compressed)


@torch.no_grad()
def measure_camera(clips: NDArray[np.uint8]) -> Camera:
    """Measure a camera on pairs of frames (E, T, H, W, 3) that follow each other, aligned.

    More than half of the picture must be at rest.
    """
    pairs = [(clip[t], clip[t + 1]) for clip in clips for t in range(len(clip) - 1)]
    noise, shifts, gains = [], [], []
    step = max(1, len(pairs) // PROBED)
    for before, after in pairs[::step]:
        reference, image = (as_images(torch.from_numpy(frame)[None]) for frame in (before, after))
        gain, shift = Alignment(reference)(image)
        apart = image / gain - (shifted(reference, shift) if shift.any() else reference)
        noise.append(float(apart.abs().median()) * NORMAL / 2**0.5)
        shifts.append(float(shift.norm()))
        gains.append(abs(float(gain) - 1))
    compressed = has_coarse_chroma(np.stack([before for before, _ in pairs[::step]]))
    level, shift, flicker = (float(np.median(of)) for of in (noise, shifts, gains))
    return Camera(max(level, LUMA / ALONE) if compressed else level, shift, flicker, compressed)


def has_coarse_chroma(frames: NDArray[np.uint8]) -> bool:
    """Whether colours of frames (B, H, W, 3) have been halved in size and enlarged again.

    Their gradient then changes little from pixel to pixel: the sum of second differences over that
    of first ones is 2 for lone steps, 1.4 to 2 in frames of renderers and under noise and shaking,
    and 0.6 to 1.1 after JPEG.
    """
    chroma = luma_chroma(as_images(torch.from_numpy(frames)))[:, 1:]
    first, second = (chroma.diff(n=n, dim=3).abs().sum((0, 2, 3)) for n in (1, 2))
    coloured = first > COLOURED * frames[..., 0].size
    return bool((coloured & (second < COARSE * first)).any())


@torch.no_grad()
def steadied(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring clips (E, T, H, W, 3) in line with each other, in place and brightness.

    With their median, which is made anew of frames in line and becomes sharp: a single frame has
    objects, whose edges would count.
    """
    frames = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]))
    some = as_images(frames[:: max(1, len(frames) // TEMPLATE)])
    template = some.median(dim=0).values
    for _ in range(ROUNDS):
        template = _in_line(some, Alignment(template[None])).median(dim=0).values
    alignment = Alignment(template[None])
    steady = [
        (_in_line(as_images(few), alignment).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        for few in frames.split(100)
    ]
    return torch.cat(steady).numpy().reshape(clips.shape)


def _in_line(images: Tensor, alignment: Alignment) -> Tensor:
    gain, shift = alignment(images)
    return shifted(images / gain.view(-1, 1, 1, 1), -shift)


@torch.no_grad()
def measure_spread(clips: NDArray[np.uint8], backgrounds: Tensor, alignment: Alignment) -> Tensor:
    """Measure how far aligned backgrounds are from their frames at each pixel.

    By a low quantile, since objects lie before a pixel now and then.

    Args:
        clips: (E, T, H, W, 3).
        backgrounds: (V, 3, H, W) in [0, 1].
        alignment: With the backgrounds.

    Returns:
        (H, W) standard deviation of each channel.
    """
    frames = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]))
    distances = []
    for some in frames[:: max(1, len(frames) // TEMPLATE)].split(100):
        images, background, shift = aligned(as_images(some), backgrounds, alignment)
        distance = (images - background).square().sum(1, keepdim=True).sqrt()
        distances.append(shifted(distance, -shift).squeeze(1))
    return torch.cat(distances).quantile(QUANTILE, dim=0) / CHI


def changed(
    frames: NDArray[np.uint8], before: NDArray[np.uint8], camera: Camera
) -> NDArray[np.bool_]:
    """Where frames (B, H, W, 3) differ from those before by more than the camera does: (B, H, W).

    Steadied frames of a camera that is not exact are compared with the range of the 3 x 3 pixels
    around, since an edge lies a fraction of a pixel aside.
    """
    if camera.exact:
        return (frames != before).any(axis=-1)
    kernel = np.ones((3, 3), np.uint8)
    lowest, highest = (
        np.stack([grow(frame, kernel) for frame in before]).astype(np.float32)
        for grow in (cv2.erode, cv2.dilate)
    )
    outside = np.maximum(frames - highest, lowest - frames).clip(0)
    least = max(ALONE * 2**0.5 * camera.noise * 255, ROUNDED)
    return np.asarray(np.linalg.norm(outside, axis=-1) > least)
