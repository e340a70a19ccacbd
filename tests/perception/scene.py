"""A small drawn scene with pushed squares, known to the pixel: what object discovery is tested on without a simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = np.array([[220, 70, 60], [70, 190, 90], [70, 110, 220]], dtype=np.uint8)
HALF = 0.2
SPAN = 4.0


@dataclass
class Scene:
    """Frames (E, T, 64, 64, 3), true segmentation (E, T, 64, 64) with 0 for background, positions (E, T, N, 2) in [-2, 2]."""

    frames: NDArray[np.uint8]
    segmentation: NDArray[np.int64]
    positions: NDArray[np.float64]


def empty_floor() -> NDArray[np.uint8]:
    """The floor with walls and two dim goal outlines."""
    floor = np.full((64, 64, 3), 40, dtype=np.uint8)
    floor[[0, -1]] = 90
    floor[:, [0, -1]] = 90
    for x, y in ((-1.4, 1.4), (0.0, 1.4)):
        left, top = to_pixel(x - 0.3), to_pixel(-y - 0.3)
        floor[top : top + 9, left : left + 9] = 65
        floor[top + 1 : top + 8, left + 1 : left + 8] = 40
    return floor


def to_pixel(x: float) -> int:
    return int(round((x + SPAN / 2) / SPAN * 64))


def roll_scene(episodes: int, steps: int, blocks: int, seed: int) -> Scene:
    """A pusher driven by correlated noise pushes `blocks` squares that start where they do in every episode."""
    rng = np.random.default_rng(seed)
    floor = empty_floor()
    count = 1 + blocks
    frames = np.empty((episodes, steps, 64, 64, 3), dtype=np.uint8)
    segmentation = np.zeros((episodes, steps, 64, 64), dtype=np.int64)
    positions = np.empty((episodes, steps, count, 2))
    for e in range(episodes):
        place = np.array([[0.0, -1.4], [-1.2, 0.0], [0.0, 0.0]])[:count]
        velocity = np.zeros(2)
        for t in range(steps):
            frames[e, t], positions[e, t] = floor, place
            for i, (x, y) in enumerate(place):
                box = np.s_[to_pixel(-y - HALF) : to_pixel(-y + HALF), to_pixel(x - HALF) : to_pixel(x + HALF)]
                frames[e, t][box] = COLOURS[i]
                segmentation[e, t][box] = i + 1
            velocity = 0.8 * velocity + 0.2 * rng.normal(0, 1, 2)
            place[0] = np.clip(place[0] + 0.5 * velocity, -1.8, 1.8)
            for i in range(1, count):
                for j in range(i):
                    gap = place[i] - place[j]
                    depth = 2 * HALF - np.abs(gap)
                    if (depth > 0).all():
                        axis = int(depth.argmin())
                        place[i, axis] += depth[axis] * np.sign(gap[axis] or 1.0)
                place[i] = np.clip(place[i], -1.8, 1.8)
    return Scene(frames, segmentation, positions)
