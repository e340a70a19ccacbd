"""HalfCheetah-v5 and Humanoid-v5 (Fig. 12), and the cheetah that must go back (Fig. 11)."""

from __future__ import annotations

from copy import copy
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

from vis_rpg.envs.tasks.mujoco_task import MujocoTask, free_camera
from vis_rpg.envs.tasks.task import Axes, Coverage, Task

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

BACK = 5.0
"""Metres behind its start at which the cheetah has succeeded."""
HALF_WIDTH = 10.0
"""The picture of CheetahBack shows x in +-10 m, the start in its middle; further out the cheetah is
not seen."""
HEIGHT = 2.0
"""And this much of z, from 0.1 m below the floor."""
THICK = 0.12
"""Radius of the cheetah's limbs in that picture, whose pixels are 0.31 m wide and 0.03 m high;
their own is 0.046 m."""
COLOUR = (1.0, 0.55, 0.1, 1.0)
FLOOR = (0.4, 0.4, 0.45, 1.0)
DERIVED = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
"""What the humanoid's observation and reward read that its next step does not begin with."""


def make_inner(id: str, **kwargs: Any) -> Any:
    """Gymnasium's environment without its wrappers, its model painted for small pictures.

    A robot of one colour, evenly lit, no mirror.
    """
    inner: Any = gymnasium.make(id, **kwargs).unwrapped
    model = inner.model
    model.geom_matid[robot_geoms(model)] = -1
    model.geom_rgba[robot_geoms(model)] = COLOUR
    model.mat_reflectance[:] = 0.0
    model.geom("floor").size[2] = (
        # how finely a plane is drawn, no matter to physics: the humanoid's is of 100,000 squares
        40.0
    )
    model.light_active[:] = 0
    light = model.vis.headlight
    light.ambient[:], light.diffuse[:], light.specular[:] = 1.0, 0.0, 0.0
    return inner


def robot_geoms(model: mujoco.MjModel) -> list[int]:
    """Ids of the geoms that make up the robot: all but the world's."""
    return [int(index) for index in np.flatnonzero(model.geom_bodyid)]


class Locomotion(MujocoTask):
    """The inner environment's model, start, observation and reward, which no time limit cuts short.

    The one object of interest is the robot, all of its geoms; its position is the torso's. Seen by
    the camera that runs beside it.
    """

    def __init__(
        self,
        task: Task,
        inner: Any,
        obs: str,
        render_mode: str | None,
        view: str | mujoco.MjvCamera = "track",
        **seeing: Any,
    ) -> None:
        self._inner = inner
        model = inner.model
        parts = {task.object_names[0]: robot_geoms(model)}
        limits = np.full(inner.observation_space.shape, np.inf)
        super().__init__(
            task, model, inner.data, task.name, view, parts, limits, obs, render_mode, **seeing
        )
        self._strength = model.actuator_ctrlrange[:, 1]

    def _start(self) -> None:
        self._inner.np_random = self.np_random
        self._inner.reset()

    def _move(self, action: np.ndarray) -> float:
        return float(self._inner.step(self._strength * action)[1])

    def _state(self) -> np.ndarray:
        return self._inner._get_obs()


class Cheetah(Locomotion):
    """What both cheetah tasks share."""

    def _move(self, action: np.ndarray) -> float:
        reward = super()._move(action)
        self._expose()
        return reward

    def _expose(self) -> None:
        """Pictures show where it is, not where it was a substep ago.

        The reward and the state read neither.
        """
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _objects(self) -> np.ndarray:
        x, z = self.data.qpos[:2]
        return np.array([[x, 0.0, z + self.model.body("torso").pos[2]]])


class HalfCheetah(Cheetah):
    """Gymnasium's HalfCheetah-v5, with the reward of moving forward.

    State (17,), 6 actions, 1000 steps of 0.05 s.

    Raises:
        UserError: For an unknown `obs`, and where pictures cannot be rendered.
    """

    TASK = Task("half_cheetah", ("cheetah",), velocities=((8, 17),), plane=(0, 2))

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(self.TASK, make_inner("HalfCheetah-v5"), obs, render_mode)


def object_coordinates(state: Tensor) -> Tensor:
    """State (..., 18) -> x of the torso (..., 1, 1), in units of the distance to go back."""
    return state[..., None, :1] / BACK


def draw(axes: Axes) -> None:
    """The floor, the start, and the line behind which it succeeds, in world units."""
    axes.axhline(0.0, color="black", linewidth=1)
    axes.plot(0, 0.7, marker="x", color="black")
    axes.axvline(-BACK, color="tab:green", linewidth=1)
    axes.set(
        xlim=(-HALF_WIDTH, HALF_WIDTH), ylim=(0.0, HEIGHT), aspect="auto"
    )  # ten times as wide as high


class CheetahBack(Cheetah):
    """The cheetah of HalfCheetah-v5 must go 5 m back, for a sparse reward.

    The reward is 1 in each step in which its torso is at least 5 m behind where it started. State
    (18,): x, z and pitch of the torso and 6 joint angles, then their velocities. 200 steps. Its
    camera stands still, so that x is seen: the picture spans 20 m by 2 m, anamorphic in a square.

    Raises:
        UserError: For an unknown `obs`, and where pictures cannot be rendered.
    """

    TASK = Task(
        name="cheetah_back",
        object_names=("cheetah",),
        object_coordinates=object_coordinates,
        state_scale=0.1,
        episode_length=200,
        sparse=True,
        velocities=((9, 18),),
        plane=(0, 2),
        coverage=Coverage(("cheetah",), (-HALF_WIDTH, 0.0), (HALF_WIDTH, HEIGHT), (40, 1)),
        draw=draw,
    )

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        inner = make_inner("HalfCheetah-v5", exclude_current_positions_from_observation=False)
        drawn = copy(inner.model)
        drawn.geom_size[robot_geoms(drawn), 0] = THICK
        # The floor, seen from its edge, as the 5 m before and behind the start: where it ends on
        # the left, success begins.
        floor = drawn.geom("floor")
        floor.type[:], floor.size[:], floor.matid[:] = (
            mujoco.mjtGeom.mjGEOM_BOX,
            (BACK, 0.01, 0.05),
            -1,
        )
        floor.rgba[:] = FLOOR
        drawn.vis.global_.orthographic, drawn.vis.global_.fovy = 1, HEIGHT
        view = free_camera(
            (0.0, 0.0, HEIGHT / 2 - 0.1), distance=HALF_WIDTH, azimuth=90.0, elevation=0.0
        )
        self._begin = 0.0
        self.substeps = inner.frame_skip
        super().__init__(
            self.TASK,
            inner,
            obs,
            render_mode,
            view=view,
            render_model=drawn,
            anamorphic=round(2 * HALF_WIDTH / HEIGHT),
        )

    def _start(self) -> None:
        super()._start()
        self._begin = float(self.data.qpos[0])

    # The library's own step also computes the reward of running, which is not paid here.
    _move = MujocoTask._move

    def _push(self, action: np.ndarray) -> None:
        self.data.ctrl[:] = self._strength * action

    def _settle(self) -> float:
        self._expose()
        return 0.0

    def _randomize(self) -> None:
        self.data.qpos[0] = self.np_random.uniform(
            -HALF_WIDTH + 1.0, HALF_WIDTH - 1.0
        )  # success is still at the same place
        mujoco.mj_forward(self.model, self.data)

    def _success(self) -> bool:
        return bool(self.data.qpos[0] <= self._begin - BACK)

    def _save(self) -> dict[str, Any]:
        return super()._save() | {"begin": self._begin}

    def _load(self, saved: dict[str, Any]) -> None:
        super()._load(saved)
        self._begin = float(saved["begin"])


class Humanoid(Locomotion):
    """Gymnasium's Humanoid-v5: state (348,), 17 actions, at most 1000 steps of 0.015 s.

    An episode ends when the torso leaves its healthy height, 1 to 2 m.

    Raises:
        UserError: For an unknown `obs`, and where pictures cannot be rendered.
    """

    TASK = Task("humanoid", ("humanoid",), state_scale=0.1, velocities=((22, 45), (175, 253)))

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(self.TASK, make_inner("Humanoid-v5"), obs, render_mode)

    def _terminated(self) -> bool:
        return not self._inner.is_healthy

    def _objects(self) -> np.ndarray:
        return self.data.qpos[None, :3].copy()

    def _save(self) -> dict[str, Any]:
        return super()._save() | {name: getattr(self.data, name).copy() for name in DERIVED}

    def _load(self, saved: dict[str, Any]) -> None:
        super()._load(saved)
        for name in DERIVED:
            getattr(self.data, name)[:] = saved[name]
