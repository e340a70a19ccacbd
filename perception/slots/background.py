"""The static background of a fixed camera, and what stands before it."""

from __future__ import annotations

import heapq

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CERTAIN = 0.9
"""Share of the frames from which a pixel's commonest colour is its background beyond doubt."""
POSSIBLE = 0.015
"""Share of the frames from which a colour may be the background."""
NEIGHBOURS = 2
"""Half the width of the window in which a doubtful pixel looks for its neighbours' background."""
UNLIKE = 0.3
"""Distance of colours, in the RGB cube of side 1, from which it does not matter how unlike its
neighbours a colour is."""
PREFERENCE = 0.05
"""Distance of colours, in the RGB cube of side 1, that a colour which is e times as common makes up
for."""
SAME = 0.025
"""Distance of colours, in the RGB cube of side 1, below which two pixels look the same."""
CHANGED = 0.05
"""Distance of colours, in the RGB cube of side 1, above which a pixel is not the background: more
than noise."""
RINGS = 3
"""How far, in pixels, the part of the picture that a thing never leaves may reach in from where it
does."""
SPECK = 3
"""Pixels from which it is believed."""
LOOKED_AT = 1000
"""Frames in which such a part is looked for."""


def estimate_background(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """For each pixel the colour of the scene behind all that moves: (E, T, H, W, 3) clips -> (H, W,
    3).

    What covers a pixel for most of the time (a door near its hinge) must not be taken for
    background. So a colour is only certain where it is there in nearly all frames; from there the
    background grows inwards, where it goes on most plainly first: of the colours that a doubtful
    pixel shows now and then, the one that continues its known neighbours and is common. Clips
    should begin in randomized scenes: what rests in one place in all of them is background. Last,
    what a moving thing never uncovers is painted in from around it.
    """
    height, width = clips.shape[2:4]
    frames = clips.reshape(-1, height, width, 3)
    levels = frames.astype(np.uint32) >> 2  # rendering noise is below one of 64 levels
    colours = (levels[..., 0] << 12) | (levels[..., 1] << 6) | levels[..., 2]
    background, known = np.zeros((height, width, 3)), np.zeros((height, width), dtype=bool)
    doubtful: dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for y, x in np.ndindex(height, width):
        _, index, counts = np.unique(colours[:, y, x], return_inverse=True, return_counts=True)
        shares = counts / len(frames)
        choice = np.flatnonzero(shares >= min(POSSIBLE, shares.max()))
        medians = np.stack([np.median(frames[:, y, x][index == i], axis=0) for i in choice])
        if shares.max() >= CERTAIN:
            background[y, x], known[y, x] = medians[shares[choice].argmax()], True
        else:
            doubtful[y, x] = shares[choice], medians

    def window(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(0, y - NEIGHBOURS), y + NEIGHBOURS + 1), slice(
            max(0, x - NEIGHBOURS), x + NEIGHBOURS + 1
        )

    def best(place: tuple[int, int]) -> tuple[float, tuple[int, int], int]:
        """The cost of a doubtful pixel's best colour, the pixel, and which colour that is."""
        shares, medians = doubtful[place]
        around = background[window(*place)][known[window(*place)]]
        apart = np.linalg.norm((around[:, None] - medians) / 255, axis=2)
        cost = np.minimum(
            np.quantile(apart, 0.25, axis=0) if len(around) else UNLIKE, UNLIKE
        ) - PREFERENCE * np.log(shares)
        return float(cost.min()), place, int(cost.argmin())

    latest = {place: best(place) for place in doubtful}
    heap = list(latest.values())
    heapq.heapify(heap)
    while doubtful:
        offer = heapq.heappop(heap)
        place = offer[1]
        if latest.get(place) != offer:
            continue  # its neighbours have changed since
        del latest[place]
        background[place], known[place] = doubtful.pop(place)[1][offer[2]], True
        rows, columns = window(*place)
        for near in np.ndindex(known[rows, columns].shape):
            other = rows.start + near[0], columns.start + near[1]
            if other in doubtful:
                latest[other] = best(other)
                heapq.heappush(heap, latest[other])
    estimate = background.astype(np.uint8)
    return np.asarray(
        cv2.inpaint(estimate, never_left(frames, estimate).astype(np.uint8), 2, cv2.INPAINT_NS),
        np.uint8,
    )


def never_left(frames: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of a background (H, W, 3) are those of a thing that moves by less than its
    length, and never uncovers its middle: frames (B, H, W, 3) -> (H, W).

    Such a pixel looks like a neighbour that has changed, in most frames: now the thing has come on
    one side, now on the other. What is found is taken for changed in its turn, ring by ring.
    """
    images = frames[:: max(1, len(frames) // LOOKED_AT)].astype(np.float32) / 255
    changed = np.linalg.norm(images - background / np.float32(255), axis=3) > CHANGED
    never = np.zeros(background.shape[:2], bool)
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    alike = [
        np.linalg.norm(images - np.roll(images, shift, axis=(1, 2)), axis=3) < SAME
        for shift in shifts
    ]
    for _ in range(RINGS):
        belongs = np.zeros_like(changed)
        for shift, like in zip(shifts, alike, strict=True):
            belongs |= like & np.roll(changed | never, shift, axis=(1, 2))
        often = (belongs & ~changed).mean(axis=0) > 0.5 * (~changed).mean(axis=0)
        never[1:-1, 1:-1] |= often[
            1:-1, 1:-1
        ]  # at the edge of the picture there is another side's pixel instead of a neighbour
    _, regions, sizes, _ = cv2.connectedComponentsWithStats(never.astype(np.uint8))
    return never & (sizes[regions, cv2.CC_STAT_AREA] >= SPECK)


def nearest_background(frames: Tensor, backgrounds: Tensor) -> Tensor:
    """For each pixel the background colour nearest to the frame's: (B, 3, H, W), (V, 3, H, W) ->
    (B, 3, H, W).

    A task's variants (one block or two, each with its goal) share a camera, not a floor: V images
    of the empty scene.
    """
    first, *others = backgrounds
    nearest, least = first.expand_as(frames), (frames - first).square().sum(dim=1, keepdim=True)
    for other in others:  # a fifth of the time of argmin over so few
        distance = (frames - other).square().sum(dim=1, keepdim=True)
        nearest, least = (
            torch.where(distance < least, other, nearest),
            torch.minimum(distance, least),
        )
    return nearest


def foreground_alpha(
    frames: Tensor, background: Tensor, threshold: float, softness: float
) -> Tensor:
    """How far a pixel belongs to the foreground: frames and background (B, 3, H, W) in [0, 1] ->
    (B, H, W) in [0, 1].

    threshold: colour distance at which alpha is one half; softness: width of the transition, both
    in units of the colour cube.
    """
    distance = (frames - background).square().sum(dim=1).add(1e-8).sqrt()
    return torch.sigmoid((distance - threshold) / softness)
