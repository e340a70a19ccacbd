"""Adroit: success is the door open and the nail driven in, and what is placed anew at every start
is saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from vis_rpg.envs.make import task_of
from vis_rpg.envs.tasks.adroit import AdroitDoor, AdroitHammer
from vis_rpg.errors import UserError


@pytest.mark.parametrize(
    ("make", "joint", "far", "short"),
    [(AdroitDoor, "door_hinge", 1.5, 1.2), (AdroitHammer, "nail_dir", 0.09, 0.05)],
)
def test_success_is_the_door_open_or_the_nail_driven_in(
    make: type, joint: str, far: float, short: float
) -> None:
    env = make()
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape)
    for position, expected in ((0.0, 0.0), (short, 0.0), (far, 1.0), (short, 0.0)):
        env.data.joint(joint).qpos[:] = position
        env.data.qvel[:] = 0.0
        _, reward, terminated, _, info = env.step(still)
        assert reward == expected
        assert info["success"] == bool(expected)
        assert not terminated


@pytest.mark.parametrize(
    ("make", "joint", "between"),
    [(AdroitDoor, "door_hinge", 1.2), (AdroitHammer, "nail_dir", 0.075)],
)
def test_success_by_the_papers_runs_is_easier_and_both_are_told(
    make: type, joint: str, between: float
) -> None:
    for success in ("library", "paper"):
        env = make(success=success)
        env.reset(seed=0)
        env.data.joint(joint).qpos[:] = between
        env.data.qvel[:] = 0.0
        _, reward, _, _, info = env.step(np.zeros(env.action_space.shape))
        assert (info["success_library"], info["success_paper"]) == (False, True)
        assert info["success"] is (success == "paper") and reward == float(success == "paper")
    with pytest.raises(
        UserError, match="task.success=papers is not one of library, paper .nearest: paper"
    ):
        make(success="papers")


def test_the_bonus_sees_the_hammers_head_swing_about_its_handle() -> None:
    env = AdroitHammer()
    env.reset(seed=0)

    def located() -> tuple[np.ndarray, np.ndarray]:
        mujoco.mj_forward(env.model, env.data)
        seen = task_of(env).object_coordinates(torch.as_tensor(env._state()))
        return env._objects()[1], seen[1:4, 0].numpy()

    before, handle = located(), env.data.body("Object").xpos.copy()
    env.data.joint("OBJRy").qpos[:] += 0.5
    for now, then in zip(located(), before, strict=True):
        assert np.linalg.norm(now - then) == pytest.approx(0.1, abs=0.005)
    assert np.array_equal(env.data.body("Object").xpos, handle)


@pytest.mark.parametrize(
    ("make", "actions", "length"), [(AdroitDoor, 28, 100), (AdroitHammer, 26, 125)]
)
def test_actions_and_length_are_the_papers(make: type, actions: int, length: int) -> None:
    env = make()
    assert env.action_space.shape == (actions,)
    assert env.task.episode_length == length
    assert env.model.opt.timestep * env._env.frame_skip * 2 == pytest.approx(0.02)


@pytest.mark.parametrize("make", [AdroitDoor, AdroitHammer])
def test_a_decision_is_two_steps_of_the_library(make: type) -> None:
    env, other = make(), make()
    env.reset(seed=0)
    other.reset(seed=0)
    library = other._env
    for action in np.random.default_rng(0).uniform(-1, 1, (30, *env.action_space.shape)):
        env.step(action)
        library.step(action)
        assert np.array_equal(env._obs, library.step(action)[0])


def visited(make: type, joint: str, further: float) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Coordinates (7,), true positions and the joint's, in scenes that stand apart."""
    env = make()
    for seed in range(3):
        env.reset(seed=seed)
        env.data.joint(joint).qpos[:] = further * seed
        for action in np.random.default_rng(0).uniform(-1, 1, (20, *env.action_space.shape)):
            state, _, _, _, info = env.step(action)
            located = task_of(env).object_coordinates(torch.as_tensor(state)[None])[0, :, 0]
            assert located.abs().max() <= 1
            yield located.numpy(), info["objects"], env.data.joint(joint).qpos


def test_coordinates_of_the_hammer_are_the_nails_depth_and_places_seen_from_each_other() -> None:
    for located, (palm, head, nail), depth in visited(AdroitHammer, "nail_dir", 0.03):
        assert located[0] / 10 == pytest.approx(depth[0], rel=0.1, abs=0.001)  # nearly along x
        assert np.allclose(located[1:], np.concatenate([head - nail, palm - head]), atol=1e-6)


def test_coordinates_of_the_door_are_its_angle_the_handle_and_the_palm_seen_from_it() -> None:
    for located, (palm, handle, _), angle in visited(AdroitDoor, "door_hinge", 0.3):
        assert np.allclose(located, np.concatenate([angle, handle, palm - handle]), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "geoms"),
    [
        (AdroitDoor, {"latch": "latch", "door": "door"}),
        (AdroitHammer, {"hammer": "Object", "nail": "nail"}),
    ],
)
def test_an_object_is_at_the_geoms_that_it_is_made_of(make: type, geoms: dict[str, str]) -> None:
    env = make()
    _, info = env.reset(seed=0)
    for name, body in geoms.items():
        index = env.task.object_names.index(name)
        own = np.flatnonzero(env.labels[:-1] == index + 1)
        assert {env.model.body(env.model.geom_bodyid[geom]).name for geom in own} == {body}
        assert np.linalg.norm(env.data.geom_xpos[own] - info["objects"][index], axis=1).min() < 0.11


@pytest.mark.parametrize(("make", "share"), [(AdroitDoor, 50), (AdroitHammer, 20)])
def test_all_objects_are_seen_at_every_start(make: type, share: int) -> None:
    env = make(obs="pixels")
    for seed in range(6):
        env.reset(seed=seed)
        mask = env.segmentation()
        assert all((mask == index).sum() >= share for index in (1, 2, 3))


@pytest.mark.parametrize("make", [AdroitDoor, AdroitHammer])
def test_the_saved_state_holds_where_the_door_or_the_board_was_placed(make: type) -> None:
    env, other = make(obs="pixels"), make(obs="pixels")
    env.reset(seed=1)
    other.reset(seed=2)
    other.set_state(env.get_state())
    assert np.array_equal(env.segmentation(), other.segmentation())
    assert np.array_equal(env.render(), other.render())
    mujoco.mj_forward(env.model, env.data)
    assert np.array_equal(env._objects(), other._objects())


def test_milestones_of_the_hammer_are_its_lift_and_a_nail_that_moves() -> None:
    env = AdroitHammer()
    env.reset(seed=0)
    lift, nail = (env.data.joint(name) for name in ("OBJTy", "nail_dir"))
    assert list(task_of(env).milestones) == ["hammer_lifted", "nail_moved"]
    for joint, value, expected in (
        (nail, 0.0, [False, False]),
        (nail, 0.02, [False, True]),
        (lift, 0.1, [True, True]),
    ):
        joint.qpos[:] = value
        mujoco.mj_forward(env.model, env.data)
        env._obs = env._env._get_obs()
        at = env._objects()
        assert [bool(holds(at)) for holds in task_of(env).milestones.values()] == expected
