"""Maze (Fig. 5): 5 x 5 rooms joined by narrow gaps.

There is no reward, so only exploration moves the agent.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from vis_rpg.envs.rendering.frames import FRAME
from vis_rpg.envs.tasks.base import BaseTask
from vis_rpg.envs.tasks.task import Axes, Coverage, Task

ROOMS = 5
SIZE = 5.0
"""Half of the side of the maze."""
ROOM = 2.0
GAP = 0.4
STRIDE = 0.25
CLOSED_BELOW = {(0, 2), (1, 2), (3, 2), (4, 2), (1, 3), (3, 3)}
"""Rooms (x, y) without a gap to (x, y - 1)."""
CLOSED_LEFT = {(1, 0), (2, 0), (3, 1), (4, 1), (2, 3), (4, 3), (1, 4), (2, 4), (3, 4), (4, 4)}
"""Rooms (x, y) without a gap to (x - 1, y)."""
SKIN = 1e-6
"""Half thickness of a wall: too thin to be seen, thick enough for its ends to block a move along
it."""
BACK_OFF = 1e-9
"""Share of a step by which the agent stops before contact, so that rounding never puts it inside a
wall."""
RADIUS = 0.5
"""Of the disc that stands for the agent, a point, in pictures."""
FLOOR, WALL, AGENT = (40, 40, 46), (150, 150, 160), (240, 80, 60)


def maze_walls() -> np.ndarray:
    """Every wall as a segment: (W, 2, 2), the two ends' (x, y)."""
    walls = []
    for line in range(ROOMS + 1):
        across = ROOM * line - SIZE
        for room in range(ROOMS):
            start, end = ROOM * room - SIZE, ROOM * (room + 1) - SIZE
            middle = (start + end) / 2
            outer = line in (0, ROOMS)
            for closed, upright in (
                ((line, room) in CLOSED_LEFT, True),
                ((room, line) in CLOSED_BELOW, False),
            ):
                spans = (
                    [(start, end)]
                    if outer or closed
                    else [(start, middle - GAP / 2), (middle + GAP / 2, end)]
                )
                walls += [
                    [(across, a), (across, b)] if upright else [(a, across), (b, across)]
                    for a, b in spans
                ]
    return np.array(walls)


WALLS = maze_walls()
_LOW, _HIGH = WALLS.min(axis=1) - SKIN, WALLS.max(axis=1) + SKIN  # (W, 2)


def slide_free_move(position: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Where a point (2,) ends that moves by (2,) and stops at the first wall (slab test)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (
            (_LOW - position) / move,
            (_HIGH - position) / move,
        )  # (W, 2), in shares of the move
    enter = np.minimum(near, far).max(axis=1)
    leave = np.maximum(near, far).min(axis=1)
    hit = (enter <= leave) & (enter <= 1) & (leave > BACK_OFF)
    share = max(0.0, enter[hit].min() - BACK_OFF) if hit.any() else 1.0
    return position + share * move


def object_coordinates(state: Tensor) -> Tensor:
    """State (..., 2) -> the agent's coordinates (..., 1, 2), scaled to [-1, 1]."""
    return state.unsqueeze(-2) / SIZE


def draw(axes: Axes) -> None:
    """Walls and the start, in world units."""
    for (x0, y0), (x1, y1) in WALLS:
        axes.plot([x0, x1], [y0, y1], color="black", linewidth=1)
    axes.plot(0, 0, marker="x", color="black")
    axes.set(xlim=(-SIZE, SIZE), ylim=(-SIZE, SIZE), aspect="equal")


TASK = Task(
    name="maze",
    object_names=("agent",),
    object_coordinates=object_coordinates,
    state_scale=0.2,
    episode_length=50,
    sparse=True,
    coverage=Coverage(("agent",), (-SIZE, -SIZE), (SIZE, SIZE), (10, 10)),
    draw=draw,
)


def to_pixels(points: np.ndarray, size: int) -> np.ndarray:
    """World (..., 2) -> (column, row) in a picture of `size` pixels; y points up."""
    return (points * (1, -1) + SIZE) * size / (2 * SIZE)


@cache
def background(size: int) -> np.ndarray:
    """The empty maze: (size, size, 3) uint8.

    Walls one 64th of the picture wide, drawn large and averaged.
    """
    large = 8 * size
    picture = np.full((large, large, 3), FLOOR, np.uint8)
    half = large / FRAME / 2
    for ends in to_pixels(WALLS, large):
        along = np.array([half, 0]) if ends[0, 1] == ends[1, 1] else np.array([0, half])
        across = half - along
        (left, top), (right, bottom) = np.rint(
            np.clip([ends.min(0) - across, ends.max(0) + across], 0, large)
        ).astype(int)
        picture[top:bottom, left:right] = WALL
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


class Maze(BaseTask):
    """The agent is a point; a step moves it by 0.25 x action.

    State: its (x, y). No reward, no success.

    Raises:
        UserError: For an unknown `obs`.
    """

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(TASK, 2, np.full(2, SIZE), obs, render_mode)
        self._position = np.zeros(2)

    def _start(self) -> None:
        self._position = np.zeros(2)

    def _randomize(self) -> None:
        self._position = self.np_random.uniform(-SIZE + RADIUS, SIZE - RADIUS, 2)

    def _move(self, action: np.ndarray) -> float:
        self._position = slide_free_move(self._position, STRIDE * action)
        return 0.0

    def _state(self) -> np.ndarray:
        return self._position

    def _objects(self) -> np.ndarray:
        return self._position[None].copy()

    def _frame(self, size: int) -> np.ndarray:
        return self._disc(background(size).copy(), AGENT, cv2.LINE_AA)

    def segmentation(self, whole: bool = False) -> np.ndarray:
        """What each pixel of the newest frame shows, for metrics only.

        Returns:
            (64, 64) int, 0 background, 1 agent; nothing else moves that `whole` could label.
        """
        return self._disc(np.zeros((FRAME, FRAME), np.uint8), 1, cv2.LINE_8).astype(int)

    def _disc(self, picture: np.ndarray, colour: Any, line: int) -> np.ndarray:
        size = picture.shape[0]
        # cv2 puts whole coordinates on pixel centres, and takes 4 fractional bits.
        x, y = np.rint((to_pixels(self._position, size) - 0.5) * 16).astype(int)
        cv2.circle(
            picture, (int(x), int(y)), round(RADIUS * size / (2 * SIZE) * 16), colour, -1, line, 4
        )
        return picture

    def _save(self) -> dict[str, Any]:
        return {"position": self._position.copy()}

    def _load(self, saved: dict[str, Any]) -> None:
        self._position = np.array(saved["position"], np.float64)
