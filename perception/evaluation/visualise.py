"""Pictures of what a slot model sees, as RGB arrays: masks, paths, sheets."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.slots.model import SlotOutput

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
    return COLOURS[slot % len(COLOURS)]


def enlarge(image: Image, factor: int) -> Image:
    """Every pixel as a square of `factor` pixels."""
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def overlay(frame: Image, masks: NDArray[np.floating], opacity: float = 0.8) -> Image:
    """A greyed frame (H, W, 3) under the masks (K, H, W), each in the colour of its slot."""
    grey = np.repeat(frame.mean(axis=2, keepdims=True), 3, axis=2)
    colours = np.stack([slot_colour(k) for k in range(len(masks))])
    painted = np.einsum("khw,kc->hwc", masks, colours)
    cover = opacity * masks.sum(axis=0)[..., None]
    return np.clip((1 - cover) * grey + opacity * painted, 0, 255).astype(np.uint8)


def spotlight(frame: Image, mask: NDArray[np.bool_]) -> Image:
    """A frame (H, W, 3), grey and dark but for one mask (H, W), which is white."""
    grey = np.repeat(frame.mean(axis=2, keepdims=True) / 2, 3, axis=2).astype(np.uint8)
    return np.where(mask[..., None], np.uint8(255), grey)


def reconstruction(sight: SlotOutput, row: int = 0) -> Image:
    """The decoded image of one row of the batch: (H, W, 3)."""
    image = sight.decoded.image[row].detach().permute(1, 2, 0).cpu().numpy()
    return np.clip(image * 255, 0, 255).round().astype(np.uint8)


def sheet(
    frames: Sequence[Image],
    sights: Sequence[SlotOutput],
    row: int = 0,
    factor: int = 3,
    gap: int = 4,
) -> Image:
    """Three rows over the given steps: frames, masks and reconstructions of one row of
    the batch."""
    columns = []
    for frame, sight in zip(frames, sights, strict=True):
        masks = sight.decoded.masks[row].detach().cpu().numpy()
        columns.append([frame, overlay(frame, masks), reconstruction(sight, row)])
    return grid([[enlarge(column[i], factor) for column in columns] for i in range(3)], gap)


def grid(rows: Sequence[Sequence[Image]], gap: int = 4) -> Image:
    """Images of one size side by side, on white."""
    height, width, _ = rows[0][0].shape
    page = np.full(
        (len(rows) * (height + gap) + gap, len(rows[0]) * (width + gap) + gap, 3),
        255,
        dtype=np.uint8,
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            page[top : top + height, left : left + width] = image
    return page


def draw_paths(background: Image, coordinates: NDArray[np.floating], factor: int = 8) -> Image:
    """Where each slot went: a line per slot over the empty scene (H, W, 3), from coordinates (T, K,
    4) of `SlotOutput`.

    Drawn only while the slot is present; a ring marks the start, a dot the end.
    """
    page = np.ascontiguousarray(enlarge((background * 0.5).astype(np.uint8), factor))
    height, width, _ = page.shape
    for k in range(coordinates.shape[1]):
        seen = coordinates[:, k, 3] > 0.5
        points = ((coordinates[:, k, :2] + 1) / 2 * np.array([width, height])).round().astype(int)
        colour = slot_colour(k).tolist()
        for t in range(1, len(points)):
            if seen[t - 1] and seen[t]:
                cv2.line(page, points[t - 1].tolist(), points[t].tolist(), colour, 2, cv2.LINE_AA)
        if seen.any():
            first, last = np.flatnonzero(seen)[[0, -1]]
            cv2.circle(page, points[first].tolist(), 8, colour, 2, cv2.LINE_AA)
            cv2.circle(page, points[last].tolist(), 6, colour, -1, cv2.LINE_AA)
    return page
