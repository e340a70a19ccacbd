"""The cabinet's robot, physics, rewards and pictures; a controller written by hand opens the doors
through the actions alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.panda import frames, towards
from vis_rpg.envs.make import task_of
from vis_rpg.envs.rendering import sapien
from vis_rpg.envs.tasks.cabinet import OPEN, Cabinet, CabinetDense, CabinetSparse, opened
from vis_rpg.errors import UserError

LEFT, RIGHT = 1, -1
# Waypoints of the fingertips, as for the left door: x, y, the hand's yaw, the most steps on the way
# there, velocity of the base in x and y. The hand hooks the handle from the side, draws the door
# ajar, goes round its edge and sweeps it open from within.
STILL_LEFT = [
    (0.03, 0.034, 0.037, 5, 0, 0),
    (-0.034, 0.25, 0.544, 8, 0, 0),
    (-0.185, 0.204, 0.866, 8, 0, 0),
    (-0.099, 0.045, 0.662, 2, 0, 0),
    (-0.02, 0.018, 0.916, 3, 0, 0),
    (0.07, 0.308, 1.042, 3, 0, 0),
    (-0.223, 0.27, 1.239, 5, 0, 0),
    (-0.227, 0.003, 1.298, 4, 0, 0),
]
STILL_RIGHT = [
    (-0.014, -0.001, 0.993, 3, 0, 0),
    (-0.017, 0.2, -0.243, 5, 0, 0),
    (-0.149, 0.028, 1.367, 8, 0, 0),
    (-0.083, -0.047, 2.193, 5, 0, 0),
    (-0.033, 0.089, 0.884, 3, 0, 0),
    (-0.325, 0.395, 1.841, 5, 0, 0),
]
MOVING_LEFT = [
    (-0.14, 0.03, -0.08, 5, 0, -0.7),
    (0.03, 0.14, 0.19, 2, 0.3, 0.2),
    (0.02, 0.15, 1.03, 8, 0.2, -0.1),
    (-0.08, 0.23, 1.22, 8, 0.5, 1),
    (-0.16, 0.1, 0.43, 2, -0.4, -1),
    (-0.02, 0.02, 1.23, 6, 0, 0),
    (0.07, 0.32, 1.81, 3, 0, -0.1),
    (-0.24, 0.33, 1.25, 8, 0, -0.6),
    (-0.35, 0.45, -0.36, 6, -0.1, 0.5),
]
MOVING_RIGHT = [
    (-0.18, 0, 0.01, 4, 0, 0.8),
    (0.03, 0.03, 0.23, 7, -0.5, 0),
    (-0.03, 0.2, 0.57, 8, 0.1, -0.3),
    (-0.1, 0.29, 1.18, 8, 0, 0),
    (-0.17, 0, 0.88, 2, 0, 0),
    (-0.04, 0.03, 0.89, 3, 0, 0.1),
    (0.14, 0.31, 1.48, 4, 0, 0),
    (-0.23, 0.22, 1.15, 5, 0.5, 0),
    (-0.3, 0.45, 1.5, 5, 0.4, 0.9),
    (-0.35, 0.45, 1.2, 6, 0, 0.2),
]


def sweep(
    env: Cabinet, side: int, waypoints: list[tuple[float, ...]], state: np.ndarray | None = None
) -> list[tuple[Any, ...]]:
    """Lead the fingertips along waypoints, mirrored for the right door; what each step returned, 60
    at most."""
    results: list[tuple[Any, ...]] = []
    base = env.action_space.shape[0] - 9
    if state is None:
        state, _ = env.reset(seed=0)
    for x, y, yaw, steps, *pace in waypoints:
        for _ in range(int(steps)):
            goal = np.array([x, side * y, 0.7])
            moving = np.array([pace[0], side * pace[1], 0.0])
            there = np.linalg.norm(state[:3] - goal) < 0.04
            if (there and not moving.any()) or (results and results[-1][3]):
                break
            joints = state[7 + base : 14 + base]
            foot = state[:3] - frames(joints)[-1, :3, 3]
            velocity = towards(joints, goal - foot - 0.06 * moving, side * yaw, 0.1) / 2.0
            action = np.zeros(env.action_space.shape)
            action[:base] = moving[:base]
            action[base : base + 7] = 0.0 if there else velocity / max(1.0, np.abs(velocity).max())
            action[base + 7 :] = -1.0
            results.append(env.step(action))
            state = results[-1][0]
    return results


def at(kind: type[Cabinet], left: float, right: float, **kwargs: Any) -> Cabinet:
    """An environment at rest whose doors are open by shares of their range."""
    env = kind(**kwargs)
    env.reset(seed=0)
    env.set_state({**env.get_state(), "doors": np.array([left, right]) * np.pi / 2})
    return env


def still(env: Cabinet) -> np.ndarray:
    return np.zeros(env.action_space.shape)


def test_the_arm_has_a_pandas_kinematics() -> None:
    env = CabinetSparse()
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(30):
        state, *_ = env.step(rng.uniform(-1, 1, 9))
        assert np.allclose(state[:3] - [-0.65, 0.0, 0.1], frames(state[7:14])[-1, :3, 3], atol=1e-4)


def test_an_action_is_the_velocity_of_each_joint() -> None:
    for env in (CabinetSparse(), CabinetDense()):
        first, _ = env.reset(seed=0)
        dof = env.action_space.shape[0]
        action = np.where(np.arange(dof) % 2, 0.2, -0.2)
        for _ in range(3):
            state, *_ = env.step(action)
        speed = np.array([0.6, 0.6, 0.6, *[2.0] * 7, 0.1, 0.1])[-dof:]
        assert np.allclose(state[7 : 7 + dof] - first[7 : 7 + dof], 0.3 * action * speed, atol=0.02)
        assert np.allclose(state[7 + dof :], action * speed, atol=0.02)


def test_the_controller_opens_both_doors_with_a_fixed_base() -> None:
    env = CabinetSparse()
    results = sweep(env, LEFT, STILL_LEFT)
    assert not any(info["success"] for *_, info in results)
    results += sweep(env, RIGHT, STILL_RIGHT, results[-1][0])
    state, reward, terminated, _, info = results[-1]
    assert len(results) <= 60
    assert (state[3:5] > 0.72 * np.pi / 2).all()
    assert info["success"]
    assert (reward, terminated) == (1.0, False)


def test_one_door_alone_is_no_success_with_a_fixed_base() -> None:
    results = sweep(CabinetSparse(), LEFT, [*STILL_LEFT[:-1], (-0.32, 0.35, 1.6, 6, 0, 0)])
    assert results[-1][0][3] > 0.72 * np.pi / 2
    assert not any(info["success"] or reward for _, reward, *_, info in results)


@pytest.mark.parametrize(
    ("side", "waypoints", "success"), [(LEFT, MOVING_LEFT, False), (RIGHT, MOVING_RIGHT, True)]
)
def test_with_a_moving_base_the_right_door_is_success_and_the_left_is_not(
    side: int, waypoints: list[tuple[float, ...]], success: bool
) -> None:
    results = sweep(CabinetDense(), side, waypoints)
    opened, other = results[-1][0][3:5] if side == LEFT else results[-1][0][[4, 3]]
    assert opened > 0.9 * np.pi / 2 > 0.5 > other
    assert any(info["success"] for *_, info in results) is success
    assert results[-1][1] > (2.0 if success else 1.0)


@pytest.mark.parametrize(
    ("left", "right", "success"),
    [(0.73, 0.73, True), (0.71, 0.9, False), (0.9, 0.71, False), (0.0, 1.0, False)],
)
def test_sparse_success_needs_both_doors_beyond_their_share(
    left: float, right: float, success: bool
) -> None:
    env = at(CabinetSparse, left, right)
    _, reward, terminated, _, info = env.step(still(env))
    assert info["success"] is success
    assert reward == float(success)
    assert not terminated


@pytest.mark.parametrize(
    ("left", "right"),
    [(0.0, 0.0), (0.45, 0.0), (0.91, 0.3), (0.3, 0.91), (0.95, 0.95), (0.89, 0.89)],
)
def test_the_dense_reward_is_as_computed_by_hand(left: float, right: float) -> None:
    env = at(CabinetDense, left, right)
    state, reward, _, _, info = env.step(still(env))
    handles = []
    for side, share in (
        (1, left),
        (-1, right),
    ):  # a hinge at (0.08, +-0.42), the handle 0.08 before the door and 0.32 from the hinge
        angle = share * np.pi / 2
        x = 0.08 - 0.08 * np.cos(angle) - 0.32 * np.sin(angle)
        y = 0.42 + 0.08 * np.sin(angle) - 0.32 * np.cos(angle)
        handles.append([x, side * y, 0.7])
    distance = np.linalg.norm(np.array(handles) - state[:3], axis=1).min()
    expected = (
        min(left / 0.9, 1) + min(right / 0.9, 1) + 2 * (right > 0.9) + (left > 0.9) - 2 * distance
    )
    assert reward == pytest.approx(expected, abs=1e-3)
    assert info["success"] is (right > 0.9)
    assert np.allclose(info["objects"], [state[:3], *handles], atol=1e-3)


def test_the_moving_robot_starts_nearer_the_left_door_and_the_fixed_one_between_them() -> None:
    for env, nearer in ((CabinetDense(), True), (CabinetSparse(), False)):
        gripper, left, right = env.reset(seed=0)[1]["objects"]
        gap = np.linalg.norm(gripper - right) - np.linalg.norm(gripper - left)
        assert (gap > 0.1) if nearer else abs(gap) < 1e-5


@pytest.mark.parametrize("kind", [CabinetSparse, CabinetDense])
def test_what_is_encoded_is_the_end_effector_and_the_doors(kind: type[Cabinet]) -> None:
    env = at(kind, 0.25, 1.0)
    state, _, _, _, info = env.step(still(env))
    located = torch.vmap(env.task.object_coordinates)(torch.as_tensor(state)[None])[0]
    assert located.shape == (5, 1)
    assert np.allclose(located[:, 0], [*(info["objects"][0] - [0, 0, 0.7]), 0.25, 1.0], atol=1e-3)


def test_contacts_continue_bit_for_bit_after_a_restore() -> None:
    env, other = CabinetSparse(), CabinetSparse()
    sweep(env, LEFT, STILL_LEFT[:3])  # the hand is drawing the handle
    saved = env.get_state()
    other.reset(seed=5)
    other.set_state(saved)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 9)
        assert np.array_equal(env.step(action)[0], other.step(action)[0])


def test_several_in_a_fresh_process_without_a_vulkan_device() -> None:
    script = """
import os
os.environ["VK_DRIVER_FILES"] = os.environ["VK_ICD_FILENAMES"] = "/nowhere.json"
from vis_rpg.envs.make import make_env
envs = [make_env({"name": "cabinet_dense"}, "state", seed) for seed in range(5)]
print({env.step([0.1] * 12)[0].shape for env in envs})
try:
    make_env({"name": "cabinet_sparse"}, "pixels", 0)
except Exception as error:
    print(type(error).__name__, error)
[env.close() for env in envs]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    shapes, error = done.stdout.splitlines()
    assert shapes == "{(31,)}", done.stderr
    assert error.startswith(
        "UserError obs=pixels for vis_rpg/CabinetSparse-v0 needs a Vulkan device: "
    )
    assert done.returncode == 0


@pytest.mark.vulkan
def test_five_environments_share_one_render_scene_and_see_their_own_state() -> None:
    envs = [
        kind(obs="pixels")
        for kind in (CabinetSparse, CabinetDense, CabinetSparse, CabinetDense, CabinetSparse)
    ]
    first = [env.reset(seed=0)[0] for env in envs]
    assert len(sapien.render_scenes) == 1
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    envs[0].close()
    assert np.array_equal(envs[4].render(), envs[2].render())


@pytest.mark.vulkan
def test_open_doors_and_the_gripper_stay_in_sight() -> None:
    env = at(CabinetSparse, 1.0, 1.0, obs="pixels")
    masks = env.segmentation()
    assert [(masks == index).sum() >= 30 for index in (1, 2, 3)] == [True] * 3
    columns = [np.nonzero(masks == index)[1].mean() for index in (1, 2, 3)]
    assert columns[1] < columns[0] < columns[2]


def test_without_sapien_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sapien", None)
    with pytest.raises(
        UserError, match=r"^vis_rpg/CabinetDense-v0 needs SAPIEN: pip install 'vis-rpg\[robotics\]'"
    ):
        CabinetDense()


def test_how_far_doors_are_open_is_read_from_their_handles() -> None:
    env = CabinetSparse()
    env.reset(seed=0)
    milestones = task_of(env).milestones
    for shares in ((0.0, 0.0), (0.2, 0.75), (1.0, 0.05)):
        env._cabinet.set_qpos(np.array(shares, np.float32) * OPEN)
        at = env._objects()
        assert opened(at) == pytest.approx(shares, abs=1e-5)
        met = [bool(holds(at)) for holds in milestones.values()]
        assert met == [share > limit for share in shares for limit in (0.1, 0.72)]
