"""AntPush's layout, by a point that pushes in the ant's place; its rewards, success, saved state
and pictures."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from vis_rpg.envs.tasks.ant_push import TASK, AntPush
from vis_rpg.resources import ASSETS

GOAL = np.array([0.0, 19.0])


class Point:
    """A ball of 1 kg in the rooms of AntPush, in place of the ant: it is driven at up to 2 units/s
    with up to 8 N, what the feet of an ant of that weight can hold on to."""

    def __init__(self) -> None:
        spec = mujoco.MjSpec.from_file(str(ASSETS / "ant_push.xml"))
        for actuator in list(spec.actuators):
            spec.delete(actuator)
        spec.delete(spec.body("torso"))
        ball = spec.worldbody.add_body(name="point", pos=[0, 0, 0.5])
        ball.add_geom(size=[0.4, 0, 0], mass=1, contype=1, conaffinity=0)
        for name, axis in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
            ball.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis)
            motor = spec.add_actuator(
                target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcelimited=1, forcerange=[-8, 8]
            )
            motor.set_to_velocity(kv=20)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)

    @property
    def block(self) -> np.ndarray:
        return self.data.qpos[:2] + (0.0, 8.0)

    def walk(self, *waypoints: tuple[float, float]) -> np.ndarray:
        """Head for one waypoint after the other, as far as that goes; where it ends."""
        for target in waypoints:
            for _ in range(300):
                way = np.array(target) - self.data.qpos[2:]
                if np.linalg.norm(way) < 0.2:
                    break
                self.data.ctrl[:] = 2 * way / max(1.0, float(np.linalg.norm(way)))
                mujoco.mj_step(self.model, self.data, 5)
        return self.data.qpos[2:].copy()


def at(
    torso: tuple[float, float], block: tuple[float, float] = (0.0, 8.0), **kwargs: Any
) -> AntPush:
    """An environment with torso and block where they are said to be, and the ant otherwise at its
    start."""
    env = AntPush(**kwargs)
    env.reset(seed=0)
    env.data.qpos[:2] = torso
    env.data.qpos[15:] = np.array(block) - (0.0, 8.0)
    mujoco.mj_forward(env.model, env.data)
    return env


def test_on_the_left_and_pushed_to_the_right_the_block_lets_one_into_the_upper_room() -> None:
    point = Point()
    end = point.walk((-8, 0), (-8, 8), (3.7, 8), (2, 16), (0, 19))
    assert np.linalg.norm(end - GOAL) < 0.5
    assert point.block == pytest.approx((8, 8), abs=0.15)


def test_pushed_straight_ahead_the_block_shuts_the_upper_room_and_stays_there() -> None:
    point = Point()
    end = point.walk((0, 19))
    assert point.block == pytest.approx((0, 16), abs=0.1)
    assert np.linalg.norm(end - GOAL) > 7
    end = point.walk((0, 8), (-8, 8), (-3, 12), (0, 19), (8, 8), (3, 12), (0, 19))
    assert np.linalg.norm(end - GOAL) > 7
    assert point.block == pytest.approx((0, 16), abs=0.1)


def test_pushed_a_little_ahead_it_can_no_more_be_pushed_aside() -> None:
    point = Point()
    point.walk((0, 5), (0, 3), (-8, 0), (-8, 8))
    assert point.block[1] > 9
    end = point.walk((3.7, 8), (0, 19))
    assert np.abs(point.block[0]) < 0.1
    assert np.linalg.norm(end - GOAL) > 7


def test_there_is_no_way_round_on_the_right_nor_past_the_block() -> None:
    assert Point().walk((8, 0), (8, 8))[0] < 4
    point = Point()
    point.walk((-8, 0), (-8, 16))
    assert point.data.qpos[3] < 12
    assert point.block == pytest.approx((0, 8), abs=0.01)


def test_the_block_stops_where_it_is_left() -> None:
    point = Point()
    point.walk((0, 5), (0, 4))
    left = point.block
    mujoco.mj_step(point.model, point.data, 200)
    assert point.block == pytest.approx(left, abs=0.01)


@pytest.mark.parametrize(
    ("torso", "distance"),
    [
        ((0.0, 0.0), 19.0),
        ((-8.0, 8.0), np.sqrt(185)),
        ((3.0, 15.0), 5.0),
        ((-8.0, 0.0), np.sqrt(425)),
    ],
)
def test_the_reward_is_a_tenth_of_the_distance_to_the_goal(
    torso: tuple[float, float], distance: float
) -> None:
    env = at(torso, (8.0, 8.0))
    state, reward, terminated, truncated, info = env.step(np.zeros(8))
    there = info["objects"][0]
    assert reward == pytest.approx(-0.1 * np.hypot(there[0] - 0, there[1] - 19), abs=1e-9)
    assert reward == pytest.approx(
        -0.1 * distance, abs=0.02
    )  # it has hardly moved in a tenth of a second
    assert np.allclose(state[:2], there, atol=1e-6)
    assert not terminated
    assert not truncated


@pytest.mark.parametrize(
    ("away", "expected"), [(4.9, True), (5.1, False), (19.0, False), (0.0, True)]
)
def test_success_is_the_torso_within_five_of_the_goal(away: float, expected: bool) -> None:
    env = at((0.0, 19.0 - away), (8.0, 8.0))
    assert env.step(np.zeros(8))[4]["success"] is expected


def test_the_state_is_the_ant_then_the_block() -> None:
    env = at((1.0, 2.0), (1.5, 8.0))
    state, *_, info = env.step(np.zeros(8))
    assert state.shape == (31,)
    assert np.allclose(state[29:], info["objects"][1], atol=1e-6)
    assert np.allclose(info["objects"][1], (1.5, 8.0), atol=0.01)
    assert np.linalg.norm(state[3:7]) == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(state[15:17], env.data.qvel[:2], atol=1e-6)


def test_starts_differ_by_a_little_noise_and_the_block_by_none() -> None:
    env = AntPush()
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(50)])
    assert np.abs(starts[:, :2]).max() <= 0.1
    assert starts[:, 0].std() > 0.04
    assert 0.08 < starts[:, 15:29].std() < 0.12
    assert np.all(starts[:, 29:] == (0.0, 8.0))


def test_motors_turn_the_ant_and_at_most_with_30_newton_metres() -> None:
    env = at((0.0, 0.0))
    for _ in range(10):
        env.step(np.ones(8))
        assert np.abs(env.data.qfrc_actuator[6:14]).max() == pytest.approx(30.0)
        assert np.all(env.data.qfrc_actuator[14:] == 0)


def test_nothing_leaves_the_rooms_under_wild_actions() -> None:
    env = AntPush()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for step in range(800):
        if step % 8 == 0:
            action = rng.choice([-1.0, 1.0], 8)
        _, _, _, truncated, info = env.step(action)
        assert np.abs(info["objects"] - (0, 8)).max() < 12
        assert env.data.qpos[2] < 3
        if truncated:
            env.reset()


def test_the_picture_spans_the_floor_between_the_outer_walls() -> None:
    places = {1: (-8.0, 8.0), 2: (8.0, 8.0)}
    env = at(places[1], places[2], obs="pixels")
    masks = env.segmentation()
    for index, (x, y) in places.items():
        rows, columns = np.nonzero(masks == index)
        seen = ((columns.mean() + 0.5) * 24 / 64 - 12, 20 - (rows.mean() + 0.5) * 24 / 64)
        assert np.abs(np.array(seen) - (x, y)).max() < 0.3
    assert (masks == 2).sum() == pytest.approx((7.92 / 24 * 64) ** 2, rel=0.06)


def test_walls_the_floor_and_the_goal_have_colours_of_their_own() -> None:
    frame = AntPush(obs="pixels").reset(seed=0)[0][1].astype(int)

    def colour(x: float, y: float) -> np.ndarray:
        return frame[int((20 - y) / 24 * 64), int((x + 12) / 24 * 64)]

    floor, walls = colour(-8, 0), [colour(x, y) for x, y in ((8, 0), (-8, 16), (8, 16))]
    assert all(np.array_equal(wall, walls[0]) for wall in walls)
    shades = [floor, walls[0], colour(0, 19), colour(0, 8), colour(0, 0)]
    assert min(np.abs(a - b).max() for index, a in enumerate(shades) for b in shades[:index]) > 30
    assert all(np.array_equal(colour(x, y), floor) for x, y in ((-8, 8), (8, 8), (0, 14)))


def test_milestones_tell_the_block_moved_aside_and_the_upper_row() -> None:
    places = np.array([[[0, 0], [0, 8]], [[0, 11], [8, 8]], [[0, 13], [-5, 8]], [[5, 19], [0, 16]]])
    met = {name: holds(places).tolist() for name, holds in TASK.milestones.items()}
    assert met == {
        "block_aside": [False, True, True, False],
        "ant_in_upper_row": [False, False, True, True],
    }
