"""BlockPush's physics, success and pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vis_rpg.envs.make import task_of
from vis_rpg.envs.rendering import frames as rendering
from vis_rpg.envs.tasks.block_push import BlockPush, load_model
from vis_rpg.errors import UserError

SIDE = 0.4


def at(*positions: tuple[float, float], **kwargs: Any) -> BlockPush:
    """An environment with pusher and blocks where they are said to be."""
    env = BlockPush(blocks=len(positions) - 1, **kwargs)
    env.reset(seed=0)
    env.set_state({**env.get_state(), "positions": np.array(positions, float).ravel()})
    return env


def overlap(objects: np.ndarray) -> float:
    """The deepest that any two boxes reach into each other."""
    gaps = [np.abs(a - b).max() for index, a in enumerate(objects) for b in objects[:index]]
    return max(SIDE - min(gaps), 0.0)


def drive(env: BlockPush, *waypoints: tuple[float, float]) -> dict[str, Any]:
    """Move the pusher from waypoint to waypoint, or until it is stopped; the last info, or the
    first one with success."""
    info: dict[str, Any] = {
        "objects": env.get_state()["positions"].reshape(-1, 2),
        "success": False,
    }
    for target in waypoints:
        for _ in range(20):
            way = np.array(target) - info["objects"][0]
            before = info["objects"]
            _, reward, _, truncated, info = env.step(np.clip(way / 0.32, -1, 1))
            assert reward == float(info["success"])
            assert not truncated
            if info["success"]:
                return info
            if np.allclose(info["objects"], before, atol=1e-3):
                break
    return info


def authors_scene(places: np.ndarray) -> tuple[Any, list[Any]]:
    """Pusher and two blocks as envs/block/block_envs.py of the authors' code builds them, in PhysX.

    Boxes of 64 kg on two sliders each; those of the blocks have a drive with damping 5,000.
    """
    import sapien

    scene = sapien.Scene([sapien.physx.PhysxCpuSystem()])
    scene.set_timestep(0.01)
    material = sapien.physx.PhysxMaterial(0, 0, 0)
    along_y = sapien.Pose(q=[0.5**0.5, 0, 0, 0.5**0.5])
    bodies = []
    for place, damping in zip(places, (0.0, 5000.0, 5000.0), strict=True):
        builder = scene.create_articulation_builder()
        link = builder.create_link_builder()
        for pose in (sapien.Pose(), along_y):
            link = builder.create_link_builder(link)
            link.set_joint_properties("prismatic", [[-1.8, 1.8]], pose, pose, 0.0, damping)
        link.add_box_collision(half_size=[0.2] * 3, material=material, density=1000)
        body = builder.build(fix_root_link=True)
        body.set_qpos(place)
        bodies.append(body)
    return scene, bodies


@pytest.mark.parametrize("blocks", [1, 2])
def test_other_looks_are_other_colours_and_sizes_of_the_blocks_alone(blocks: int) -> None:
    usual, names = load_model(blocks), ("green", "blue")[:blocks]
    sides = []
    for looks in range(1, 20):
        model = load_model(blocks, looks)
        others = np.concatenate(
            [usual.geom_rgba[:, :3], *(model.geom(name).rgba[None, :3] for name in names)]
        )
        for name in names:
            apart = np.linalg.norm(others - model.geom(name).rgba[:3], axis=1)
            assert np.sort(apart)[1] >= 0.35 - 1e-6, "of every colour but its own"
            sides.append(2 * model.geom(name).size[:2])
        assert np.array_equal(model.geom("pusher").rgba, usual.geom("pusher").rgba)
    assert np.array_equal(np.array(sides)[:, 0], np.array(sides)[:, 1])
    assert 0.3 <= np.min(sides) < 0.35 and 0.55 < np.max(sides) <= 0.6


def test_blocks_of_other_sizes_are_scattered_apart() -> None:
    env = BlockPush(looks=4)  # the largest of all
    for seed in range(30):
        env.reset(seed=seed, options={"randomize": True})
        places = env.get_state()["positions"].reshape(-1, 2)
        halves = [env.model.geom(name).size[0] for name in ("pusher", "green", "blue")]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(places[i] - places[j]).max() > halves[i] + halves[j]


def test_negative_looks_are_refused() -> None:
    with pytest.raises(UserError, match="^looks=-1 .*from 1, or twins"):
        BlockPush(looks=-1)


def test_a_free_pusher_moves_at_four_times_the_action_for_eight_hundredths() -> None:
    env = at((0.0, -1.4), (-1.2, 0.0), (1.0, 1.0))
    for _ in range(3):
        state, *_ = env.step(np.array([0.5, -0.25]))
    assert np.allclose(state[:2], [0.48, -1.64], atol=1e-6)


def test_actions_beyond_one_are_cut_to_one() -> None:
    states = [
        at((0.0, -1.4), (-1.2, 0.0)).step(np.array(action))[0]
        for action in ([5.0, -0.2], [1.0, -0.2])
    ]
    assert np.array_equal(*states)


def test_blocks_rest_until_they_are_pushed_and_stop_when_the_push_ends() -> None:
    env = at((0.0, -0.7), (-1.2, 0.0), (0.0, 0.0))
    for _ in range(3):
        state, *_ = env.step(np.array([0.0, 1.0]))
    assert np.allclose(state[2:4], [-1.2, 0.0], atol=1e-9)
    assert state[5] > 0.3
    after, *_ = env.step(np.array([0.0, -1.0]))
    assert abs(after[5] - state[5]) < 0.01
    later, *_ = env.step(np.array([0.0, -1.0]))
    assert np.allclose(later[2:], after[2:], atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("action", [1.0, 0.5])
def test_pushing_is_as_slow_as_in_the_authors_simulator(blocks: int, action: float) -> None:
    """Contact holds the pusher back: 0.62 of its speed with one block, 0.43 with two."""
    places = np.array([[0.0, -1.4], [0.0, -0.9], [0.0 if blocks == 2 else 1.2, -0.4]])
    env, (scene, reference) = at(*map(tuple, places)), authors_scene(places)
    for _ in range(12):
        env.step(np.array([0.0, action]))
        for _ in range(8):
            reference[0].set_qvel(np.array([0.0, 4 * action]))
            scene.step()
    expected = np.array([body.get_qpos() for body in reference])
    moved = expected[:, 1] - places[:, 1]
    assert moved[1] > 0.3
    ours = env.get_state()["positions"].reshape(-1, 2)
    assert np.allclose(ours, expected, rtol=0, atol=0.07 * moved[0])


def test_a_push_moves_a_block_along_itself_only() -> None:
    env = at((0.1, -0.7), (-1.2, 0.0), (0.0, 0.0))
    for _ in range(4):
        state, *_ = env.step(np.array([0.0, 1.0]))
    assert state[4] == pytest.approx(0.0, abs=1e-6)
    assert state[5] == pytest.approx(state[1] + SIDE, abs=1e-3)


@pytest.mark.parametrize("way", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
def test_a_row_of_blocks_against_the_wall_holds_the_pusher(way: tuple[float, float]) -> None:
    direction = np.array(way)
    env = at(tuple(-0.2 * direction), tuple(0.3 * direction), tuple(0.8 * direction))
    for _ in range(40):
        _, _, _, _, info = env.step(direction)
        assert overlap(info["objects"]) < 0.02
    assert np.allclose(info["objects"] @ direction, [1.0, 1.4, 1.8], atol=0.01)


def test_nothing_overlaps_leaves_or_explodes_under_wild_actions() -> None:
    rng = np.random.default_rng(0)
    env = BlockPush()
    env.reset(seed=0)
    before = env.get_state()["positions"].reshape(-1, 2)
    for step in range(3000):
        if step % 12 == 0:
            heading = rng.normal(size=2) * 2
        _, _, _, truncated, info = env.step(np.clip(heading + rng.normal(size=2), -1, 1))
        assert np.abs(info["objects"]).max() <= 1.8
        assert (
            np.abs(info["objects"] - before).max() < 0.36
        )  # nothing is faster than the pusher, but for contact's give
        assert overlap(info["objects"]) < 0.02
        before = info["objects"]
        if truncated:
            _, info = env.reset()
            before = info["objects"]


def test_two_pushes_solve_one_block() -> None:
    env = BlockPush(blocks=1)
    env.reset(seed=0)
    info = drive(env, (-1.2, -1.4), (-1.2, 1.0))
    assert not info["success"]  # straight up ends beside the goal, at its very threshold
    assert drive(env, (-1.2, 0.9), (-0.7, 0.9), (-0.7, 1.4), (-1.0, 1.4))["success"]


def test_three_pushes_solve_two_blocks() -> None:
    env = BlockPush(blocks=2)
    env.reset(seed=0)
    drive(env, (0.0, 1.0), (0.0, 0.9))
    info = drive(
        env,
        (-0.5, 0.5),
        (-0.5, 0.0),
        (-0.95, 0.0),
        (-0.7, 0.0),
        (-0.7, -0.6),
        (-1.25, -0.6),
        (-1.25, 1.0),
    )
    assert info["success"], info


@pytest.mark.parametrize(("away", "expected"), [(0.199, True), (0.2, False), (0.201, False)])
def test_success_needs_less_than_a_fifth(away: float, expected: bool) -> None:
    for offset in ((away, 0.0), (0.0, -away), (away * 0.6, -away * 0.8)):
        near = (-1.4 + offset[0], 1.4 + offset[1])
        _, reward, terminated, _, info = at((1.5, -1.5), near).step(np.zeros(2))
        assert info["success"] is expected
        assert reward == float(expected)
        assert not terminated


def test_both_blocks_must_be_at_their_own_goals() -> None:
    green, blue = (-1.4, 1.4), (0.0, 1.4)
    assert at((1.5, -1.5), green, blue).step(np.zeros(2))[4]["success"]
    assert not at((1.5, -1.5), blue, green).step(np.zeros(2))[4]["success"]
    assert not at((1.5, -1.5), green, (0.0, 1.0)).step(np.zeros(2))[4]["success"]
    assert not at((1.5, -1.5), (-1.4, 1.0), blue).step(np.zeros(2))[4]["success"]


def test_with_one_block_it_is_the_left_one() -> None:
    one, two = BlockPush(blocks=1), BlockPush(blocks=2)
    assert np.array_equal(one.reset(seed=0)[0], two.reset(seed=0)[0][:4])
    assert one.task.object_names == two.task.object_names[:2]


def test_positions_are_the_whole_state() -> None:
    env = BlockPush()
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    for _ in range(40):
        env.step(rng.uniform(-1, 1, 2))
    fresh = at(*env.get_state()["positions"].reshape(-1, 2))
    for _ in range(10):
        action = rng.uniform(-1, 1, 2)
        assert np.array_equal(env.step(action)[0], fresh.step(action)[0])


def test_the_picture_spans_the_floor_between_the_walls() -> None:
    masks = at((-1.8, -1.8), (1.8, 1.8), (-0.3, 0.6), obs="pixels").segmentation()
    for index, (x, y) in enumerate([(-1.8, -1.8), (1.8, 1.8), (-0.3, 0.6)], start=1):
        rows, columns = np.nonzero(masks == index)
        assert 6 <= np.ptp(rows) + 1 <= 7
        assert 6 <= np.ptp(columns) + 1 <= 7
        seen = ((columns.mean() + 0.5) / 16 - 2, 2 - (rows.mean() + 0.5) / 16)
        assert np.abs(np.array(seen) - (x, y)).max() < 0.05


def test_goals_are_seen_dimly_in_the_colour_of_their_block() -> None:
    env = BlockPush(obs="pixels")
    frame, masks = env.reset(seed=0)[0][1].astype(int), env.segmentation()
    floor = frame[40, 60]
    for index, (x, y), main in ((2, (-1.4, 1.4), 1), (3, (0.0, 1.4), 2)):
        column, row = int((x + 2) * 16), int((2 - y) * 16)
        patch = frame[row - 4 : row + 4, column - 4 : column + 4].reshape(-1, 3)
        outline = patch[np.abs(patch - floor).max(axis=1) > 10]
        assert 15 <= len(outline) <= 30
        assert (outline.argmax(axis=1) == main).all()
        block = frame[masks == index].mean(axis=0)
        assert 20 < np.abs(outline.mean(axis=0) - floor).max() < 0.6 * np.abs(block - floor).max()


@pytest.mark.parametrize("blocks", [0, 3])
def test_another_number_of_blocks_is_refused(blocks: int) -> None:
    with pytest.raises(UserError, match=f"^blocks={blocks} .*1 or 2"):
        BlockPush(blocks=blocks)


def test_a_gl_context_that_fails_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\ndisplay")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(UserError, match="libegl1.*libegl-mesa0.*libgl1-mesa-dri") as error:
        rendering.Camera(load_model(1), "top", 64, 0)
    assert "\n" not in str(error.value)


def test_state_works_and_pixels_are_refused_where_egl_is_missing() -> None:
    script = """
import ctypes
class Without(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name == "libEGL.so.1":
            raise OSError(name)
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = Without
from vis_rpg.envs.rendering import frames as rendering
from vis_rpg.envs.make import make_env
env = make_env({"name": "block_push"}, "state", 0)
print(env.step([0.0, 1.0])[0].shape)
try:
    make_env({"name": "block_push"}, "pixels", 0)
except rendering.UserError as error:
    print(error)
"""
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["(6,)", rendering.NO_EGL]


def test_milestones_tell_which_block_is_at_its_goal() -> None:
    task = task_of(BlockPush())
    places = np.array([[[0, 0], [-1.4, 1.21], [0, 1.19]], [[-1.4, 1.4], [0, 1.4], [-1.4, 1.4]]])
    met = {name: holds(places).tolist() for name, holds in task.milestones.items()}
    assert met == {"green_at_goal": [True, False], "blue_at_goal": [False, False]}
    assert list(task_of(BlockPush(blocks=1)).milestones) == ["green_at_goal"]
