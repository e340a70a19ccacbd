"""From the `task` and `obs` of a configuration to an environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from vis_rpg.envs import IDS
from vis_rpg.envs.corruption import CorruptedFrames
from vis_rpg.envs.partial import PartialState
from vis_rpg.envs.tasks.base import check_choice
from vis_rpg.envs.tasks.gym_task import make_gym
from vis_rpg.envs.tasks.mujoco_task import MujocoTask
from vis_rpg.envs.tasks.task import Declared, Task
from vis_rpg.errors import UserError, require

TASKS = (*IDS, "gym")
NOT_GIVEN = (
    "name",
    "family",
    "terminates",
    "kwargs",
    "hide",
    "noise",
    "corrupt",
    "shadows",
    "physics",
)
"""Keys of a task's configuration that its environment's constructor does not take."""


def make_env(
    task: Mapping[str, Any], obs: str, seed: int | None = None
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Make the environment of a task.

    Args:
        task: `name` (one of TASKS) and what the constructor of its environment takes besides `obs`:
            for block_push `blocks`, for gym `id` and, in `kwargs`, what `gymnasium.make` takes.
            Where there is a `family` (one of TASKS), that is made, and `name` says which of it.
            `hide` and `noise`, where given, are those of PartialState, `corrupt` the conditions of
            CorruptedFrames, `shadows` whether pictures show those that MuJoCo draws.
        obs: state | pixels.
        seed: Of its action space and of a first reset, so that later unseeded ones follow from it.

    Raises:
        UserError: For an unknown name, id, observation kind or argument; one line.
    """
    name, kwargs = (
        task["name"],
        {key: value for key, value in task.items() if key not in NOT_GIVEN}
        | dict(task.get("kwargs") or {}),
    )
    if "family" in task:
        name, kwargs["name"] = task["family"], name
    check_choice("task", name, TASKS)
    if name == "gym":
        require(
            bool(kwargs.get("id")),
            "task=gym needs an id, for example task.id=Pusher-v5",
        )
        env: gymnasium.Env[np.ndarray, np.ndarray] = make_gym(obs=obs, **kwargs)
    else:
        try:
            env = gymnasium.make(IDS[name], disable_env_checker=True, obs=obs, **kwargs)
        except TypeError as error:
            raise UserError(f"task={name}: {' '.join(str(error).split())}") from error
    if task.get("shadows"):
        require(
            isinstance(env.unwrapped, MujocoTask),
            f"render.shadows=true: task={name} is not drawn by a MuJoCo model of ours; a painted "
            "shadow is obs.corrupt=[shadow]",
        )
        env.unwrapped.shadows = True  # type: ignore[attr-defined]
    hide, noise = task.get("hide", ()), task.get("noise", 0.0)
    if hide or noise > 0:
        require(obs == "state", "obs.hide and obs.noise are of states: use obs=state")
        env = PartialState(env, hide, noise)
    if obs == "pixels" and (corrupt := task.get("corrupt")):
        env = CorruptedFrames(env, corrupt)
    if seed is not None:
        env.action_space.seed(seed)
        env.reset(seed=seed)
    return env


def observed_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `make_env` is given as the task of a whole config: with what other sections say."""
    seen = {key: config["obs"][key] for key in ("hide", "noise", "corrupt") if key in config["obs"]}
    return {**config["task"], **seen, "shadows": config["render"].get("shadows", False)}


def task_of(env: gymnasium.Env[Any, Any] | Declared) -> Task:
    """The declaration that an environment carries, whatever wraps it, or a vector env."""
    return env.get_wrapper_attr("task") if isinstance(env, gymnasium.Env) else env.task


def object_positions(info: Mapping[str, Any]) -> np.ndarray:
    """True positions of the objects of interest.

    Args:
        info: Of `reset` or `step`.

    Returns:
        (N, 2 or 3) float64, world units.
    """
    return np.asarray(info["objects"], np.float64)
