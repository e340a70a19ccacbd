"""AntPush (Nachum et al. 2018): push a block aside to reach the upper room.

Pushed straight ahead, the block shuts the way in.
"""

from __future__ import annotations

from copy import copy
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vis_rpg.envs.tasks.base import MAX_TRIES
from vis_rpg.envs.tasks.mujoco_task import MujocoTask
from vis_rpg.envs.tasks.task import Axes, Coverage, Task, draw_box
from vis_rpg.resources import ASSETS

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

LOW, HIGH = (-12.0, -4.0), (12.0, 20.0)
"""Corners of the floor between the outer walls."""
HALF = 12.0
CENTRE = np.array([0.0, 8.0])
"""Of that floor; the block starts there."""
WALLS = np.array([[8.0, 0.0], [-8.0, 16.0], [8.0, 16.0]])
"""Centres of the walled cells among the 3 x 3."""
CELL = 8.0
BLOCK = np.array(
    [
        [[-8.0, 0.0], [0.0, 8.0]],
        [[-8.0, 0.0], [0.0, 8.0]],
        [[0.0, 8.0], [0.0, 16.0]],
        [[0.0, 8.0], [8.0, 8.0]],
    ]
)
"""Where the block's centre can be, as rectangles (low, high); the one with an area is there twice.
"""
GOAL = np.array([0.0, 19.0])
NEAR = 5.0
"""The ant is at the goal if its torso is closer than this."""
SUBSTEPS = 5
NOISE = 0.1
"""Of the ant's start: coordinates uniform in +-0.1, velocities normal with this std."""
ANT_QPOS, ANT_QVEL = 15, 14
"""Coordinates and velocities of the ant come first; the block's x and y follow."""


@cache
def load_model() -> mujoco.MjModel:
    """The compiled MJCF. Stepping leaves it as it is: environments share it."""
    return mujoco.MjModel.from_xml_path(str(ASSETS / "ant_push.xml"))


def ant_geoms(model: mujoco.MjModel) -> list[int]:
    """Ids of the geoms that make up the ant: those that move and are not the block's."""
    block = model.body("block").id
    return [index for index, body in enumerate(model.geom_bodyid) if body not in (0, block)]


@cache
def thick_model() -> mujoco.MjModel:
    """The model with limbs eight times as thick and the torso four times.

    A pixel of a small frame is 0.375 wide, a limb 0.16.
    """
    model = copy(load_model())
    geoms = ant_geoms(model)
    model.geom_size[geoms, 0] *= 8.0
    model.geom("torso").size[0] = 1.0
    # Boxes about capsules along z, and about the torso, a sphere, whose second size is 0.
    radius, length = model.geom_size[geoms, 0], model.geom_size[geoms, 1]
    model.geom_aabb[geoms, 3:] = np.stack([radius, radius, radius + length], axis=1)
    return model


def object_coordinates(state: Tensor) -> Tensor:
    """State (..., 31) -> torso and block (..., 2, 2), in [-1, 1] on the floor between the walls."""
    positions = torch.stack([state[..., :2], state[..., ANT_QPOS + ANT_QVEL :]], dim=-2)
    return (positions - positions.new_tensor(CENTRE)) / HALF


def draw(axes: Axes) -> None:
    """Draw walls, the goal and the area that counts as reached, and where ant and block start."""
    from matplotlib.patches import Circle, Rectangle  # only drawings need matplotlib

    for wall in WALLS:
        draw_box(axes, wall - CELL / 2, wall + CELL / 2, "0.6", filled=True)
    draw_box(axes, LOW, HIGH, "black")
    draw_box(axes, CENTRE - CELL / 2, CENTRE + CELL / 2, "tab:red")
    room = Rectangle((-CELL / 2, 1.5 * CELL), CELL, CELL, transform=axes.transData)
    near = axes.add_patch(Circle((GOAL[0], GOAL[1]), NEAR, fill=False, edgecolor="tab:green"))
    near.set_clip_path(room)
    axes.plot(*GOAL, marker="*", color="tab:green")
    axes.plot(0, 0, marker="x", color="black")
    axes.set(xlim=(LOW[0], HIGH[0]), ylim=(LOW[1], HIGH[1]), aspect="equal")


def block_aside(at: np.ndarray) -> np.ndarray:
    """Positions (..., 2, 2) -> whether the block leaves half of the way in free, (...)."""
    return abs(at[..., 1, 0]) > CELL / 2


def in_upper_row(at: np.ndarray) -> np.ndarray:
    """Positions (..., 2, 2) -> whether the ant is in the row of the goal, (...)."""
    return at[..., 0, 1] > CENTRE[1] + CELL / 2


TASK = Task(
    name="ant_push",
    object_names=("ant", "block"),
    object_coordinates=object_coordinates,
    frequencies=0,
    episode_length=400,
    velocities=((ANT_QPOS, ANT_QPOS + ANT_QVEL),),
    coverage=Coverage(("ant", "block"), LOW, HIGH, (24, 24)),
    draw=draw,
    milestones={"block_aside": block_aside, "ant_in_upper_row": in_upper_row},
)


class AntPush(MujocoTask):
    """An ant of eight motors, at most 30 Nm each; a step lasts 0.1 s.

    The reward is -0.1 times the distance of the torso to the goal.

    State (31,): the ant's coordinates (x, y, z, quaternion, 8 joint angles) and velocities (3
    linear, 3 angular, 8 joints), and the block's x and y. It starts at (0, 0), the block at (0, 8),
    the goal is (0, 19); success is a distance below 5. Positions in `info` are those of torso and
    block.

    Raises:
        UserError: For an unknown `obs`, and where pictures cannot be rendered.
    """

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        model = load_model()
        limits = np.full(ANT_QPOS + ANT_QVEL + 2, np.inf)
        parts = {"ant": ant_geoms(model), "block": [model.geom("block").id]}
        super().__init__(
            TASK,
            model,
            mujoco.MjData(model),
            "ant_push",
            "top",
            parts,
            limits,
            obs,
            render_mode,
            render_model=thick_model(),
        )

    def _start(self) -> None:
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        data.qpos[:ANT_QPOS] += self.np_random.uniform(-NOISE, NOISE, ANT_QPOS)
        data.qvel[:ANT_QVEL] = NOISE * self.np_random.standard_normal(ANT_QVEL)
        mujoco.mj_normalizeQuat(model, data.qpos)
        mujoco.mj_forward(model, data)

    def _randomize(self) -> None:
        data, rng = self.data, self.np_random
        for _ in range(MAX_TRIES):
            low, high = BLOCK[rng.integers(len(BLOCK))]
            data.qpos[ANT_QPOS:] = rng.uniform(low, high) - CENTRE
            data.qpos[:2] = rng.uniform(LOW, HIGH)
            mujoco.mj_forward(self.model, data)
            if not self._collisions():
                break

    def _move(self, action: np.ndarray) -> float:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        mujoco.mj_kinematics(
            self.model, self.data
        )  # pictures show where things are, not where the integrator last tried them
        return -0.1 * self._distance()

    def _distance(self) -> float:
        return float(np.linalg.norm(self.data.qpos[:2] - GOAL))

    def _success(self) -> bool:
        return self._distance() < NEAR

    def _state(self) -> np.ndarray:
        data = self.data
        return np.concatenate([data.qpos[:ANT_QPOS], data.qvel[:ANT_QVEL], self._objects()[1]])

    def _objects(self) -> np.ndarray:
        # The block's joints count from where it starts.
        return np.array([self.data.qpos[:2], self.data.qpos[ANT_QPOS:] + CENTRE])
