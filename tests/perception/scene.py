"""A small drawn scene, known to the pixel: for tests of object discovery without a
simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = np.array([[220, 70, 60], [70, 190, 90], [70, 110, 220]], dtype=np.uint8)
SIZE = 32
SIDE = 5
STARTS = np.array([[4.0, 14.0], [12.0, 4.0], [22.0, 20.0]])


@dataclass
class Scene:
    """Frames (E, T, 32, 32, 3), segmentation (E, T, 32, 32) with 0 for background, positions (E, T,
    N, 2) in pixels."""

    frames: NDArray[np.uint8]
    segmentation: NDArray[np.int64]
    positions: NDArray[np.float64]


def empty_floor() -> NDArray[np.uint8]:
    """A dark floor with a dim outline on it."""
    floor = np.full((SIZE, SIZE, 3), 40, dtype=np.uint8)
    floor[3:11, 20:28] = 65
    floor[4:10, 21:27] = 40
    return floor


def roll_scene(episodes: int, steps: int, objects: int, seed: int) -> Scene:
    """Squares that start in the same places in every episode, rest there for a while,
    then wander."""
    rng = np.random.default_rng(seed)
    frames = np.empty((episodes, steps, SIZE, SIZE, 3), dtype=np.uint8)
    segmentation = np.zeros((episodes, steps, SIZE, SIZE), dtype=np.int64)
    positions = np.empty((episodes, steps, objects, 2))
    for e in range(episodes):
        place, velocity = STARTS[:objects].copy(), np.zeros((objects, 2))
        leave = rng.integers(steps // 3, 2 * steps // 3 + 1, objects)
        leave[0] = 0
        for t in range(steps):
            frames[e, t], positions[e, t] = empty_floor(), place
            for i, (x, y) in enumerate(place.round().astype(int)):
                box = np.s_[y : y + SIDE, x : x + SIDE]
                frames[e, t][box] = COLOURS[i]
                segmentation[e, t][box] = i + 1
            velocity = 0.8 * velocity + rng.normal(0, 1.5, velocity.shape)
            moved = place + velocity
            velocity = np.where((moved < 0) | (moved > SIZE - SIDE), -velocity, velocity)
            place = np.where((t >= leave)[:, None], np.clip(moved, 0, SIZE - SIDE), place)
    return Scene(frames, segmentation, positions)
