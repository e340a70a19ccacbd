"""Environments whose physics MuJoCo Warp takes together, on a GPU if there is one.

Everything else of them stays on the host: how episodes start, success, and what is observed. So
the interface, checkpoints and whoever renders are those of `SyncVectorEnv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from vis_rpg.envs.rendering.batch import BatchRenderer
from vis_rpg.envs.tasks.mujoco_task import MujocoTask
from vis_rpg.envs.vector.sync import SyncVectorEnv
from vis_rpg.errors import UserError, require

CONTACTS, CONSTRAINTS = 48, 256
"""Room for each world's contacts, and for rows of its constraints."""
CARRIED = ("qpos", "qvel", "qacc_warmstart")
"""What one substep leaves to the next; `ctrl` is given."""


class WarpPhysics:
    """The physics of N worlds of one model, in float32.

    Trajectories are those of MuJoCo to about 1e-6 a step, and to 1e-3 where a contact begins or
    ends within it.

    Args:
        model: Of each world.
        worlds: N.
        substeps: Taken in one call.
        device: Of Warp ("cpu", "cuda:1"), by default the GPU if there is one.

    Raises:
        UserError: Where mujoco-warp is missing, for an unknown device, and for a model of which it
            does not know something.
    """

    def __init__(
        self, model: mujoco.MjModel, worlds: int, substeps: int, device: str | None = None
    ) -> None:
        try:
            import warp as wp

            vars(wp.config).update(quiet=True, log_level=40)  # older and newer Warp
            import mujoco_warp
        except ImportError as error:
            raise UserError(
                f"task.physics=warp needs mujoco-warp ({error}): pip install 'vis-rpg[warp]', or "
                "task.physics=mujoco"
            ) from error
        self._wp, self._step, self._substeps = wp, mujoco_warp.step, substeps
        try:
            self.device = wp.get_device(device)
            with wp.ScopedDevice(self.device):
                self._model = mujoco_warp.put_model(model)
                self._data = mujoco_warp.put_data(
                    model, mujoco.MjData(model), worlds, nconmax=CONTACTS, njmax=CONSTRAINTS
                )
                self._graph = self._captured() if self.device.is_cuda else None
        except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"task.physics=warp: {' '.join(str(error).split())}; take task.physics=mujoco"
            ) from error

    def step(self, worlds: Sequence[mujoco.MjData]) -> None:
        """Take the substeps of all worlds (N), from what they hold and into them."""
        wp = self._wp
        with wp.ScopedDevice(self.device):
            for name in (*CARRIED, "ctrl"):
                values = np.stack([getattr(each, name) for each in worlds])
                getattr(self._data, name).assign(values.astype(np.float32))
            if self._graph is None:
                self._advance()
            else:
                wp.capture_launch(self._graph)
            for name in CARRIED:
                for each, values in zip(worlds, getattr(self._data, name).numpy(), strict=True):
                    getattr(each, name)[:] = values
        for each in worlds:
            each.time += self._substeps * each.model.opt.timestep

    def _advance(self) -> None:
        for _ in range(self._substeps):
            self._step(self._model, self._data)

    def _captured(self) -> Any:
        """The substeps as a CUDA graph; the first ones compile."""
        self._advance()
        with self._wp.ScopedCapture() as capture:
            self._advance()
        return capture.graph


class WarpVectorEnv(SyncVectorEnv):
    """Environments in this process, whose physics moves together (`WarpPhysics`).

    Args:
        make: Index -> environment, each a MujocoTask.
        count: N environments.
        seed: As of VectorEnv.
        renderer: As of VectorEnv.

    Raises:
        UserError: Where the task's physics is its library's, and as `WarpPhysics`.
    """

    def __init__(
        self,
        make: Callable[[int], gymnasium.Env[np.ndarray, np.ndarray]],
        count: int,
        seed: int,
        renderer: BatchRenderer | None = None,
    ) -> None:
        super().__init__(make, count, seed, renderer)
        self._tasks = [env for env in self.envs if isinstance(env, MujocoTask) and env.substeps]
        require(
            len(self._tasks) == count,
            f"task.physics=warp: not for task={self.task.name} with these settings; take "
            "task.physics=mujoco",
        )
        first = self._tasks[0]
        self._physics = WarpPhysics(first.model, count, first.substeps)
        self._own = list(self._tasks)
        self.stepped_in = f"Warp on {self._physics.device}"

    def _send(self, actions: np.ndarray) -> None:
        for task, action in zip(self._tasks, actions, strict=True):
            task.push(action)
        self._physics.step([task.data for task in self._tasks])
        for task in self._tasks:
            task.settle()
