"""Trajectories of a random policy: what is seen from plain and from randomized resets, and what
their masks tell apart."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from perception.discovery.collect import collect_random_trajectories
from vis_rpg.envs.make import make_env


def make(name: str, **settings: Any) -> gymnasium.Env:
    return gymnasium.make(f"vis_rpg/{name}-v0", disable_env_checker=True, obs="pixels", **settings)


def test_randomized_trajectories_begin_in_scenes_of_their_own_and_repeat_by_seed() -> None:
    plain = collect_random_trajectories(make("BlockPush"), count=4, steps=3, seed=1, truth=True)
    randomized, again = (
        collect_random_trajectories(
            make("BlockPush"), count=4, steps=3, seed=1, truth=True, randomized_reset=True
        )
        for _ in range(2)
    )
    assert (
        plain.positions is not None
        and randomized.positions is not None
        and again.positions is not None
    )
    assert np.ptp(plain.positions[:, 0], axis=0).max() == 0
    assert (np.ptp(randomized.positions[:, 0], axis=0) > 0.2).all()
    assert np.array_equal(randomized.frames, again.frames) and np.array_equal(
        randomized.positions, again.positions
    )
    assert (
        (randomized.frames[:, 1] != randomized.frames[:, 0]).any(axis=(1, 2, 3)).all()
    )  # random actions go on from there


@pytest.mark.parametrize(
    ("blocks", "looks", "twins"), [(2, "twins", (1, 2)), (1, "twins", ()), (2, 0, ())]
)
def test_trajectories_tell_which_objects_look_alike(
    blocks: int, looks: int | str, twins: tuple[int, ...]
) -> None:
    env = make("BlockPush", blocks=blocks, looks=looks)
    assert collect_random_trajectories(env, 1, 1, seed=0, truth=True).twins == twins


def test_an_episode_that_ends_within_a_trajectory_begins_anew_randomized() -> None:
    begun = []

    class Ends(gymnasium.Wrapper):
        def reset(self, **kwargs):  # type: ignore[no-untyped-def]
            begun.append(kwargs.get("options"))
            return super().reset(**kwargs)

        def step(self, action):  # type: ignore[no-untyped-def]
            obs, reward, _, truncated, info = super().step(action)
            return obs, reward, True, truncated, info

    collect_random_trajectories(Ends(make("Maze")), count=1, steps=3, seed=0, randomized_reset=True)
    assert begun == [{"randomize": True}] * 4


def test_truth_tells_objects_of_interest_from_what_else_moves() -> None:
    trajectories = collect_random_trajectories(
        make("AdroitHammer"), count=2, steps=3, seed=0, truth=True, randomized_reset=True
    )
    assert trajectories.segmentation is not None and trajectories.positions is not None
    assert trajectories.objects == trajectories.positions.shape[2] == 3
    assert trajectories.segmentation.max() > trajectories.objects
    assert collect_random_trajectories(make("Maze"), count=1, steps=2, seed=0).segmentation is None


@pytest.mark.parametrize("own", [True, False])
def test_trajectories_tell_whether_resets_were_randomized(own: bool) -> None:
    options = []

    class Sees(gymnasium.Wrapper):
        def reset(self, **kwargs):  # type: ignore[no-untyped-def]
            options.append(kwargs.get("options"))
            return super().reset(**kwargs)

        def has_wrapper_attr(self, name: str) -> bool:
            return own and super().has_wrapper_attr(
                name
            )  # an environment of another library has no such starts

    trajectories = collect_random_trajectories(
        Sees(make("Maze")), count=1, steps=2, seed=0, randomized_reset=True
    )
    assert (trajectories.randomized, options) == (
        (True, [{"randomize": True}]) if own else (False, [None])
    )
    assert not collect_random_trajectories(make("Maze"), count=1, steps=2, seed=0).randomized


def test_tasks_in_which_nothing_can_be_randomized_say_so() -> None:
    assert make("BlockPush").get_wrapper_attr("randomizes")
    assert not make("HalfCheetah").get_wrapper_attr("randomizes")
    assert not make_env({"name": "gym", "id": "Pendulum-v1"}, "state").has_wrapper_attr(
        "randomizes"
    )
