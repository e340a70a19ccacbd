"""What moves in the model of a Gymnasium environment of MuJoCo, which names no objects itself.

Shapes: G geoms, N objects of interest.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vis_rpg.envs.rendering.frames import FRAME, Camera
from vis_rpg.errors import UserError, one_line

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

VIEW = "type", "fixedcamid", "trackbodyid", "lookat", "distance", "azimuth", "elevation"
"""What of Gymnasium's camera says where it looks; copied, since drawing moves one that follows."""

MOTORS = mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT
WELD = mujoco.mjtEq.mjEQ_WELD
HELD = 1e4
"""Damping from which a joint is fixed, as those under Fetch's base are."""
STARTS = 3
"""Resets that tell whether a marker lies elsewhere in another episode."""
SLIDES = mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE


class GymScene:
    """Objects of interest in a model and what each pixel of its picture shows.

    Of the trees of bodies that hang on the world, one without a motor is an object for each joint
    on what stands still (what is pushed, a door, a goal that a start places anew). Of a robot that
    moves about, its trunk is one; of one that is mounted, each last link (a link is what no joint
    divides). What nothing can touch and every start leaves in one place is background.

    Args:
        env: With `model` and `data` of MuJoCo.

    Attributes:
        names: Of the objects' bodies, (N,).

    Raises:
        UserError: The environment cannot be reset.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = cast(Any, env.unwrapped)
        self._view = mujoco.MjvCamera()
        model = self._env.model
        tree, link = model.body_rootid, model.body_weldid  # of each body; link 0 never moves
        by_joint = np.isin(model.actuator_trntype, MOTORS)
        driven = np.isin(np.arange(model.njnt), model.actuator_trnid[by_joint, 0])
        slides = np.isin(model.jnt_type, SLIDES)
        held = model.dof_damping[model.jnt_dofadr] >= HELD
        welded = (model.eq_type == WELD) & (model.eq_objtype == mujoco.mjtObj.mjOBJ_BODY)
        ends = np.stack([model.eq_obj1id, model.eq_obj2id])[:, welded]
        led = ends[:, (model.body_mocapid[ends] >= 0).any(0)]  # by a hand that is set from outside
        robots = np.union1d(tree[model.jnt_bodyid[driven]], tree[led])
        mobile = model.jnt_bodyid[slides & ~driven & ~held]
        carriers = link[model.body_parentid[np.unique(link)]]
        objects: list[tuple[int, NDArray[np.bool_]]] = []
        first = np.zeros(model.nbody, int)  # of the links that carry a body, the one on the world
        for body in range(1, model.nbody):  # children come after their parents
            first[body] = first[model.body_parentid[body]] or link[body]
        for root in np.unique(tree[model.jnt_bodyid]):
            if root not in robots:
                for own in np.setdiff1d(first[tree == root], 0):
                    if self._touchable(first == own) or self._starts_differ(env, own):
                        objects.append((own, first == own))
            elif root in mobile:
                objects.append((root, link == root))
            else:
                for last in np.setdiff1d(link[tree == root], [0, *carriers]):
                    objects.append((np.flatnonzero(link == last)[-1], link == last))
        labels = np.zeros(model.ngeom + 1, np.int64)
        for index, (_, bodies) in enumerate(objects):
            labels[:-1][bodies[model.geom_bodyid]] = index + 1
        robot = (np.isin(tree, robots) & (link > 0))[model.geom_bodyid] & (labels[:-1] == 0)
        self._labels = labels, labels + (len(objects) + 1) * np.append(robot, False)
        self._bodies = [int(body) for body, _ in objects]
        self.names = tuple(model.body(body).name or f"body_{body}" for body in self._bodies)

    def _touchable(self, bodies: NDArray[np.bool_]) -> bool:
        """Tell whether any of these bodies (bodies,) can collide."""
        geoms = bodies[self._env.model.geom_bodyid]
        touch = self._env.model.geom_contype | self._env.model.geom_conaffinity
        return bool(touch[geoms].any())

    def _starts_differ(self, env: gymnasium.Env[Any, Any], body: int) -> bool:
        """Tell whether a body lies elsewhere after another reset."""
        places = []
        for seed in range(STARTS):
            try:
                env.reset(seed=seed)
            except Exception as error:  # an environment may fail in any way of its own
                id = env.spec.id if env.spec else "this environment"
                raise UserError(f"task.id={id} cannot be reset: {one_line(error)}") from error
            places.append(self._env.data.xpos[body].copy())
        return bool(np.ptp(places, axis=0).max() > 1e-6)

    def positions(self) -> NDArray[np.float64]:
        """Return where the objects' bodies are, (N, 3), world units."""
        return np.array(self._env.data.xpos[self._bodies])

    def segmentation(self, whole: bool = False) -> NDArray[np.int64]:
        """Tell what each pixel of the newest frame shows, for metrics only.

        Args:
            whole: Also label what else moves of robots, N + 1.

        Returns:
            (64, 64), 0 background, 1..N objects in order.
        """
        seen = self._env.mujoco_renderer._get_viewer("rgb_array").cam
        for name in VIEW:
            setattr(self._view, name, getattr(seen, name))
        return self._labels[whole][self._camera.geoms(self._env.data)]

    @cached_property
    def _camera(self) -> Camera:
        # Of a copy: cameras set how their model is drawn.
        return Camera(copy.copy(self._env.model), self._view, FRAME, 0)
