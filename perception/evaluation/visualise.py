"""Pictures of slots as RGB arrays: masks, paths, sheets."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.slots.model import SEEN, SlotOutput

Image = NDArray[np.uint8]

COLOURS = np.array(
    [
        [230, 80, 70],
        [80, 200, 100],
        [80, 130, 240],
        [240, 190, 60],
        [190, 100, 220],
        [70, 210, 220],
        [240, 140, 180],
        [170, 170, 170],
    ],
    dtype=np.float64,
)
"""Of the slots, in their order; they repeat after eight."""


def slot_colour(slot: int) -> NDArray[np.float64]:
    """RGB of a slot, 0 to 255."""
    return COLOURS[slot % len(COLOURS)]


def enlarge(image: Image, factor: int) -> Image:
    """Repeat every pixel as a square of `factor` pixels."""
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def overlay(frame: Image, masks: NDArray[np.floating], opacity: float = 0.8) -> Image:
    """Draw masks over a grey frame, each in the colour of its slot.

    Args:
        frame: (H, W, 3).
        masks: (K, H, W) in [0, 1].
        opacity: Of a full mask.
    """
    grey = np.repeat(frame.mean(axis=2, keepdims=True), 3, axis=2)
    colours = COLOURS[np.arange(len(masks)) % len(COLOURS)]
    cover = opacity * masks.sum(axis=0)[..., None]
    painted = opacity * np.einsum("khw,kc->hwc", masks, colours)
    return np.clip((1 - cover) * grey + painted, 0, 255).astype(np.uint8)


def spotlight(frame: Image, mask: NDArray[np.bool_]) -> Image:
    """A frame (H, W, 3), grey and dark but for one mask (H, W), which is white."""
    grey = np.repeat(frame.mean(axis=2, keepdims=True) / 2, 3, axis=2).astype(np.uint8)
    return np.where(mask[..., None], np.uint8(255), grey)


def reconstruction(output: SlotOutput, row: int = 0) -> Image:
    """The decoded image (H, W, 3) of one row of the batch."""
    image = output.decoded.image[row].detach().permute(1, 2, 0).cpu().numpy()
    return np.clip(image * 255, 0, 255).round().astype(np.uint8)


def sheet(
    frames: Sequence[Image],
    outputs: Sequence[SlotOutput],
    row: int = 0,
    factor: int = 3,
    gap: int = 4,
) -> Image:
    """Three rows over the given steps: frames, masks and reconstructions.

    Args:
        frames: Frames (H, W, 3).
        outputs: Slots of each frame.
        row: Of the batch.
        factor: Side of a pixel on the sheet.
        gap: Pixels between images.
    """
    masks = [output.decoded.masks[row].detach().cpu().numpy() for output in outputs]
    images = (
        frames,
        [overlay(frame, mask) for frame, mask in zip(frames, masks, strict=True)],
        [reconstruction(output, row) for output in outputs],
    )
    return grid([[enlarge(image, factor) for image in line] for line in images], gap)


def grid(rows: Sequence[Sequence[Image]], gap: int = 4) -> Image:
    """Images of one size side by side, on white."""
    sides = ((gap, 0), (gap, 0), (0, 0))
    lines = [
        np.concatenate([np.pad(image, sides, constant_values=255) for image in row], axis=1)
        for row in rows
    ]
    width = max(line.shape[1] for line in lines) + gap
    padded = [
        np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255)
        for line in lines
    ]
    return np.pad(np.concatenate(padded), ((0, gap), (0, 0), (0, 0)), constant_values=255)


def draw_paths(background: Image, coordinates: NDArray[np.floating], factor: int = 8) -> Image:
    """Draw each slot's path over the empty scene while the slot is present.

    A ring marks the start, a dot the end.

    Args:
        background: (H, W, 3).
        coordinates: (T, K, 4) of `SlotOutput`.
        factor: Side of a pixel on the page.
    """
    page = np.ascontiguousarray(enlarge((background * 0.5).astype(np.uint8), factor))
    size = np.array(page.shape[1::-1])
    for k in range(coordinates.shape[1]):
        seen = coordinates[:, k, 3] > SEEN
        points = ((coordinates[:, k, :2] + 1) / 2 * size).round().astype(int).tolist()
        colour = slot_colour(k).tolist()
        for t in np.flatnonzero(seen[1:] & seen[:-1]).tolist():
            cv2.line(page, points[t], points[t + 1], colour, 2, cv2.LINE_AA)
        if seen.any():
            first, last = np.flatnonzero(seen)[[0, -1]]
            cv2.circle(page, points[first], 8, colour, 2, cv2.LINE_AA)
            cv2.circle(page, points[last], 6, colour, -1, cv2.LINE_AA)
    return page
