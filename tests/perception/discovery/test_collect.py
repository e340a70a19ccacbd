"""Walks of a random policy: what is seen from plain and from scattered starts, and what their masks
tell apart."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from perception.discovery.collect import wander
from vis_rpg.envs.make import make_env


def make(name: str) -> gymnasium.Env:
    return gymnasium.make(f"vis_rpg/{name}-v0", disable_env_checker=True, obs="pixels")


def test_scattered_walks_begin_in_scenes_of_their_own_and_repeat_by_seed() -> None:
    plain = wander(make("BlockPush"), walks=4, steps=3, seed=1, truth=True)
    scattered, again = (
        wander(make("BlockPush"), walks=4, steps=3, seed=1, truth=True, scatter=True)
        for _ in range(2)
    )
    assert (
        plain.positions is not None
        and scattered.positions is not None
        and again.positions is not None
    )
    assert np.ptp(plain.positions[:, 0], axis=0).max() == 0
    assert (np.ptp(scattered.positions[:, 0], axis=0) > 0.2).all()
    assert np.array_equal(scattered.frames, again.frames) and np.array_equal(
        scattered.positions, again.positions
    )
    assert (
        (scattered.frames[:, 1] != scattered.frames[:, 0]).any(axis=(1, 2, 3)).all()
    )  # random actions go on from there


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


@pytest.mark.parametrize("own", [True, False])
def test_walks_tell_whether_they_began_scattered(own: bool) -> None:
    options = []

    class Sees(gymnasium.Wrapper):
        def reset(self, **kwargs):  # type: ignore[no-untyped-def]
            options.append(kwargs.get("options"))
            return super().reset(**kwargs)

        def has_wrapper_attr(self, name: str) -> bool:
            return own and super().has_wrapper_attr(
                name
            )  # an environment of another library has no such starts

    walks = wander(Sees(make("Maze")), walks=1, steps=2, seed=0, scatter=True)
    assert (walks.scattered, options) == ((True, [{"scatter": True}]) if own else (False, [None]))
    assert not wander(make("Maze"), walks=1, steps=2, seed=0).scattered


def test_tasks_in_which_nothing_can_be_scattered_say_so() -> None:
    assert make("BlockPush").get_wrapper_attr("scatters")
    assert not make("HalfCheetah").get_wrapper_attr("scatters")
    assert not make_env({"name": "gym", "id": "Pendulum-v1"}, "state").has_wrapper_attr("scatters")
