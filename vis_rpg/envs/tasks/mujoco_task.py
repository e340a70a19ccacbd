"""What tasks share whose world is one MuJoCo model: pictures, masks, and saving of the physics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vis_rpg.envs.rendering.decimate import decimate_meshes
from vis_rpg.envs.rendering.frames import FRAME, Camera
from vis_rpg.envs.tasks.base import MAX_PENETRATION, BaseTask
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
EDGE = 0.1
"""Share of a picture's half width, at its rim, in which a randomized reset puts nothing."""
_cameras: dict[tuple[str, int, bool], Camera] = {}


def free_camera(
    lookat: tuple[float, float, float], distance: float, azimuth: float, elevation: float
) -> mujoco.MjvCamera:
    """Make a camera that belongs to no model.

    Args:
        lookat: The point that it looks at, world units.
        distance: From that point.
        azimuth: Degrees.
        elevation: Degrees.
    """
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = lookat
    camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
    return camera


def geoms_under(model: mujoco.MjModel, body: str | int) -> list[int]:
    """Ids of all geoms of a body, given by name or id, and of the bodies below it."""
    inside = np.zeros(model.nbody, bool)
    inside[model.body(body).id] = True
    for index in range(1, model.nbody):  # children come after their parents
        inside[index] |= inside[model.body_parentid[index]]
    return np.flatnonzero(inside[model.geom_bodyid]).tolist()


class MujocoTask(BaseTask):
    """A task on `self.model` and `self.data`."""

    # Measured on two cores: at 5 environments threads are 10% to 25% slower than a loop, also where
    # a step takes 1 ms (Humanoid); at 40 they are 10% to 20% faster.
    threads_from = 16
    sky = False
    """Whether pictures show the model's sky, which costs a little, or black."""
    shadows = False
    """Whether pictures show shadows."""
    substeps = 0
    """Steps of the physics in one of the agent's, where those of many environments may be taken
    together (`push`, `settle`); 0 where they may not."""

    def __init__(
        self,
        task: Task,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        scene: str,
        view: str | mujoco.MjvCamera,
        parts: Mapping[str, Sequence[str | int]],
        state_limits: np.ndarray,
        obs: str = "state",
        render_mode: str | None = None,
        actions: int | None = None,
        render_model: mujoco.MjModel | None = None,
        anamorphic: int = 1,
        robot: str | None = None,
    ) -> None:
        """Find the parts of the model.

        Args:
            task: The declaration.
            model: The MjModel.
            data: Its MjData.
            scene: A name for what the model looks like: tasks of the same name share one GL context
                a process, since switching contexts costs more than a small frame.
            view: The camera, by its name in the model or free-standing.
            parts: For each object of interest the names or ids of the geoms that make it up.
            state_limits: As of BaseTask.
            obs: state | pixels.
            render_mode: Gymnasium's.
            actions: A, the model's actuators unless given.
            render_model: What pictures show in place of `model`, a copy whose geoms may differ in
                size.
            anamorphic: Of the Camera.
            robot: A body of fine meshes, which frames show coarser, it and all below it.

        Raises:
            UserError: For an unknown `obs`, for a part that the model does not have, and where
                pictures cannot be rendered.
        """
        super().__init__(task, actions or model.nu, state_limits, obs, render_mode)
        self.model, self.data, self.scene, self.view = model, data, scene, view
        self._render_model, self.anamorphic, self.robot = render_model or model, anamorphic, robot
        labels = np.zeros(model.ngeom + 1, int)  # the last one for pixels without a geom, -1
        for index, name in enumerate(task.object_names):
            for part in parts[name]:
                try:
                    labels[model.geom(part).id] = index + 1
                except KeyError as error:
                    raise UserError(
                        f"task={task.name}: its model has no geom {part!r} for the object {name!r}"
                    ) from error
        self.labels = labels
        """(geoms + 1,) what each geom belongs to: 0 background, 1.. objects in order."""
        if obs == "pixels":
            self._camera(FRAME)

    def _camera(self, size: int) -> Camera:
        key = (self.scene, size, self.shadows)
        if key not in _cameras:
            _cameras[key] = Camera(
                self.render_model(size),
                self.view,
                size,
                0 if size == FRAME or self.anamorphic > 1 else 4,
                self.anamorphic,
                self.sky,
                self.shadows,
            )
        return _cameras[key]

    def render_model(self, size: int) -> mujoco.MjModel:
        """The model that pictures of this size show: in frames the robot's meshes are coarser."""
        return (
            decimate_meshes(self._render_model, geoms_under(self._render_model, self.robot))
            if size == FRAME and self.robot
            else self._render_model
        )

    def _frame(self, size: int) -> np.ndarray:
        return self._camera(size).render(self.data)

    def segmentation(self, whole: bool = False) -> np.ndarray:
        """What each pixel of the newest frame shows, for metrics only.

        Args:
            whole: Also label what else of the robot moves, N + 1, and every other thing that
                physics can move or that an episode's start places anew, goal markers included, N +
                2 and on; 0 is then what never changes.

        Returns:
            (64, 64) int, 0 background, 1..N objects in order.
        """
        camera = self._camera(FRAME)
        shown = camera.geoms(self.data)
        labels = self.labels[shown]
        if not whole:
            return labels
        geoms, sites = self._whole_labels
        labels = geoms[shown]
        return (
            np.where(labels == 0, sites[camera.sites(self.data)], labels) if sites.any() else labels
        )

    @cached_property
    def _whole_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels of `segmentation(whole=True)`, of geoms (geoms + 1,) and of sites (sites + 1,).

        The last ones are for neither. A thing is all that hangs on one child of the world. A marker
        on an object of interest has no label: the object is seen through it.
        """
        model, objects = self.model, len(self.task.object_names)
        bodies, sites = self._placed()
        changes = model.body_weldid != 0  # joints are between it and the world
        for body in range(1, model.nbody):  # children come after their parents
            changes[body] |= body in bodies or changes[model.body_parentid[body]]
        robot = model.body(self.robot).rootid[0] if self.robot else -1
        geoms, markers = self.labels.copy(), np.zeros(model.nsite + 1, int)
        things = [
            robot
        ]  # what has a label after the objects of interest, in order, by the body that it hangs on

        def label(root: int) -> int:
            if root not in things:
                things.append(root)
            return objects + 1 + things.index(root)

        for geom in np.flatnonzero((geoms[:-1] == 0) & changes[model.geom_bodyid]):
            geoms[geom] = label(int(model.body_rootid[model.geom_bodyid[geom]]))
        of_objects = set(model.geom_bodyid[self.labels[:-1] > 0])
        for site, body in enumerate(model.site_bodyid):
            if body in of_objects:
                continue
            if changes[body]:
                markers[site] = label(int(model.body_rootid[body]))
            elif site in sites:
                markers[site] = label(-2 - site)  # a thing of its own
        return geoms, markers

    def _placed(self) -> tuple[list[int], list[int]]:
        """Ids of the bodies and of the sites that an episode's start places anew in the model."""
        return [], []

    def _collisions(self) -> set[tuple[int, ...]]:
        """Pairs of geoms deeper inside each other than MAX_PENETRATION, after mj_forward."""
        contact = self.data.contact
        return {tuple(pair) for pair in contact.geom[contact.dist < -MAX_PENETRATION].tolist()}

    def _in_view(self, points: np.ndarray) -> bool:
        """Whether points (..., 3) lie in the free-standing camera's picture, EDGE from its rim."""
        camera: Any = self.view
        azimuth, elevation = np.radians([camera.azimuth, camera.elevation])
        flat = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        forward, right = (
            flat * np.cos(elevation) + [0.0, 0.0, np.sin(elevation)],
            np.array([flat[1], -flat[0], 0.0]),
        )
        away = points - camera.lookat
        depth = away @ forward + camera.distance
        across = np.abs(away @ np.stack([right, np.cross(right, forward)], 1)).max(-1)
        return bool(
            (
                across < (1 - EDGE) * depth * np.tan(np.radians(self.model.vis.global_.fovy) / 2)
            ).all()
        )

    def _move(self, action: np.ndarray) -> float:
        self._push(action)
        mujoco.mj_step(self.model, self.data, self.substeps)
        return self._settle()

    def _push(self, action: np.ndarray) -> None:
        """Set what drives the physics, of a task with `substeps`."""
        raise NotImplementedError

    def _settle(self) -> float:
        """Do what follows the physics, likewise; the reward where the task is not sparse."""
        raise NotImplementedError

    def push(self, action: np.ndarray) -> None:
        """Begin a step (A,) whose physics someone else takes: `substeps` of `data`."""
        self._push(self._clipped(action))

    def settle(self) -> None:
        """End it; `outcome` then tells what came of it."""
        self._reward = self._settle()
        self._steps += 1

    def geom_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Where all geoms and, after them, all sites are, P together.

        Returns:
            Positions (P, 3) and rotations (P, 9), in world units.
        """
        data = self.data
        return np.concatenate([data.geom_xpos, data.site_xpos]), np.concatenate(
            [data.geom_xmat, data.site_xmat]
        )

    def _save(self) -> dict[str, Any]:
        physics = np.empty(mujoco.mj_stateSize(self.model, PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, PHYSICS)
        return {"physics": physics}

    def _load(self, saved: dict[str, Any]) -> None:
        mujoco.mj_setState(self.model, self.data, np.array(saved["physics"], np.float64), PHYSICS)
        mujoco.mj_forward(self.model, self.data)
