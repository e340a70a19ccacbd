"""Cabinet: an arm opens the two doors of a cabinet.

For a sparse reward with a fixed base, for a dense one with a moving base.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vis_rpg.envs.rendering.sapien import RenderScene, read_urdf, render_scenes, sapien_for
from vis_rpg.envs.tasks.base import MAX_PENETRATION, MAX_TRIES, BaseTask
from vis_rpg.envs.tasks.task import Axes, Coverage, Milestone, Task
from vis_rpg.resources import ASSETS

FILES = (ASSETS / "cabinet" / "robot.urdf", ASSETS / "cabinet" / "cabinet.urdf")
SUBSTEPS = 20
TIMESTEP = 0.005
"""Seconds of a substep; a control step is 20 of them, 0.1 s."""
DISTANCE = 1.1
"""From the middle of the robot's base to the handles, in metres. The arm stands at the base's front
edge, 0.45 m ahead of its middle: the fingertips of a Panda reach 0.92 m from its shoulder."""
BASE = ("base_x", "base_y", "base_turn")
ARM = tuple(f"joint{number}" for number in range(1, 8))
FINGERS = ("finger_joint1", "finger_joint2")
SPEED = {**dict.fromkeys(BASE, 0.6), **dict.fromkeys(ARM, 2.0), **dict.fromkeys(FINGERS, 0.1)}
"""Of a joint at action 1: m/s of the base in x and y and of the fingers, rad/s of its turn and of
the arm."""
EFFORT = {
    **dict.fromkeys(BASE, 500.0),
    **dict.fromkeys(ARM[:4], 87.0),
    **dict.fromkeys(ARM[4:], 12.0),
    **dict.fromkeys(FINGERS, 20.0),
}
"""What a joint's motor can give at most, N or Nm; a Panda's for its joints."""
GAIN = {
    **dict.fromkeys(BASE, 5000.0),
    **dict.fromkeys(ARM[:4], 500.0),
    **dict.fromkeys(ARM[4:], 50.0),
    **dict.fromkeys(FINGERS, 500.0),
}
"""Effort per unit of error in a joint's velocity."""
START = dict(
    zip(
        ("base_y", *ARM, *FINGERS),
        (0.25, 0.0, -0.7265, 0.0, -2.6675, 0.0, 3.5118, np.pi / 4, 0.02, 0.02),
        strict=True,
    )
)
"""Joints that do not start at 0. The gripper points at the cabinet 0.2 m before the handles; a base
that moves is 0.25 m to the left."""
OPEN = np.pi / 2
"""The range of a door's hinge, rad."""
SPARSE_SHARE, DENSE_SHARE, AJAR_SHARE = 0.72, 0.9, 0.1
"""The share of its range beyond which a door is open, in the two tasks, and ajar."""
TIP = (0.0, 0.0, 0.1034)
"""The point between the fingertips, in the hand's frame."""
HANDLES = ((-0.08, -0.32, 0.0), (-0.08, 0.32, 0.0))
"""The middle of each handle, in its door's frame."""
HINGES = np.array([[0.08, 0.42], [0.08, -0.42]])
"""Of the left and the right door, x and y in metres."""
HEIGHT = 0.7
"""Of the handles above the floor, in metres."""
NAMES = ("gripper", "left door", "right door")
LABELS = {"hand": 1, "leftfinger": 1, "rightfinger": 1, "left_door": 2, "right_door": 3}
"""Which object of interest a link belongs to."""
ROBOT = (
    "rail_x",
    "rail_y",
    "base",
    *(f"link{number}" for number in range(1, 8)),
    "hand",
    "leftfinger",
    "rightfinger",
)
"""The robot's links, each after the joint that carries it."""
SPREAD = dict(
    zip(
        (*BASE, *ARM, *FINGERS),
        (0.3, 0.6, 0.8, 1.0, 0.8, 0.8, 1.0, 1.5, 1.5, 1.5, 0.02, 0.02),
        strict=True,
    )
)
"""How far from where it starts a joint may be in a randomized scene, rad or m, within its range."""
SEEN = np.array([[-0.9, -0.7, 0.2], [0.1, 0.7, 1.2]])
"""The corners of the space in which the end effector is then: near the cabinet, and in the picture.
"""
EYE, TARGET, FOVY = (-1.45, 0.0, 2.55), (-0.4, 0.0, 0.45), 0.7
"""The camera, behind and above the robot: its place and what it looks at, in metres, and its
vertical field of view, rad."""


@cache
def _builder(path: Path, held: tuple[str, ...]) -> Any:
    return read_urdf(path, drawn=False, group=1 + FILES.index(path), fixed=held)


def object_coordinates(state: Tensor) -> Tensor:
    """State (..., S) -> end effector's x, y, z and both door angles, (..., 5, 1), in [-1, 1]."""
    x, y, z, left, right = state[..., :5].unbind(-1)
    return torch.stack([x, y, z - HEIGHT, left / OPEN, right / OPEN], -1).unsqueeze(-1)


def draw(axes: Axes) -> None:
    """The cabinet from above, its doors' range, and the robot's base, in world units."""
    (front, half), width = HINGES[0], 0.41  # of a door
    back = front + 0.34
    axes.plot([front, back, back, front], [half, half, -half, -half], color="black")
    for (x, y), colour in zip(HINGES, ("tab:green", "tab:blue"), strict=True):
        side, angle = np.sign(y), np.linspace(0, OPEN, 30)
        arc = x - width * np.sin(angle), y - side * width * np.cos(angle)
        axes.plot(*arc, color=colour, linewidth=1)
        axes.plot([x, x], [y, y - side * width], color=colour)
    axes.plot(-DISTANCE, 0, marker="x", color="black")
    axes.set(xlim=(-1.3, 0.5), ylim=(-0.9, 0.9), aspect="equal")


def opened(at: np.ndarray) -> np.ndarray:
    """Positions (..., 3, 3) -> how far both doors are open, as shares of their range (..., 2)."""
    forward, across = np.moveaxis((HINGES - at[..., 1:, :2]) * [[1, 1], [1, -1]], -1, 0)
    return (np.arctan2(forward, across) - np.arctan2(-HANDLES[0][0], -HANDLES[0][1])) / OPEN


def make_task(name: str, sparse: bool) -> Task:
    """The declaration.

    Coverage is counted along x alone, where a door's handle comes forward by 0.33 m of the grid's
    1.2 as it opens.
    """

    def beyond(door: int, share: float) -> Milestone:
        return lambda at: opened(at)[..., door] > share

    coverage = Coverage(NAMES[1:], (-0.9, -0.9), (0.3, 0.9), (24, 1))
    return Task(
        name,
        NAMES,
        object_coordinates,
        state_scale=0.2,
        episode_length=60,
        sparse=sparse,
        coverage=coverage,
        draw=draw,
        processes=True,
        milestones={
            f"{side}_door_{how}": beyond(door, share)
            for door, side in enumerate(("left", "right"))
            for how, share in (("ajar", AJAR_SHARE), ("open", SPARSE_SHARE))
        },
    )


class Cabinet(BaseTask):
    """What both tasks share.

    An action is the velocity of each joint, as a share of its largest, held for 0.1 s.

    Velocities, not position targets: they leave nothing behind but positions and velocities, which
    the state shows, so the task is Markov; and random actions then add up to a walk of the joints,
    which alone carries the hand over decimetres in an episode. Gravity is left out: an arm's
    controller cancels it, and the hinges are upright. The arm does not collide with itself. State:
    x, y, z of the end effector (m), angles and angular velocities of the left and the right door
    (rad, rad/s), positions and velocities of the robot's joints, in the order of the actions: base
    (x, y, turn) where it moves, arm, fingers.

    PhysX carries contacts from step to step in caches that it neither shows nor takes. So each
    episode begins in a new scene, and what is saved is the episode's start and its actions so far,
    which are carried out again when it is restored.

    Raises:
        UserError: For an unknown `obs`, without SAPIEN, and for pictures without a Vulkan device.
    """

    def __init__(
        self, task: Task, id: str, held: tuple[str, ...], obs: str, render_mode: str | None
    ) -> None:
        """held: joints of the base that do not move."""
        self._names = tuple(name for name in (*BASE, *ARM, *FINGERS) if name not in held)
        end = 7 + len(self._names)
        declared = replace(task, velocities=((5, 7), (end, end + len(self._names))))
        limits = np.full(end + len(self._names), np.inf)
        super().__init__(declared, len(self._names), limits, obs, render_mode)
        self._id, self._held, self._sapien = id, held, sapien_for(id)
        self._links = ROBOT[len(held) :]
        """Links of the robot that move: a base whose joints are held does not."""
        self._speed = np.array([SPEED[name] for name in self._names])
        self._scene: Any = None
        self._began: dict[str, np.ndarray] = {}
        self._actions: list[np.ndarray] = []
        if obs == "pixels":
            self._render_scene()

    def _render_scene(self) -> RenderScene:
        if "cabinet" not in render_scenes:
            render_scenes["cabinet"] = RenderScene(self._id, FILES, EYE, TARGET, FOVY)
        return render_scenes["cabinet"]

    def _start(self) -> None:
        self._begin(
            {
                "robot": np.array([START.get(name, 0.0) for name in self._names]),
                "doors": np.zeros(2),
            }
        )

    def _randomize(self) -> None:
        rng = self.np_random
        middle, spread = (
            np.array([share.get(name, 0.0) for name in self._names]) for share in (START, SPREAD)
        )
        low, high = self._robot.qlimits.T
        for _ in range(MAX_TRIES):
            robot = np.clip(middle + spread * rng.uniform(-1, 1, len(middle)), low, high)
            start = {"robot": robot, "doors": rng.uniform(0.0, OPEN, 2)}
            self._begin(start)
            if (
                (SEEN[0] < self._objects()[0]) & (self._objects()[0] < SEEN[1])
            ).all() and self._sound():
                return self._begin(start)
        self._start()

    def _sound(self) -> bool:
        """Whether nothing is deeper inside another thing than MAX_PENETRATION.

        It takes a substep to be told, after which the scene is spent.
        """
        self._scene.physx_system.step()
        points = [point for contact in self._scene.get_contacts() for point in contact.points]
        return all(point.separation > -MAX_PENETRATION for point in points)

    def _begin(self, start: dict[str, np.ndarray]) -> None:
        """Make a new scene at rest, with the robot's joints and the doors at `start`."""
        self._began, self._actions = start, []
        physics = self._sapien.physx.PhysxCpuSystem()
        physics.timestep = TIMESTEP
        self._scene = self._sapien.Scene([physics])
        self._robot, self._cabinet = (self._build(path) for path in FILES)
        self._robot.set_root_pose(self._sapien.Pose([-DISTANCE, 0, 0]))
        self._robot.set_qpos(start["robot"].astype(np.float32))
        self._cabinet.set_qpos(start["doors"].astype(np.float32))
        self._joints = self._robot.active_joints
        for joint in self._joints:
            joint.set_drive_properties(0.0, GAIN[joint.name], EFFORT[joint.name])
        self._hand = self._robot.find_link_by_name("hand")
        self._doors = [
            self._cabinet.find_link_by_name(f"{side}_door") for side in ("left", "right")
        ]

    def _build(self, path: Path) -> Any:
        articulation = _builder(path, self._held).set_scene(self._scene).build(fix_root_link=True)
        for link in articulation.links:
            link.disable_gravity = True
        return articulation

    def _move(self, action: np.ndarray) -> float:
        self._actions.append(action)
        for joint, velocity in zip(self._joints, action * self._speed, strict=True):
            joint.set_drive_velocity_target(velocity)
        for _ in range(SUBSTEPS):
            self._scene.physx_system.step()
        return 0.0

    def _shares(self) -> np.ndarray:
        """(2,) how far the left and the right door are open, as shares of their range."""
        return self._cabinet.qpos / OPEN

    def _objects(self) -> np.ndarray:
        tip = self._hand.entity_pose * self._sapien.Pose(TIP)
        handles = [
            door.entity_pose * self._sapien.Pose(at)
            for door, at in zip(self._doors, HANDLES, strict=True)
        ]
        return np.stack([pose.p for pose in (tip, *handles)]).astype(np.float64)

    def _state(self) -> np.ndarray:
        robot, doors = self._robot, self._cabinet
        return np.concatenate([self._objects()[0], doors.qpos, doors.qvel, robot.qpos, robot.qvel])

    def _poses(self) -> list[Any]:
        return [
            link.entity_pose
            for articulation in (self._robot, self._cabinet)
            for link in articulation.links
        ]

    def _frame(self, size: int) -> np.ndarray:
        return self._render_scene().render(self._poses(), size)

    def segmentation(self, whole: bool = False) -> np.ndarray:
        """What each pixel of the newest frame shows, for metrics only.

        Args:
            whole: Also label what else of the robot moves, N + 1, so that 0 is what never changes.

        Returns:
            (64, 64) int, 0 background, 1..N objects in order.
        """
        scene = self._render_scene()
        labels = {**dict.fromkeys(self._links, len(NAMES) + 1), **LABELS} if whole else LABELS
        return scene.labels(labels)[scene.segmentation(self._poses())]

    def _save(self) -> dict[str, Any]:
        return {**self._began, "actions": np.array(self._actions).reshape(-1, len(self._names))}

    def _load(self, saved: dict[str, Any]) -> None:
        self._begin({key: np.array(saved[key], np.float64) for key in ("robot", "doors")})
        for action in np.array(saved["actions"], np.float64):
            self._move(action)

    def close(self) -> None:
        """Free the scene of the physics; the scene stays, for other environments."""
        self._scene = self._robot = self._cabinet = self._hand = None
        self._joints, self._doors = [], []


class CabinetSparse(Cabinet):
    """The arm stands still, 9 actions.

    Success, and reward 1, while both doors are beyond 0.72 of their range. See `Cabinet`.
    """

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(
            make_task("cabinet_sparse", sparse=True),
            "vis_rpg/CabinetSparse-v0",
            BASE,
            obs,
            render_mode,
        )

    def _success(self) -> bool:
        return bool((self._shares() > SPARSE_SHARE).all())


class CabinetDense(Cabinet):
    """The base moves too, 12 actions.

    Success while the right door is fully open, at 0.9 of its range. See `Cabinet`.

    Reward: the sum of the doors' opened shares of that, + 2 while the right door is fully open, + 1
    while the left one is, - 2 x the distance (m) from the end effector to the nearer handle. The
    robot starts nearer the left door, the one that is worth less.
    """

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(
            make_task("cabinet_dense", sparse=False),
            "vis_rpg/CabinetDense-v0",
            (),
            obs,
            render_mode,
        )

    def _success(self) -> bool:
        return bool(self._shares()[1] >= DENSE_SHARE)

    def _move(self, action: np.ndarray) -> float:
        super()._move(action)
        left, right = np.clip(self._shares() / DENSE_SHARE, 0.0, 1.0)
        tip, *handles = self._objects()
        distance = min(np.linalg.norm(handle - tip) for handle in handles)
        return float(left + right + 2 * (right >= 1) + (left >= 1) - 2 * distance)
