"""Frames to discover objects in, from a random policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

ACTION_REPEAT = 8
"""Most steps for which a random action is repeated: noise that changes at every step hardly leaves
its place."""


@dataclass
class Trajectories:
    """E trajectories of T frames; the truth is for metrics only."""

    frames: NDArray[np.uint8]
    """(E, T, H, W, 3)."""
    randomized: bool
    """Whether episodes began with a randomized reset."""
    segmentation: NDArray[np.int64] | None = None
    """(E, T, H, W): 0 for what never changes, 1..N for the objects of interest, more for what else
    moves (`segmentation(whole=True)`)."""
    positions: NDArray[np.float64] | None = None
    """(E, T, N, 2 or 3), world units."""
    objects: int = 0
    """N, number of objects of interest."""
    twins: tuple[int, ...] = ()
    """Which of them look alike."""


def collect_random_trajectories(
    env: gymnasium.Env[Any, Any],
    count: int,
    steps: int,
    seed: int,
    truth: bool = False,
    randomized_reset: bool = False,
) -> Trajectories:
    """Collect frames under random actions, each repeated for 1 to ACTION_REPEAT steps.

    Time limits are ignored, so that objects get far from their start; only termination resets.

    Args:
        env: Observations (2, H, W, 3) uint8, actions in [-1, 1].
        count: E.
        steps: T.
        seed: Of resets and actions.
        truth: Whether to record `segmentation(whole=True)` and `info["objects"]`.
        randomized_reset: Whether episodes begin with objects anywhere, if the task has such starts.

    Returns:
        The trajectories.
    """
    assert env.action_space.shape is not None and env.observation_space.shape is not None
    rng = np.random.default_rng(seed)
    size = env.observation_space.shape[1:]
    frames = np.empty((count, steps, *size), dtype=np.uint8)
    segmentation = np.zeros((count, steps, *size[:2]), dtype=np.int64)
    positions: list[NDArray[np.float64]] = []
    randomized = (
        randomized_reset
        and env.has_wrapper_attr("randomizes")
        and env.get_wrapper_attr("randomizes")
    )
    options = {"randomize": True} if randomized else None
    for episode in range(count):
        obs, info = env.reset(seed=int(rng.integers(2**31)), options=options)
        repeats = 0
        for t in range(steps):
            frames[episode, t] = obs[-1]
            if truth:
                segmentation[episode, t] = env.get_wrapper_attr("segmentation")(whole=True)
                positions.append(np.asarray(info["objects"], dtype=np.float64))
            if repeats == 0:
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                repeats = int(rng.integers(1, ACTION_REPEAT + 1))
            repeats -= 1
            obs, _, terminated, _, info = env.step(action)
            if terminated:
                obs, info = env.reset(options=options)
    if not truth:
        return Trajectories(frames, randomized)
    shape = positions[0].shape
    stacked = np.stack(positions).reshape(count, steps, *shape)
    twins = env.get_wrapper_attr("twins") if env.has_wrapper_attr("twins") else ()
    return Trajectories(frames, randomized, segmentation, stacked, shape[0], twins)
