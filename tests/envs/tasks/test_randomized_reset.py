"""Scattered starts and whole masks: everything is seen in many places, and whatever changes in a
picture has a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from vis_rpg.envs.tasks.base import BaseTask

PUSH, MAZE, ANT, BACK = "BlockPush", "Maze", "AntPush", "CheetahBack"
BASKETBALL, STICK, DOOR, HAMMER, CABINETS = (
    "MetaWorldBasketball",
    "MetaWorldStickPull",
    "AdroitDoor",
    "AdroitHammer",
    ["CabinetSparse", "CabinetDense"],
)
MOVED = [PUSH, MAZE, ANT, BACK, BASKETBALL, STICK, DOOR, HAMMER, *CABINETS]
"""Tasks whose starts can be scattered."""
ROBOTS = [
    BASKETBALL,
    STICK,
    DOOR,
    HAMMER,
    *(pytest.param(id, marks=pytest.mark.vulkan) for id in CABINETS),
]
"""Tasks whose robot is more than an object of interest."""
SEEN = [PUSH, MAZE, ANT, *ROBOTS]
RANDOM = {"randomize": True}


def make(name: str, obs: str = "state") -> Any:
    env = gymnasium.make(f"vis_rpg/{name}-v0", disable_env_checker=True, obs=obs).unwrapped
    assert isinstance(env, BaseTask)
    return env


def objects(env: Any) -> np.ndarray:
    """(N, 2 or 3) true positions at a scattered start."""
    return env.reset(options=RANDOM)[1]["objects"]


@pytest.mark.parametrize("name", MOVED)
def test_a_plain_start_is_the_same_after_a_scattered_one(name: str) -> None:
    fresh, used = make(name), make(name)
    used.reset(seed=1, options=RANDOM)
    used.step(np.ones(used.action_space.shape))
    assert np.array_equal(fresh.reset(seed=5)[0], used.reset(seed=5)[0])
    action = np.full(fresh.action_space.shape, 0.3)
    assert np.array_equal(fresh.step(action)[0], used.step(action)[0])
    assert np.array_equal(fresh.reset()[0], used.reset()[0])


@pytest.mark.parametrize("name", MOVED)
def test_a_scattered_start_follows_the_seed_and_is_resumed_exactly(name: str) -> None:
    env, other = make(name), make(name)
    first = env.reset(seed=2, options=RANDOM)[0]
    assert np.array_equal(first, other.reset(seed=2, options=RANDOM)[0])
    assert not np.array_equal(first, other.reset(options=RANDOM)[0])
    actions = np.random.default_rng(0).uniform(-1, 1, (8, *env.action_space.shape))
    env.step(actions[0])
    other.set_state(env.get_state())
    for action in actions[1:]:
        obs = env.step(action)[0]
        assert np.array_equal(obs, other.step(action)[0])
        assert env.observation_space.contains(obs) and np.isfinite(obs).all()
    assert np.array_equal(env.reset(options=RANDOM)[0], other.reset(options=RANDOM)[0])


@pytest.mark.parametrize(
    ("name", "measure", "ranges"),
    [
        (PUSH, lambda env: objects(env).ravel(), [3.6] * 6),
        (MAZE, lambda env: objects(env).ravel(), [10.0] * 2),
        (ANT, lambda env: objects(env).ravel(), [24.0, 24.0, 16.0, 16.0]),
        (BACK, lambda env: objects(env)[:, 0], [20.0]),
        (BASKETBALL, lambda env: objects(env)[:, :2].ravel(), [0.6, 0.6, 0.8, 0.6]),
        (STICK, lambda env: objects(env)[:, :2].ravel(), [0.6, 0.6, 0.8, 0.6, 0.4, 0.4]),
        (
            DOOR,
            lambda env: (env.reset(options=RANDOM), env.data.qpos[-2:].copy())[1],
            [1.57, 1.8],
        ),
        (
            HAMMER,
            lambda env: (objects(env)[1], env.data.qpos[-2] / 5, env.data.joint("nail_dir").qpos),
            [0.6, 0.6, 0.2, 1.2, 0.1],
        ),
        *((name, lambda env: (objects(env), env._shares())[1], [1.0, 1.0]) for name in CABINETS),
        *((name, lambda env: objects(env)[0], [0.8, 1.2, 0.8]) for name in CABINETS),
    ],
)
def test_everything_is_in_many_places(
    name: str, measure: Callable[[Any], Any], ranges: list[float]
) -> None:
    env = make(name)
    env.reset(seed=0)
    drawn = np.array([np.hstack(measure(env)) for _ in range(20)])
    assert (np.ptp(drawn, axis=0) > np.array(ranges) / 2).all()


@pytest.mark.parametrize("name", [PUSH, ANT, BASKETBALL, STICK, DOOR, HAMMER])
def test_nothing_starts_inside_another_thing(name: str) -> None:
    env = make(name)
    for seed in range(10):
        env.reset(seed=seed, options=RANDOM)
        contact = env.data.contact
        assert not (contact.dist < -0.01).any()
        assert (
            env.data.geom_xpos[env.labels[:-1] > 0][:, 2] > -0.01
        ).all()  # nor in the floor or the table


@pytest.mark.parametrize("name", CABINETS)
def test_no_arm_starts_inside_the_cabinet(name: str) -> None:
    env = make(name)
    for seed in range(5):
        env.reset(seed=seed, options=RANDOM)
        before = env._state()
        env.step(
            np.zeros(env.action_space.shape)
        )  # what is inside another thing is thrown out of it
        assert np.abs(env._state() - before).max() < 0.1


@pytest.mark.parametrize("name", SEEN)
def test_objects_are_seen_in_nearly_all_scattered_starts(name: str) -> None:
    env = make(name, "pixels")
    pixels = []
    for seed in range(12):
        env.reset(seed=seed, options=RANDOM)
        pixels.append(
            np.bincount(env.segmentation().ravel(), minlength=1 + len(env.task.object_names))
        )
    assert ((np.array(pixels) >= 4).mean(0) >= 0.75).all()


@pytest.mark.parametrize(
    "name", [name for name in SEEN if name != MAZE]
)  # whose disc is smoothed at its rim
def test_whatever_changes_in_a_picture_has_a_label(name: str) -> None:
    env = make(name, "pixels")
    count = len(env.task.object_names)
    frames, masks = [], []
    for seed in range(6):
        frames.append(env.reset(seed=seed, options=RANDOM)[0][-1].astype(int))
        whole = env.segmentation(whole=True)
        assert np.array_equal(np.where(whole > count, 0, whole), env.segmentation())
        masks.append(whole > 0)
    for i, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        for other, others_mask in zip(frames[:i], masks[:i], strict=True):
            changed = np.abs(frame - other).max(-1) > 40
            assert (mask | others_mask)[changed].mean() > 0.97
            assert changed[mask ^ others_mask].mean() > 0.6  # and nearly nothing else has one


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (BASKETBALL, 4),
        (STICK, 5),
        (DOOR, 5),
        (HAMMER, 5),
        *(pytest.param(id, 4, marks=pytest.mark.vulkan) for id in CABINETS),
    ],
)
def test_the_rest_of_the_robot_and_each_other_moving_thing_has_a_label_of_its_own(
    name: str, labels: int
) -> None:
    env = make(name, "pixels")
    shown = []
    for seed in range(6):
        env.reset(seed=seed, options=RANDOM)
        shown.append(np.bincount(env.segmentation(whole=True).ravel(), minlength=1 + labels))
    assert {row.size for row in shown} == {1 + labels}
    assert (np.median(shown, axis=0) >= 3).all()


def test_a_goal_marker_that_changes_place_is_where_it_is_drawn() -> None:
    env = make(STICK, "pixels")
    for seed in range(3):
        frame = env.reset(seed=seed)[0][-1].astype(int)
        rows, columns = np.nonzero(env.segmentation(whole=True) == 5)
        assert len(rows) >= 4
        assert (frame[rows, columns] @ [-1, 2, -1] > 150).mean() > 0.7  # bright green
