"""Frames to discover objects in, from a wandering random policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

HOLD = 8
"""Most steps for which one random action is held: noise that changes at every step hardly leaves
its place."""


@dataclass
class Walks:
    """E walks of T frames; the truth is for metrics only."""

    frames: NDArray[np.uint8]
    """(E, T, H, W, 3)."""
    segmentation: NDArray[np.int64] | None = None
    """(E, T, H, W), 0 for what never changes, 1..N for the objects of interest, more for what else
    moves (`segmentation(whole=True)`)."""
    positions: NDArray[np.float64] | None = None
    """(E, T, N, 2 or 3), world units."""
    actions: NDArray[np.float32] | None = None
    """(E, T, A): what was done in each frame."""
    objects: int = 0
    """N, how many objects of interest there are."""
    scattered: bool = False
    """Whether walks began with what can move anywhere that it can be."""


def wander(
    env: gymnasium.Env[Any, Any],
    walks: int,
    steps: int,
    seed: int,
    truth: bool = False,
    scatter: bool = False,
) -> Walks:
    """`walks` walks of `steps` frames under random actions, each held for 1 to HOLD steps.

    env: observations (2, H, W, 3) uint8, actions in [-1, 1]. The episode's time limit is walked
    past, so that what can be moved gets far from its start; only termination resets. truth: also
    note `segmentation(whole=True)` and `info["objects"]`, for metrics. scatter: walks begin with
    everything anywhere that it can be, where the task has such starts.
    """
    assert env.action_space.shape is not None and env.observation_space.shape is not None
    rng = np.random.default_rng(seed)
    size = env.observation_space.shape[1:]
    frames = np.empty((walks, steps, *size), dtype=np.uint8)
    segmentation = np.zeros((walks, steps, *size[:2]), dtype=np.int64)
    actions = np.empty((walks, steps, *env.action_space.shape), dtype=np.float32)
    positions: list[NDArray[np.float64]] = []
    scattered = scatter and env.has_wrapper_attr("scatters") and env.get_wrapper_attr("scatters")
    options = {"scatter": True} if scattered else None
    for walk in range(walks):
        obs, info = env.reset(seed=int(rng.integers(2**31)), options=options)
        held = 0
        for t in range(steps):
            frames[walk, t] = obs[-1]
            if truth:
                segmentation[walk, t] = env.get_wrapper_attr("segmentation")(whole=True)
                positions.append(np.asarray(info["objects"], dtype=np.float64))
            if held == 0:
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                held = int(rng.integers(1, HOLD + 1))
            held -= 1
            actions[walk, t] = action
            obs, _, terminated, _, info = env.step(action)
            if terminated:
                obs, info = env.reset(options=options)
    if not truth:
        return Walks(frames, actions=actions, scattered=scattered)
    objects = positions[0].shape
    return Walks(
        frames,
        segmentation,
        np.stack(positions).reshape(walks, steps, *objects),
        actions,
        objects[0],
        scattered,
    )
