"""Walks of a random policy: what is seen from plain and from scattered starts, and what their masks tell apart."""

from __future__ import annotations

import gymnasium
import numpy as np

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from perception.collection import wander


def make(name: str) -> gymnasium.Env:
    return gymnasium.make(f"vis_rpg/{name}-v0", disable_env_checker=True, obs="pixels")


def test_scattered_walks_begin_in_scenes_of_their_own_and_repeat_by_seed() -> None:
    plain = wander(make("BlockPush"), walks=4, steps=3, seed=1, truth=True)
    scattered, again = (wander(make("BlockPush"), walks=4, steps=3, seed=1, truth=True, scatter=True) for _ in range(2))
    assert plain.positions is not None and scattered.positions is not None and again.positions is not None
    assert np.ptp(plain.positions[:, 0], axis=0).max() == 0
    assert (np.ptp(scattered.positions[:, 0], axis=0) > 0.2).all()
    assert np.array_equal(scattered.frames, again.frames) and np.array_equal(scattered.positions, again.positions)
    assert (scattered.frames[:, 1] != scattered.frames[:, 0]).any(axis=(1, 2, 3)).all()  # random actions go on from there


def test_an_episode_that_ends_within_a_scattered_walk_begins_anew_scattered() -> None:
    begun = []

    class Ends(gymnasium.Wrapper):
        def reset(self, **kwargs):  # type: ignore[no-untyped-def]
            begun.append(kwargs.get("options"))
            return super().reset(**kwargs)

        def step(self, action):  # type: ignore[no-untyped-def]
            obs, reward, _, truncated, info = super().step(action)
            return obs, reward, True, truncated, info

    wander(Ends(make("Maze")), walks=1, steps=3, seed=0, scatter=True)
    assert begun == [{"scatter": True}] * 4


def test_truth_tells_objects_of_interest_from_what_else_moves() -> None:
    walks = wander(make("AdroitHammer"), walks=2, steps=3, seed=0, truth=True, scatter=True)
    assert walks.segmentation is not None and walks.positions is not None
    assert walks.objects == walks.positions.shape[2] == 3
    assert walks.segmentation.max() > walks.objects
    assert wander(make("Maze"), walks=1, steps=2, seed=0).segmentation is None
