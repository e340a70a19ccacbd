"""Adroit: Gymnasium-Robotics' hand of 24 joints on an arm opens a door or hammers a nail in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium_robotics.envs.adroit_hand import AdroitHandDoorEnv, AdroitHandHammerEnv
from torch import Tensor

from vis_rpg.envs.tasks.base import MAX_TRIES, check_choice
from vis_rpg.envs.tasks.mujoco_task import MujocoTask, free_camera, geoms_under
from vis_rpg.envs.tasks.task import Axes, Coverage, Milestone, Task, draw_box

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

REPEAT = 2
"""Steps of the library that one action is held for."""
REACH = 0.6
"""What drawings and coverage show, in metres: the hand and what it reaches stay about within +-0.6
along each axis."""
OPEN, DRIVEN = {"library": 1.35, "paper": 1.0}, {"library": 0.01, "paper": 0.02}
"""Success by `task.success`: from which angle of its hinge on, in rad, the door is open; how near
its goal, in metres, the nail is."""
NAIL_START = -0.044
"""Where the head of the nail is along x, in metres, at every start."""
TABLE, LIFT = ((-0.35, -0.4), (0.1, 0.1)), 0.2
"""Where a randomized reset puts the hammer, in metres: corners in x and y, and the greatest height
above where it lies."""


def door_coordinates(state: Tensor) -> Tensor:
    """State (..., 39) -> door hinge (rad), handle and palm - handle (m): (..., 7, 1).

    The door stands elsewhere in every episode. Its angle and the palm as seen from the handle mean
    the same at every door; positions alone hide them (results/adroit_door).
    """
    return torch.cat([state[..., 28:29], state[..., 32:38]], -1).unsqueeze(-1)


def hammer_coordinates(state: Tensor) -> Tensor:
    """State (..., 49) -> depth of the nail (dm), head - nail and palm - head (m): (..., 7, 1).

    How far in the nail is along x, where the hammer's head is as seen from it, and the palm as seen
    from the head. The board hangs at another height in every episode, so that positions alone do
    not tell how far apart things are (results/adroit_hammer).
    """
    palm, nail, head = state[..., 33:36], state[..., 42:45], state[..., 46:49]
    depth = 10 * (nail[..., :1] - NAIL_START)
    return torch.cat([depth, head - nail, palm - head], -1).unsqueeze(-1)


def hammer_lifted(at: np.ndarray) -> np.ndarray:
    """Positions (..., 3, 3) -> whether the hammer's head is off the table by 4 cm, (...)."""
    return at[..., 1, 2] > 0.075


def nail_moved(at: np.ndarray) -> np.ndarray:
    """Positions (..., 3, 3) -> whether the nail is driven in by 1 cm, (...)."""
    return at[..., 2, 0] > NAIL_START + 0.01


def draw(axes: Axes) -> None:
    """The outline of what coverage counts, and the origin of the table."""
    draw_box(axes, (-REACH, -REACH), (REACH, REACH), "black")
    axes.plot(0.0, 0.0, marker="x", color="black")
    axes.set(xlim=(-REACH - 0.02, REACH + 0.02), ylim=(-REACH - 0.02, REACH + 0.02), aspect="equal")


def make_task(
    name: str,
    names: tuple[str, ...],
    object_coordinates: Callable[[Tensor], Tensor],
    length: int,
    covered: tuple[str, ...],
    plane: tuple[int, int],
    state_scale: float = 1.0,
    milestones: Mapping[str, Milestone] | None = None,
    velocities: tuple[tuple[int, int], ...] = (),
) -> Task:
    """Declare one of the two tasks."""
    coverage = Coverage(covered, (-REACH, -REACH), (REACH, REACH), (24, 24))
    return Task(
        name,
        names,
        object_coordinates,
        episode_length=length,
        sparse=True,
        state_scale=state_scale,
        velocities=velocities,
        plane=plane,
        coverage=coverage,
        draw=draw,
        processes=True,
        milestones=milestones or {},
        criteria=tuple(OPEN),
    )


class Adroit(MujocoTask):
    """What the two tasks share.

    An action is held for two of the library's steps (0.01 s each); the reward is 1 after every
    action at whose end success holds, else 0; and what the library moves in the model at every
    start is part of the saved state. `info` holds success by both criteria, as success_library and
    success_paper.
    """

    def __init__(
        self,
        task: Task,
        env: Any,
        placed: str,
        view: str | mujoco.MjvCamera,
        parts: dict[str, list[int]],
        size: int,
        obs: str,
        render_mode: str | None,
        success: str,
    ) -> None:
        """Declare the task.

        Args:
            task: Its declaration.
            env: The library's environment.
            placed: The body that the library places anew at every start.
            view: The camera.
            parts: Geoms of each object of interest.
            size: S, numbers of the state.
            obs: state | pixels.
            render_mode: Gymnasium's.
            success: library, the library's own criterion, or paper, the easier one of the paper's
                runs.

        Raises:
            UserError: For another `obs` or `success`.
        """
        check_choice("task.success", success, task.criteria)
        self._env, self._criterion = env, success
        self._placed_body = env.model.body(placed).id
        self._obs = np.zeros(0)
        self._succeeded = dict.fromkeys(task.criteria, False)
        super().__init__(
            task,
            env.model,
            env.data,
            task.name,
            view,
            parts,
            np.full(size, np.inf),
            obs,
            render_mode,
            robot="forearm",
        )

    def _start(self) -> None:
        self._env.np_random = self.np_random
        self._obs, _ = self._env.reset()
        self._succeeded = dict.fromkeys(self.task.criteria, False)

    def _randomize(self) -> None:
        for _ in range(MAX_TRIES):
            self._sample_joints()
            mujoco.mj_forward(self.model, self.data)
            places = self.data.geom_xpos[self.labels[:-1] > 0]
            above = (
                places[:, 2].min() > 0
                # the table's top: the hammer's thin neck may stick through it without touching it
                # deeply
            )
            if above and not self._collisions() and self._in_view(places):
                break
        self._obs = self._env._get_obs()

    def _sample_joints(self) -> None:
        """Draw where the hand's joints and the things are."""
        model, rng = self.model, self.np_random
        for joint in range(model.njnt):
            if model.jnt_limited[joint]:
                low, high = model.jnt_range[joint]
                self.data.qpos[joint] = rng.uniform(low, high)

    def _placed(self) -> tuple[list[int], list[int]]:
        return [self._placed_body], []

    def _move(self, action: np.ndarray) -> float:
        env = self._env
        for _ in range(
            REPEAT - 1
        ):  # what the library's step does, without an observation and a reward that nobody reads
            env.do_simulation(
                env.act_mean + np.clip(action, -1.0, 1.0) * env.act_rng, env.frame_skip
            )
        self._obs, *_ = env.step(action)
        self._succeeded = {name: self._succeeds(name) for name in self.task.criteria}
        return 0.0

    @abstractmethod
    def _succeeds(self, criterion: str) -> bool:
        """Whether the newest action has ended in success by one of the task's criteria."""

    def _success(self) -> bool:
        return self._succeeded[self._criterion]

    def _info(self) -> dict[str, Any]:
        return super()._info() | {
            f"success_{name}": holds for name, holds in self._succeeded.items()
        }

    def _state(self) -> np.ndarray:
        return self._obs

    def _save(self) -> dict[str, Any]:
        library = {
            "placed": self.model.body_pos[self._placed_body].copy(),
            "obs": self._obs.copy(),
            "success": dict(self._succeeded),
        }
        return super()._save() | library

    def _load(self, saved: dict[str, Any]) -> None:
        self.model.body_pos[self._placed_body] = np.array(saved["placed"], np.float64)
        super()._load(saved)
        self._obs, self._succeeded = np.array(saved["obs"], np.float64), dict(saved["success"])


class AdroitDoor(Adroit):
    """Turn the latch of a door and pull it open.

    To 1.35 rad, or 1.0 by `success="paper"`; the door stands elsewhere at every start. 28 actions.

    State (39,): the library's observation (joints of the hand, latch, door hinge, palm, handle of
    the latch, palm - handle, open or not). Objects of interest and their geoms: `palm` all of the
    hand from the body "palm" to the fingertips (its position is the library's grasp point in the
    palm), `latch` those of the body "latch" (its position is the end of its handle), `door` those
    of the panel that swings, body "door", without latch and frame.

    Raises:
        UserError: For an unknown `obs` or `success`, and where pictures cannot be rendered.
    """

    def __init__(
        self, obs: str = "state", render_mode: str | None = None, success: str = "library"
    ) -> None:
        env = AdroitHandDoorEnv(reward_type="sparse")
        task = make_task(
            "adroit_door",
            ("palm", "latch", "door"),
            door_coordinates,
            100,
            ("latch", "door"),
            (0, 1),
            state_scale=0.05,
        )
        palm, latch, door = (geoms_under(env.model, body) for body in ("palm", "latch", "door"))
        parts = {"palm": palm, "latch": latch, "door": [geom for geom in door if geom not in latch]}
        view = free_camera((0.08, -0.03, 0.2), distance=1.35, azimuth=70.0, elevation=-42.0)
        super().__init__(task, env, "frame", view, parts, 39, obs, render_mode, success)

    def _objects(self) -> np.ndarray:
        return np.stack([self._obs[29:32], self._obs[32:35], self.data.body("door").xpos])

    def _succeeds(self, criterion: str) -> bool:
        return bool(self.data.joint("door_hinge").qpos[0] >= OPEN[criterion])


class AdroitHammer(Adroit):
    """Take the hammer and drive the nail into the board (to 1 cm; 2 cm by `success="paper"`).

    The board hangs at another height at every start. 26 actions.

    State (49,): the library's observation (46: joints of the hand, velocity of the hammer, palm,
    handle of the hammer and its angles, nail, force on it), then the hammer's head (3, its site
    "tool"), which it lacks: that is what drives the nail, and it swings while the handle stays
    where it is. Objects of interest and their geoms: `palm` all of the hand from the body "palm" to
    the fingertips (its position is the library's grasp point in the palm), `hammer` those of the
    body "Object" (handle, neck and head; its position is its head's), `nail` those of the body
    "nail" (its position is its head).

    Raises:
        UserError: For an unknown `obs` or `success`, and where pictures cannot be rendered.
    """

    def __init__(
        self, obs: str = "state", render_mode: str | None = None, success: str = "library"
    ) -> None:
        env = AdroitHandHammerEnv(reward_type="sparse")
        task = make_task(
            "adroit_hammer",
            ("palm", "hammer", "nail"),
            hammer_coordinates,
            125,
            ("hammer",),
            (0, 2),
            milestones={"hammer_lifted": hammer_lifted, "nail_moved": nail_moved},
            velocities=((27, 33),),
        )
        bodies = {"palm": "palm", "hammer": "Object", "nail": "nail"}
        parts = {name: geoms_under(env.model, body) for name, body in bodies.items()}
        view = free_camera((-0.05, -0.1, 0.13), distance=0.88, azimuth=25.0, elevation=-30.0)
        super().__init__(task, env, "nail_board", view, parts, 49, obs, render_mode, success)

    def _sample_joints(self) -> None:
        super()._sample_joints()
        rng, model = self.np_random, self.model
        x, y = rng.uniform(*TABLE)
        turn, tilt, roll = rng.uniform(-np.pi, np.pi, 3)
        height = rng.uniform(0.0, LIFT)
        if rng.random() < 0.5:  # it lies on the table
            height = tilt = roll = 0.0
        # Its frame lies on its side, so that it is slid and turned along x, upward, and against y.
        hammer = (x, height, model.body("Object").pos[1] - y, roll, turn, tilt / 2)
        first = model.joint("OBJTx").qposadr[0]
        self.data.qpos[first : first + len(hammer)] = hammer

    def _state(self) -> np.ndarray:
        return np.concatenate([self._obs, self.data.site("tool").xpos])

    def _objects(self) -> np.ndarray:
        return np.stack([self._obs[33:36], self.data.site("tool").xpos, self._obs[42:45]])

    def _succeeds(self, criterion: str) -> bool:
        nail, goal = (self.data.site(name).xpos for name in ("S_target", "nail_goal"))
        return bool(np.linalg.norm(nail - goal) < DRIVEN[criterion])
