"""Meta-World v3: a Sawyer arm with a gripper; any of its tasks by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import metaworld.env_dict
import numpy as np
import torch
from torch import Tensor

from perception.encoding import symlog
from vis_rpg.envs.tasks.base import MAX_TRIES
from vis_rpg.envs.tasks.mujoco_task import MujocoTask, free_camera, geoms_under
from vis_rpg.envs.tasks.task import Axes, Coverage, Milestone, Task, draw_box
from vis_rpg.errors import UserError, nearest

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

REPEAT = 2
"""Steps of the library that one action is held for."""
LENGTH = 100
"""Actions of an episode."""
HAND_STEPS, FALL_STEPS = 50, 10
"""Steps of the library in which a randomized reset moves the hand to its place, and lets objects
come to rest."""
OBSERVED = 39
"""Numbers of the library's own observation, which begin the state: hand (3), gripper opening (1),
objects (14), the same 18 of the library's step before, and the goal (3)."""
FIRST, SECOND = 4, 11
"""Where the positions of its first and second object begin."""
PADS = "leftpad_geom", "rightpad_geom"
REACH = 0.4
"""Scale of positions and distances in the encoding, in metres."""
LOW, HIGH = (-0.6, 0.3), (0.6, 1.0)
"""The part of the table top that drawings and coverage show, x and y in metres."""
NAMES = {
    "basketball-v3": ("metaworld_basketball", ("fingertips", "ball")),
    "stick-pull-v3": ("metaworld_stick_pull", ("fingertips", "stick", "handle")),
}
"""The paper's two tasks: Meta-World's name -> the word in `task=...` and the objects of interest.
"""
LIFTED = 0.06
"""Height of the middle of a ball or a stick that is off the table, in metres."""
STICK_END, HANDLE_START = np.array([0.05, 0.0, 0.0]), np.array([0.2, 0.6])
"""The stick's end as seen from its middle while the stick is not turned, and where the handle
starts in x and y, in metres."""


def inserted(at: np.ndarray) -> np.ndarray:
    """Positions (..., 3, 3) -> whether the stick is in the handle, as the library judges it (...).

    Turns of the stick, which positions do not show, are left out.
    """
    past = at[..., 1, :] + STICK_END - at[..., 2, :]
    return (past[..., 0] >= 0) & (abs(past[..., 1]) <= 0.04) & (abs(past[..., 2]) <= 0.06)


def handle_moved(at: np.ndarray) -> np.ndarray:
    """Positions (..., 3, 3) -> whether the handle is 5 cm or more from where it starts, (...)."""
    return np.linalg.norm(at[..., 2, :2] - HANDLE_START, axis=-1) > 0.05


MILESTONES: dict[str, dict[str, Milestone]] = {
    "basketball-v3": {"ball_lifted": lambda at: at[..., 1, 2] > LIFTED},
    "stick-pull-v3": {
        "stick_lifted": lambda at: at[..., 1, 2] > LIFTED,
        "stick_inserted": inserted,
        "handle_moved": handle_moved,
        "handle_moved_by_stick": lambda at: inserted(at) & handle_moved(at),
    },
}
VIEWS = {
    "basketball-v3": ((0.0, 0.7, 0.19), 0.85, 135.0, -30.0),
    "stick-pull-v3": ((0.15, 0.61, 0.1), 1.0, 135.0, -37.0),
}
"""Cameras as near as the task allows: what they look at, distance, azimuth and elevation. All
starts, goals and ways between them are seen; the hand can be driven out of the picture, to the far
corners of its range, where there is nothing to do."""
FAR = ((0.03, 0.65, 0.1), 1.1, 135.0, -35.0)
"""The camera of every other task: the whole table top."""


def one_object_coordinates(state: Tensor) -> Tensor:
    """State (..., 42) -> fingertips - object, the object, gripper opening: (..., 7, 1)."""
    tcp, first = state[..., OBSERVED:], state[..., FIRST : FIRST + 3]
    return _scaled(tcp - first, first, state[..., 3:4])


def two_object_coordinates(state: Tensor) -> Tensor:
    """State (..., 42) -> first - second, first - fingertips, gripper opening: (..., 7, 1)."""
    tcp, first, second = (
        state[..., OBSERVED:],
        state[..., FIRST : FIRST + 3],
        state[..., SECOND : SECOND + 3],
    )
    return _scaled(first - second, first - tcp, state[..., 3:4])


def _scaled(one: Tensor, two: Tensor, opening: Tensor) -> Tensor:
    return torch.cat([symlog(one / REACH), symlog(two / REACH), opening], -1)[..., None]


def touching(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> bool:
    """Whether both pads of the gripper press on a geom.

    The library's `touching_object` reads contacts one by one in Python, at a quarter of a
    decision's cost.
    """
    contact = data.contact
    held = (contact.geom == geom).any(1)
    pads = [contact.efc_address[held & (contact.geom == model.geom(pad).id).any(1)] for pad in PADS]
    return all(data.efc_force[rows].sum() > 0 for rows in pads)


def carrier(env: Any, index: int) -> int:
    """The body that the observed position of an object moves with.

    The joints of `env` (one of Meta-World's, at rest), its robot's aside, are moved a little, body
    by body; the deepest one whose own joint moves the position counts.

    Args:
        env: The library's environment.
        index: Of the object.

    Returns:
        The body's id.

    Raises:
        IndexError: Where no joint moves it; every task of the library has one that does.
    """

    def position() -> np.ndarray:
        return env._get_pos_objects()[3 * index : 3 * index + 3].copy()

    model, data = env.model, env.data
    robot, moving = model.body("base").id, []
    rest, still = position(), data.qpos.copy()
    for body in np.flatnonzero((model.body_rootid != robot) & (model.body_dofnum > 0)):
        velocity = np.zeros(model.nv)
        velocity[model.body_dofadr[body] :][: model.body_dofnum[body]] = 1e-3
        mujoco.mj_integratePos(model, data.qpos, velocity, 1.0)
        mujoco.mj_kinematics(model, data)
        if np.abs(position() - rest).max() > 1e-7:
            moving.append(int(body))
        data.qpos[:] = still
    mujoco.mj_kinematics(model, data)
    return moving[-1]  # children come after their parents


def make_task(name: str, objects: int) -> Task:
    """Declare Meta-World's task `name`, whose observation holds one or two `objects`."""
    word, names = NAMES.get(name, (name, ("fingertips", "object", "second object")[: 1 + objects]))

    def draw(axes: Axes) -> None:
        draw_box(axes, LOW, HIGH, "black")
        axes.plot(0.0, 0.6, marker="x", color="black")  # where the hand starts
        axes.set(
            xlim=(LOW[0] - 0.02, HIGH[0] + 0.02),
            ylim=(LOW[1] - 0.02, HIGH[1] + 0.02),
            aspect="equal",
        )

    object_coordinates = one_object_coordinates if objects == 1 else two_object_coordinates
    coverage = Coverage(names[1:], LOW, HIGH, (24, 14))
    return Task(
        word,
        names,
        object_coordinates,
        episode_length=LENGTH,
        sparse=True,
        velocities=((18, 36),),  # what the first 18 numbers were a step ago
        coverage=coverage,
        draw=draw,
        processes=True,
        milestones=MILESTONES.get(name, {}),
    )


class MetaWorld(MujocoTask):
    """Meta-World's task `name`, such as door-open-v3.

    An action (4,) moves the hand by up to 1 cm along x, y, z and sets the force that closes the
    gripper, for two of the library's steps (0.0125 s each). Every episode draws start and goal anew
    from the library's own distribution; the goal is in the state: the library's observation (39),
    then the point between the fingertips (3). The reward is 1 after every action at whose end the
    library's own `success` holds, else 0.

    Objects of interest and their geoms: `fingertips` is the body "hand" and all below it (rail,
    claws and pads; its position is the point between the pads' ends); an object is all geoms at or
    below the deepest body whose joint moves the object's observed position: for the ball those of
    "bsktball", for the stick those of "stick", for the handle those of "object", the thermos that
    it belongs to.

    Pictures show the library's grey sky: before a black one, the gripper's black wrist could not be
    seen.

    Raises:
        UserError: For an unknown `name` or `obs`, and where pictures cannot be rendered.
    """

    sky = True

    def __init__(
        self, name: str = "reach-v3", obs: str = "state", render_mode: str | None = None
    ) -> None:
        known = metaworld.env_dict.ALL_V3_ENVIRONMENTS
        if name not in known:
            raise UserError(
                f"task.name={name} is not one of Meta-World's tasks{nearest(name, known)}"
            )
        env: Any = known[name]()
        self._env = env
        # we hand it the random vector of a task, which is all that setting a task would do here
        env._set_task_called = True
        env._partially_observable = False
        del env.sawyer_observation_space  # cached with the goal hidden
        env.touching_object = partial(touching, env.model, env.data)
        self._pristine = env.model.body_pos.copy(), env.model.site_pos.copy()
        self._vector, self._obs, self._succeeded = np.zeros(0), np.zeros(OBSERVED), False
        self._objects_seen = env._get_pos_objects().size // 3
        task = make_task(name, self._objects_seen)
        view = free_camera(*VIEWS.get(name, FAR))
        parts = self._parts(task.object_names)
        scene, limits = f"metaworld {name}", np.full(OBSERVED + 3, np.inf)
        super().__init__(
            task,
            env.model,
            env.data,
            scene,
            view,
            parts,
            limits,
            obs,
            render_mode,
            actions=4,
            robot="base",
        )

    def _parts(self, names: tuple[str, ...]) -> dict[str, list[int]]:
        """For each object of interest the ids of its geoms."""
        env = self._env
        parts = {names[0]: geoms_under(env.model, "hand")}
        for index, name in enumerate(names[1:]):
            parts[name] = geoms_under(env.model, carrier(env, index))
        return parts

    def _start(self) -> None:
        env = self._env
        env.np_random, env.seeded_rand_vec, env._freeze_rand_vec = self.np_random, True, False
        self._restore()
        env._reset_hand = lambda *_: type(env)._reset_hand(
            env, 1
        )  # the hand moves to its place when the episode begins
        env.reset_model()  # draws until the library takes it
        del env._reset_hand
        self._begin(env._last_rand_vec.copy())

    def _restore(self) -> None:
        """Undo what an episode has changed in the model: the next depends on its vector alone."""
        self.model.body_pos[:], self.model.site_pos[:] = self._pristine
        mujoco.mj_resetData(self.model, self.data)

    def _begin(self, vector: np.ndarray) -> None:
        """Begin the episode that a random vector of the library stands for."""
        env = self._env
        self._vector = vector
        env._freeze_rand_vec, env._last_rand_vec = True, vector.copy()
        self._restore()
        self._obs, _ = env.reset()
        self._succeeded = False

    def _randomize(self) -> None:
        env, rng = self._env, self.np_random
        while True:
            hand = rng.uniform(env.mocap_low, env.mocap_high)
            if self._in_view(hand):
                break
        self._hold(env.hand_init_pos, -1.0, FALL_STEPS)  # some starts have things inside each other
        rest, grip = self.data.qpos.copy(), rng.uniform(-1, 1)
        self._hold(hand, grip, HAND_STEPS)
        reached, still, known = self.data.qpos.copy(), np.zeros(self.model.nv), self._collisions()
        for _ in range(MAX_TRIES):
            env.set_state(self._sample_qpos(reached, rest), still)
            if self._collisions() <= known and self._in_view(env._get_pos_objects().reshape(-1, 3)):
                break
        else:
            env.set_state(reached, still)
        self._hold(hand, grip, FALL_STEPS)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._obs, self._succeeded = env._get_obs(), False

    def _hold(self, hand: np.ndarray, grip: float, steps: int) -> None:
        """Pull the hand to a place (3,) with a gripper force in [-1, 1], for some library steps."""
        env, data = self._env, self.data
        for _ in range(steps):
            data.mocap_pos[:], data.mocap_quat[:] = hand, (1, 0, 1, 0)
            env.do_simulation([grip, -grip], env.frame_skip)

    def _sample_qpos(self, reached: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Coordinates with the robot as in `reached` and all else anywhere on the table.

        Objects are upright as at `rest`, at any turn; what has joints is anywhere in their ranges.
        """
        model, rng, qpos = self.model, self.np_random, reached.copy()
        for joint in np.flatnonzero(model.body_rootid[model.jnt_bodyid] != model.body("base").id):
            at = model.jnt_qposadr[joint]
            if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
                turn, angle = np.zeros(4), rng.uniform(-np.pi, np.pi)
                qpos[at : at + 2] = rng.uniform(LOW, HIGH)
                qpos[at + 2] = rest[at + 2]
                mujoco.mju_mulQuat(
                    turn,
                    np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]),
                    rest[at + 3 : at + 7],
                )
                qpos[at + 3 : at + 7] = turn
            elif model.jnt_limited[joint]:
                qpos[at] = rng.uniform(*model.jnt_range[joint])
        return qpos

    def _placed(self) -> tuple[list[int], list[int]]:
        moved = [
            np.flatnonzero((now != then).any(1)).tolist()
            for now, then in zip(
                (self.model.body_pos, self.model.site_pos), self._pristine, strict=True
            )
        ]
        return moved[0], moved[1]

    def _move(self, action: np.ndarray) -> float:
        env = self._env
        # Only the last step's success counts, and rewards cost more than physics.
        env.evaluate_state = lambda obs, action: (0.0, {})
        for _ in range(REPEAT - 1):
            env.step(action)
        del env.evaluate_state
        self._obs, _, _, _, info = env.step(action)
        self._succeeded = bool(info["success"])
        return 0.0

    def _success(self) -> bool:
        return self._succeeded

    def _state(self) -> np.ndarray:
        return np.concatenate([self._obs, self._env.tcp_center])

    def _objects(self) -> np.ndarray:
        objects = [self._obs[at : at + 3] for at in (FIRST, SECOND)[: self._objects_seen]]
        return np.stack([self._env.tcp_center, *objects])

    def _save(self) -> dict[str, Any]:
        library = {
            "vector": self._vector.copy(),
            "obs": self._obs.copy(),
            "before": self._env._prev_obs.copy(),
            "success": self._succeeded,
        }
        return super()._save() | library

    def _load(self, saved: dict[str, Any]) -> None:
        # All that the library keeps beside MuJoCo's state and the two observations follows from the
        # random vector: it begins anew from it.
        self._begin(np.array(saved["vector"], np.float64))
        super()._load(saved)
        self._env._prev_obs = np.array(saved["before"], np.float64)
        self._obs, self._succeeded = np.array(saved["obs"], np.float64), bool(saved["success"])
