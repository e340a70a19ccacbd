"""What tasks share whose world is one MuJoCo model, our own or another library's: pictures, masks, and saving of the physical state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vis_rpg.envs.base import OwnTask
from vis_rpg.envs.coarse import coarse
from vis_rpg.envs.rendering import FRAME, Camera
from vis_rpg.envs.task import Task
from vis_rpg.errors import UserError

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_cameras: dict[tuple[str, int], Camera] = {}


def free_camera(lookat: tuple[float, float, float], distance: float, azimuth: float, elevation: float) -> Any:
    """A camera that belongs to no model: the point that it looks at and its distance from it in world units, its angles in degrees."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = lookat
    camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
    return camera


def geoms_under(model: Any, body: str | int) -> list[int]:
    """Ids of all geoms of a body, given by name or id, and of the bodies below it."""
    inside = np.zeros(model.nbody, bool)
    inside[model.body(body).id] = True
    for index in range(1, model.nbody):  # children come after their parents
        inside[index] |= inside[model.body_parentid[index]]
    return np.flatnonzero(inside[model.geom_bodyid]).tolist()


class MujocoTask(OwnTask):
    """A task on `self.model` and `self.data`.

    scene: a name for what the model looks like: tasks of the same name share one GL context a process, since switching contexts costs more
    than a small frame; view: the camera, by its name in the model or free-standing; parts: for each object of interest, in the order of
    the task's `object_names`, the names or ids of the geoms that make it up.
    Raises UserError for an unknown `obs`, for a part that the model does not have, and where pictures cannot be rendered.
    """

    # Measured on two cores: at 5 environments threads are 10% to 25% slower than a loop, also where a step takes 1 ms (Humanoid); at 40
    # they are 10% to 20% faster.
    threads_from = 16

    def __init__(
        self,
        task: Task,
        model: Any,
        data: Any,
        scene: str,
        view: str | Any,
        parts: Mapping[str, Sequence[str | int]],
        state_limits: np.ndarray,
        obs: str = "state",
        render_mode: str | None = None,
        actions: int | None = None,
        drawn: Any = None,
        squeeze: int = 1,
        robot: str | None = None,
    ) -> None:
        """actions: A, the model's actuators unless given; drawn: the model that pictures show in place of `model`, a copy of it whose
        geoms may differ in size; squeeze: of the Camera; robot: a body of fine meshes, which frames show coarser, it and all below it."""
        super().__init__(task, actions or model.nu, state_limits, obs, render_mode)
        self.model, self.data, self.scene, self.view = model, data, scene, view
        self.drawn, self.squeeze, self.robot = drawn or model, squeeze, robot
        labels = np.zeros(model.ngeom + 1, int)  # the last one for pixels without a geom, -1
        for index, name in enumerate(task.object_names):
            for part in parts[name]:
                try:
                    labels[model.geom(part).id] = index + 1
                except KeyError as error:
                    raise UserError(f"task={task.name}: its model has no geom {part!r} for the object {name!r}") from error
        self.labels = labels
        """(geoms + 1,) what each geom belongs to: 0 background, 1.. objects in order."""
        if obs == "pixels":
            self._camera(FRAME)

    def _camera(self, size: int) -> Camera:
        key = (self.scene, size)
        if key not in _cameras:
            drawn = self.drawn
            if size == FRAME and self.robot:
                drawn = coarse(drawn, geoms_under(drawn, self.robot))
            _cameras[key] = Camera(drawn, self.view, size, 0 if size == FRAME or self.squeeze > 1 else 4, self.squeeze)
        return _cameras[key]

    def _frame(self, size: int) -> np.ndarray:
        return self._camera(size).picture(self.data)

    def segmentation(self) -> np.ndarray:
        """What each pixel of the newest frame shows, for metrics only: (64, 64) int, 0 background, 1.. objects in order."""
        return self.labels[self._camera(FRAME).geoms(self.data)]

    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Where all geoms and, after them, all sites are, P together: positions (P, 3) and rotations (P, 9), in world units."""
        data = self.data
        return np.concatenate([data.geom_xpos, data.site_xpos]), np.concatenate([data.geom_xmat, data.site_xmat])

    def _save(self) -> dict[str, Any]:
        physics = np.empty(mujoco.mj_stateSize(self.model, PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, PHYSICS)
        return {"physics": physics}

    def _load(self, saved: dict[str, Any]) -> None:
        mujoco.mj_setState(self.model, self.data, np.array(saved["physics"], np.float64), PHYSICS)
        mujoco.mj_forward(self.model, self.data)
