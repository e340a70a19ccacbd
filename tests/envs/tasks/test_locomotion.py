"""The cheetahs and the humanoid are Gymnasium's own; the cheetah that must go back succeeds at its
line and is seen where it is."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from vis_rpg.checks import check
from vis_rpg.compose import compose
from vis_rpg.envs.make import task_of
from vis_rpg.envs.tasks.locomotion import CheetahBack, Humanoid


@pytest.mark.parametrize(
    ("ours", "theirs", "strength", "kwargs"),
    [
        ("HalfCheetah", "HalfCheetah-v5", 1.0, {}),
        ("Humanoid", "Humanoid-v5", 0.4, {}),
        (
            "CheetahBack",
            "HalfCheetah-v5",
            1.0,
            {"exclude_current_positions_from_observation": False},
        ),
    ],
)
def test_states_rewards_and_ends_equal_those_of_gymnasium(
    ours: str, theirs: str, strength: float, kwargs: dict[str, Any]
) -> None:
    env = gymnasium.make(f"vis_rpg/{ours}-v0", disable_env_checker=True)
    other = gymnasium.make(theirs, disable_env_checker=True, **kwargs)
    rng = np.random.default_rng(0)
    mine, expected = env.reset(seed=5)[0], other.reset(seed=5)[0]
    for _ in range(200):
        assert np.array_equal(mine, expected.astype(np.float32))
        action = rng.uniform(-1, 1, env.action_space.shape)
        mine, reward, terminated, _, info = env.step(action)
        expected, their_reward, ended, *_ = other.step(strength * action)
        assert reward == (float(info["success"]) if ours == "CheetahBack" else their_reward)
        assert terminated == ended
        if ended:
            mine, expected = env.reset()[0], other.reset()[0]


@pytest.mark.parametrize(
    ("x", "expected"), [(-5.01, True), (-4.99, False), (0.0, False), (5.01, False), (-40.0, True)]
)
def test_success_is_five_metres_behind_the_start(x: float, expected: bool) -> None:
    env = CheetahBack()
    env.reset(seed=1)
    start = env.data.qpos[0]
    assert start != 0
    env.data.qpos[0] = start + x
    env.data.qvel[:] = 0
    saved = env.get_state()
    other = CheetahBack()
    other.reset(seed=2)
    other.set_state(saved)  # its start is part of what is saved
    for again in (env, other):
        _, reward, terminated, _, info = again.step(np.zeros(6))
        assert abs(info["objects"][0, 0] - start - x) < 0.01
        assert info["success"] is expected
        assert reward == float(expected)
        assert not terminated


def test_locate_is_x_in_units_of_the_way_back() -> None:
    env = CheetahBack()
    env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)):
        state, *_, info = env.step(action)
        located = env.task.object_coordinates(torch.as_tensor(state)[None, None])
        assert located.shape == (1, 1, 1, 1)
        assert located.item() * 5 == pytest.approx(info["objects"][0, 0], abs=1e-5)


@pytest.mark.parametrize("x", [-9.0, -5.0, -0.3, 4.2, 9.0])
def test_the_cheetah_is_seen_where_it_is(x: float) -> None:
    env = CheetahBack(obs="pixels")
    env.reset(seed=0)
    env.data.qpos[0] = x
    obs, *_, info = env.step(np.zeros(6))
    mask = env.segmentation() == 1
    rows, columns = np.nonzero(mask)
    assert mask.sum() >= 50
    assert (columns.mean() + 0.5) * 20 / 64 - 10 == pytest.approx(info["objects"][0, 0], abs=0.4)
    assert np.ptp(rows) > 25  # a metre high, and so are its legs to be seen
    most = (
        obs[1][..., 0].astype(int) - obs[1][..., 2] > 115
    )  # half of a pixel in the cheetah's colour
    assert (most == mask).mean() > 0.995


def test_beyond_ten_metres_the_cheetah_is_not_seen() -> None:
    env = CheetahBack(obs="pixels")
    env.reset(seed=0)
    env.data.qpos[0] = 12.0
    env.step(np.zeros(6))
    assert not env.segmentation().any()


def test_a_small_move_back_changes_the_picture() -> None:
    env = CheetahBack(obs="pixels")
    env.reset(seed=0)
    frames = []
    for x in (0.0, -0.05):
        env.data.qpos[0] = x
        mujoco.mj_forward(env.model, env.data)
        frames.append(env._frame(64).astype(int))
    assert np.abs(frames[0] - frames[1]).max() > 30


def test_the_humanoid_ends_when_it_falls() -> None:
    env = Humanoid()
    env.reset(seed=0)
    ends = [env.step(np.zeros(17))[2] for _ in range(100)]
    assert ends[0] is False
    first = ends.index(True)
    assert all(ends[first:])
    env.reset(seed=0)
    env.data.qpos[2] = 2.1
    assert env.step(np.zeros(17))[2]


def test_the_humanoid_continues_exactly_at_once() -> None:
    """Its reward reads where masses were a substep ago, its state forces of the last one: both are
    part of what is saved."""
    env, other = Humanoid(), Humanoid()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        env.step(rng.uniform(-1, 1, 17))
    other.set_state(env.get_state())
    assert np.array_equal(env._state(), other._state())
    action = rng.uniform(-1, 1, 17)
    assert env.step(action)[1] == other.step(action)[1]


@pytest.mark.parametrize(
    ("id", "names"),
    [("HalfCheetah", ("cheetah",)), ("Humanoid", ("humanoid",)), ("CheetahBack", ("cheetah",))],
)
def test_the_robot_is_the_one_object_and_its_torso_where_it_is(
    id: str, names: tuple[str, ...]
) -> None:
    env = gymnasium.make(f"vis_rpg/{id}-v0", disable_env_checker=True)
    _, info = env.reset(seed=0)
    assert task_of(env).object_names == names
    assert np.allclose(info["objects"], env.unwrapped.data.body("torso").xpos, atol=1e-9)


@pytest.mark.parametrize("task", ["ant_push", "half_cheetah", "humanoid"])
def test_dense_tasks_have_no_bonus_and_a_learned_prior_unless_told_otherwise(task: str) -> None:
    config = compose([f"task={task}", "device=cpu"])
    check(config)
    assert (config.exploration.name, config.agent.latent.prior) == ("none", "learned")
    assert config.agent.latent.entropy >= config.agent.beta  # else pi(z|s) gives up on z
    assert config.task.terminates == (task == "humanoid")
    told = compose(
        [
            f"task={task}",
            "exploration=object_rnd",
            "agent.latent.prior=fixed",
            "agent=mbsac",
            "device=cpu",
        ]
    )
    assert (told.exploration.name, told.agent.latent.prior, told.agent.name) == (
        "object_rnd",
        "fixed",
        "mbsac",
    )


def test_the_sparse_task_keeps_its_bonus_and_the_fixed_prior() -> None:
    config = compose(["task=cheetah_back", "device=cpu"])
    assert (config.exploration.name, config.agent.latent.prior) == ("object_rnd", "fixed")
