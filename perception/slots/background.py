"""The static background of a fixed camera, and the foreground before it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class BackgroundConfig:
    """How the background is estimated. Distances are in the RGB cube of side 1."""

    certain_share: float = 0.9
    """Share of the frames from which a pixel's most common colour is certainly its background."""
    candidate_share: float = 0.015
    """Share of the frames from which a colour may be the background."""
    window: int = 2
    """Half the width, in pixels, of the window of neighbours that a doubtful pixel continues."""
    max_distance: float = 0.3
    """Distance from its neighbours from which it does not matter how far a colour is."""
    frequency_weight: float = 0.05
    """Distance that a colour e times as common makes up for."""
    same_distance: float = 0.025
    """Distance below which two pixels look the same."""
    changed_distance: float = 0.05
    """Distance from the background above which a pixel has changed: more than noise."""
    inpaint_rings: int = 3
    """Reach, in pixels, of inpainting into a region that an object never uncovers; 0 for none."""
    inpaint_area: int = 3
    """Pixels from which such a region is inpainted."""
    inpaint_frames: int = 1000
    """About how many frames are searched for such regions."""


def estimate_background(
    clips: NDArray[np.uint8], config: BackgroundConfig = BackgroundConfig()
) -> NDArray[np.uint8]:
    """Estimate for each pixel the colour of the scene behind all that moves.

    What covers a pixel most of the time (a door near its hinge) is not background. A colour is
    certain only where nearly all frames show it; from there the background grows inwards, where it
    continues most plainly first: of the colours that a doubtful pixel shows now and then, it takes
    one that is common and continues its known neighbours. Last, what a moving object never uncovers
    is inpainted.

    Args:
        clips: (E, T, H, W, 3), from randomized resets: what rests in one place in all of them
            is background.
        config: Thresholds.

    Returns:
        (H, W, 3).
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
        choice = np.flatnonzero(shares >= min(config.candidate_share, shares.max()))
        medians = np.stack([np.median(frames[:, y, x][index == i], axis=0) for i in choice])
        if shares.max() >= config.certain_share:
            background[y, x], known[y, x] = medians[shares[choice].argmax()], True
        else:
            doubtful[y, x] = shares[choice], medians

    def window(*place: int) -> tuple[slice, ...]:
        return tuple(slice(max(0, n - config.window), n + config.window + 1) for n in place)

    def best(place: tuple[int, int]) -> tuple[float, tuple[int, int], int]:
        """The cost of a doubtful pixel's best colour, the pixel, and the colour's index."""
        shares, medians = doubtful[place]
        around = background[window(*place)][known[window(*place)]]
        apart = np.linalg.norm((around[:, None] - medians) / 255, axis=2)
        unlike = np.quantile(apart, 0.25, axis=0) if len(around) else config.max_distance
        cost = np.minimum(unlike, config.max_distance) - config.frequency_weight * np.log(shares)
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
    mask = never_uncovered(frames, estimate, config).astype(np.uint8)
    return np.asarray(cv2.inpaint(estimate, mask, 2, cv2.INPAINT_NS), np.uint8)


def never_uncovered(
    frames: NDArray[np.uint8],
    background: NDArray[np.uint8],
    config: BackgroundConfig = BackgroundConfig(),
) -> NDArray[np.bool_]:
    """Find the pixels of a background that show an object that moves by less than its length.

    In most frames such a pixel looks like a neighbour that has changed: now on one side, now on the
    other. Pixels that are found count as changed in their turn, ring by ring.

    Args:
        frames: (B, H, W, 3).
        background: (H, W, 3).
        config: Thresholds.

    Returns:
        (H, W).
    """
    images = frames[:: max(1, len(frames) // config.inpaint_frames)].astype(np.float32) / 255
    difference = np.linalg.norm(images - background / np.float32(255), axis=3)
    changed = difference > config.changed_distance
    never = np.zeros(background.shape[:2], bool)
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    alike = [
        np.linalg.norm(images - np.roll(images, shift, axis=(1, 2)), axis=3) < config.same_distance
        for shift in shifts
    ]
    for _ in range(config.inpaint_rings):
        belongs = np.zeros_like(changed)
        for shift, like in zip(shifts, alike, strict=True):
            belongs |= like & np.roll(changed | never, shift, axis=(1, 2))
        often = (belongs & ~changed).mean(axis=0) > 0.5 * (~changed).mean(axis=0)
        # At the edge of the picture a neighbour would be a pixel of the opposite side.
        never[1:-1, 1:-1] |= often[1:-1, 1:-1]
    _, regions, sizes, _ = cv2.connectedComponentsWithStats(never.astype(np.uint8))
    return never & (sizes[regions, cv2.CC_STAT_AREA] >= config.inpaint_area)


def nearest_background(frames: Tensor, backgrounds: Tensor) -> Tensor:
    """Choose for each pixel the background colour nearest to the frame's.

    A task's variants (one block or two, each with its goal) share a camera but not a floor.

    Args:
        frames: (B, 3, H, W).
        backgrounds: (V, 3, H, W), the empty scenes.

    Returns:
        (B, 3, H, W).
    """
    first, *others = backgrounds
    nearest, least = first.expand_as(frames), (frames - first).square().sum(dim=1, keepdim=True)
    for other in others:  # a fifth of the time of argmin over so few
        distance = (frames - other).square().sum(dim=1, keepdim=True)
        nearest = torch.where(distance < least, other, nearest)
        least = torch.minimum(distance, least)
    return nearest


def foreground_alpha(
    frames: Tensor, background: Tensor, threshold: float, softness: float
) -> Tensor:
    """Soft foreground mask by distance from the background.

    Args:
        frames: (B, 3, H, W) in [0, 1].
        background: (B, 3, H, W) in [0, 1].
        threshold: Colour distance, in the RGB cube of side 1, at which alpha is one half.
        softness: Width of the transition, in the same unit.

    Returns:
        (B, H, W) in [0, 1].
    """
    distance = (frames - background).square().sum(dim=1).add(1e-8).sqrt()
    return torch.sigmoid((distance - threshold) / softness)
