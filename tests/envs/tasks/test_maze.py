"""The maze's walls are the paper's, and nothing passes through them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vis_rpg.envs.tasks.maze import Maze, maze_walls, slide_free_move

# As given with the tasks: rooms (x, y) closed towards (x, y - 1), and towards (x - 1, y).
BELOW = [(0, 2), (1, 2), (3, 2), (4, 2), (1, 3), (3, 3)]
LEFT = [(1, 0), (2, 0), (3, 1), (4, 1), (2, 3), (4, 3), (1, 4), (2, 4), (3, 4), (4, 4)]
CLOSED = {((x, y), (x, y - 1)) for x, y in BELOW} | {((x, y), (x - 1, y)) for x, y in LEFT}
NEIGHBOURS = [
    ((x, y), (x - dx, y - dy))
    for x in range(5)
    for y in range(5)
    for dx, dy in ((1, 0), (0, 1))
    if x >= dx and y >= dy
]


def at(position: tuple[float, float]) -> Maze:
    env = Maze()
    env.reset(seed=0)
    env.set_state({**env.get_state(), "position": np.array(position)})
    return env


def centre(room: tuple[int, int]) -> np.ndarray:
    return np.array([2.0 * room[0] - 4, 2.0 * room[1] - 4])


def floor_plan() -> np.ndarray:
    """Free (True) points of a grid of 0.05 spacing, [x, y], drawn from the wall list."""
    free = np.ones((201, 201), bool)
    for ends in np.rint((maze_walls() + 5) * 20).astype(int):
        (left, low), (right, high) = ends.min(0), ends.max(0)
        free[left : right + 1, low : high + 1] = False
    return free


@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_neighbouring_rooms_are_joined_exactly_where_they_should_be(
    pair: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    room, other = pair
    low, high = np.minimum(room, other), np.maximum(room, other)
    area = floor_plan()[40 * low[0] : 40 * high[0] + 41, 40 * low[1] : 40 * high[1] + 41]
    border = area[40] if room[0] != other[0] else area[:, 40]
    assert ndimage.label(area)[1] == (2 if pair in CLOSED else 1)
    assert border.sum() == (
        0 if pair in CLOSED else 7
    )  # free grid points strictly inside a 0.4-wide gap
    assert pair in CLOSED or border[20]


@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_a_straight_walk_passes_a_gap_and_stops_at_a_closed_wall(
    pair: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    room, other = pair
    env = at(tuple(centre(room)))
    for _ in range(8):
        state, *_ = env.step((centre(other) - centre(room)) / 2)
    expected = (centre(room) + centre(other)) / 2 if pair in CLOSED else centre(other)
    assert np.allclose(state, expected, atol=1e-5)


def test_every_room_can_be_reached_and_none_leads_outside() -> None:
    labels, _ = ndimage.label(np.pad(floor_plan(), 1, constant_values=True))
    inside = {
        labels[tuple(np.rint((centre((x, y)) + 5) * 20).astype(int) + 1)]
        for x in range(5)
        for y in range(5)
    }
    assert len(inside) == 1
    assert labels[0, 0] not in inside


def test_a_step_moves_by_a_quarter_of_the_action() -> None:
    env = at((0.0, 0.0))
    state, *_ = env.step(np.array([0.4, -1.0]))
    assert np.allclose(state, [0.1, -0.25])


def test_contact_stops_without_sliding() -> None:
    env = at((-0.9, 0.5))
    state, *_ = env.step(np.array([-1.0, 1.0]))
    assert np.allclose(state, [-1.0, 0.6], atol=1e-5)
    again, *_ = env.step(np.array([-0.5, 1.0]))
    assert np.allclose(again, state, atol=1e-5)
    away, *_ = env.step(np.array([0.4, 0.4]))
    assert np.allclose(away, state + 0.1, atol=1e-5)


def test_the_end_of_a_wall_blocks_a_walk_along_its_line() -> None:
    env = at((-1.0, 0.0))
    for _ in range(3):
        state, *_ = env.step(np.array([0.0, 1.0]))
    assert np.allclose(state, [-1.0, 0.2], atol=1e-5)


def test_a_walk_never_crosses_a_wall() -> None:
    rng = np.random.default_rng(0)
    env = at((0.0, 0.0))
    walls = maze_walls()
    upright = walls[:, 0, 0] == walls[:, 1, 0]
    before = np.zeros(2)
    for step in range(10_000):
        if step % 40 == 0:
            heading = rng.normal(size=2)  # a drift, so that many walls are met
        env.step(np.clip(heading + rng.normal(size=2), -1, 1))
        after = env.get_state()["position"]
        assert np.abs(after).max() < 5
        for axis, lines in ((0, walls[upright]), (1, walls[~upright])):
            start, end = before[axis] - lines[:, 0, axis], after[axis] - lines[:, 0, axis]
            crossed = start * end < 0
            share = start[crossed] / (start - end)[crossed]
            where = before[1 - axis] + share * (after - before)[1 - axis]
            span = np.sort(lines[crossed][:, :, 1 - axis], axis=1)
            assert not ((where > span[:, 0]) & (where < span[:, 1])).any()
        before = after


def test_pressing_on_a_wall_for_long_does_not_creep_through_it() -> None:
    position = np.array([-0.5, 0.7])
    for index in range(2000):
        position = slide_free_move(
            position, np.array([-0.25, 0.25 * np.sin(index)]) * (0.1 if index % 3 else 1e-7)
        )
    assert position[0] > -1


def test_there_is_no_reward_to_find() -> None:
    env = Maze()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        _, reward, _, _, info = env.step(rng.uniform(-1, 1, 2))
        assert reward == 0
        assert info["success"] is False


def test_the_disc_is_drawn_where_the_agent_is() -> None:
    for x, y in ((0.0, 0.0), (-4.0, 4.0), (2.7, -3.1)):
        rows, columns = np.nonzero(at((x, y)).segmentation())
        seen = np.array([(columns.mean() + 0.5) / 6.4 - 5, 5 - (rows.mean() + 0.5) / 6.4])
        assert np.abs(seen - (x, y)).max() < 0.1
