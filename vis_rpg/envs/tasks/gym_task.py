"""Any Gymnasium id with a Box action space as a task, from its state or from its pictures."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import distributions
from typing import Any

import cv2
import gymnasium
import numpy as np

from vis_rpg.envs.rendering.frames import FRAME, FrameStack, check_gl, mend_gymnasium_viewers, rgb
from vis_rpg.envs.tasks.base import OBSERVATIONS, check_choice, frames_space
from vis_rpg.envs.tasks.gym_scene import GymScene
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import RunStopped, UserError, nearest, one_line, require

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

DEFAULT_LENGTH = 1000
"""Steps of an episode where the id sets no limit."""
API = (
    "Gymnasium's API is wanted: reset(seed=..., options=...) returns (observation, info), and "
    "step(action) returns "
    "(observation, reward, terminated, truncated, info)"
)


class GymTask(gymnasium.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """The outermost wrapper of a Gymnasium environment.

    Actions (A,) in [-1, 1]; observations (S,) float32 or (2, 64, 64, 3) uint8. Its physical state
    cannot be saved: a resumed run drops the running episode. Objects are what moves in a model of
    MuJoCo (`segmentation` tells where frames show them); other environments have none.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], task: Task, obs: str, scene: GymScene | None = None
    ) -> None:
        """Wrap an environment.

        Args:
            env: The environment.
            task: Its declaration.
            obs: state | pixels.
            scene: What moves in its model.

        Raises:
            UserError: Where the observations or actions are of a kind that cannot be trained.
        """
        super().__init__(env)
        self.task = task
        self._id = env.spec.id if env.spec else task.name
        self._low, self._high = action_bounds(env)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self._low.size,), np.float32)
        self._stack, self._scene = FrameStack() if obs == "pixels" else None, scene
        if obs == "pixels":
            if scene and hasattr(env.unwrapped, "mujoco_renderer"):
                self.segmentation = scene.segmentation
            self.observation_space = frames_space()
            return
        try:
            flat: Any = gymnasium.spaces.flatten_space(env.observation_space)
            low, high = (bound.ravel().astype(np.float32) for bound in (flat.low, flat.high))
        # What it flattens to is no Box, or there is nothing in it.
        except (AttributeError, NotImplementedError, ValueError):
            kind = type(env.observation_space).__name__
            raise UserError(
                f"obs=state for {self._id}: its observation, a {kind}, is no list of numbers; "
                "use obs=pixels"
            ) from None
        require(
            low.size > 0,
            f"obs=state for {self._id}: its observation space {env.observation_space} "
            "holds no number; use obs=pixels",
        )
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def _seen(self, obs: Any) -> np.ndarray:
        """An observation as numbers (S,) float32."""
        space = self.env.observation_space
        try:
            flat = (
                obs
                if isinstance(space, gymnasium.spaces.Box)
                else gymnasium.spaces.flatten(space, obs)
            )
            numbers = np.asarray(flat, np.float32).ravel()
        except Exception as error:  # an observation may be anything at all
            raise RunStopped(
                f"{self._id}: an observation is not of its space {space} ({one_line(error)})"
            ) from error
        if numbers.shape != self.observation_space.shape:
            size = gymnasium.spaces.flatdim(self.observation_space)
            raise RunStopped(
                f"{self._id}: an observation has {numbers.size} numbers, its space {space} has "
                f"{size}"
            )
        return numbers

    def _frame(self) -> np.ndarray:
        try:
            return cv2.resize(self.render(), (FRAME, FRAME), interpolation=cv2.INTER_AREA)
        except UserError as error:
            raise RunStopped(f"{error}; use obs=state") from error

    def render(self) -> np.ndarray:
        """A picture (H, W, 3) uint8. Raises UserError where it cannot be drawn."""
        try:
            picture = self.env.render()
        except Exception as error:  # rendering fails in the ways of its library
            raise UserError(f"{self._id} cannot be drawn here ({one_line(error)})") from error
        return rgb(picture, self._id)

    def _number(self, name: str, value: Any) -> float:
        """A reward or a success, of any kind that holds one number."""
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise RunStopped(f"{self._id}: {name} is {value!r}: one number is needed")
        return float(array.item())

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        success = bool(
            self._number('info["success"]', info.get("success", info.get("is_success", False)))
        )
        places = self._scene.positions() if self._scene else np.zeros((0, 2))
        return {**info, "success": success, "objects": places}

    def _call(self, size: int, method: Any, *args: Any, **kwargs: Any) -> Any:
        """What reset or step of the environment returns, `size` values.

        Raises:
            RunStopped: Where it has another API.
        """
        try:
            returned = method(*args, **kwargs)
        except (TypeError, ValueError) as error:  # wrappers below unpack and pass on
            if "unpack" in str(error) or "unexpected keyword argument" in str(error):
                raise RunStopped(f"{self._id}: {API} ({one_line(error)})") from error
            raise
        if (
            not isinstance(returned, tuple)
            or len(returned) != size
            or not isinstance(returned[-1], Mapping)
        ):
            raise RunStopped(f"{self._id}: {API}")
        return returned

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; raises RunStopped where the environment has another API."""
        obs, info = self._call(2, self.env.reset, seed=seed, options=options)
        return self._stack.start(self._frame()) if self._stack else self._seen(obs), self._info(
            info
        )

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Carry out an action (A,), stretched to the environment's bounds; raises RunStopped."""
        share = (np.clip(action, -1.0, 1.0).reshape(self._low.shape).astype(np.float64) + 1) / 2
        # The weighted mean, since the range may overflow; clipped, since rounding may leave it.
        mean = (1 - share) * self._low + share * self._high
        raw = np.asarray(np.clip(mean, self._low, self._high), self._low.dtype)
        obs, reward, terminated, truncated, info = self._call(5, self.env.step, raw)
        seen = self._stack.push(self._frame()) if self._stack else self._seen(obs)
        return (
            seen,
            self._number("reward", reward),
            bool(terminated),
            bool(truncated),
            self._info(info),
        )

    def get_state(self) -> dict[str, Any]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            f"the state of {self.spec.id if self.spec else 'this environment'} cannot be saved"
        )

    def set_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            f"the state of {self.spec.id if self.spec else 'this environment'} cannot be restored"
        )


def action_bounds(env: gymnasium.Env[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest action, each of the action's shape and dtype.

    Bounds that a wrapper leaves infinite, as ClipAction does, are those of the environment within.

    Raises:
        UserError: For actions that are no Box of real numbers, or that have no bounds at all.
    """
    id, actions = env.spec.id if env.spec else "gym", env.action_space
    if not isinstance(actions, gymnasium.spaces.Box) or not np.issubdtype(
        actions.dtype, np.floating
    ):
        raise UserError(
            f"task.id={id}: its action space is {actions}; only a Box of real numbers can be "
            "trained"
        )
    require(
        actions.low.size > 0,
        f"task.id={id}: its action space {actions} holds no number: there is nothing to do",
    )
    low, high = actions.low, actions.high
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        if (
            isinstance(env.action_space, gymnasium.spaces.Box)
            and env.action_space.shape == low.shape
        ):
            low, high = (
                np.where(np.isfinite(mine), mine, theirs).astype(actions.dtype)
                for mine, theirs in ((low, env.action_space.low), (high, env.action_space.high))
            )
    require(
        bool(np.isfinite(low).all() and np.isfinite(high).all()),
        f"task.id={id}: its action space {actions} is unbounded: give it finite bounds "
        "where it is defined "
        "(gymnasium.wrappers.RescaleAction then stretches them to others)",
    )
    return low, high


def _make(id: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    if ":" in id and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where modules of the user's own are
    try:
        return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"task.id={id} is not registered with Gymnasium{_elsewhere(id)}") from error
    except (
        Exception
    ) as error:  # an id may fail in any way of its own: a missing package, an unknown argument
        raise UserError(f"task.id={id} cannot be made: {one_line(error)}") from error


def _elsewhere(id: str) -> str:
    """A hint for an id that is not registered.

    The nearest one that is, once every installed package that uses Gymnasium is imported.
    """
    module_of: dict[str, str] = {}
    for module in _packages():
        known = set(gymnasium.registry)
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            try:
                importlib.import_module(module)
            except Exception:  # a package that is broken registers nothing
                continue
        module_of |= dict.fromkeys(set(gymnasium.registry) - known, module)
    names = [
        f"{module_of[name]}:{name}" if name in module_of else name for name in gymnasium.registry
    ]
    wanted = id.rpartition(":")[2]
    if wanted in module_of:
        return f"; {module_of[wanted]} registers it: task.id={module_of[wanted]}:{wanted}"
    return nearest(id, names) or "; an id of a module of yours is written module:Id-v0"


def _packages() -> Iterable[str]:
    """Modules of installed packages that need Gymnasium, ours aside."""
    for package in distributions():
        if (
            any(need.startswith("gymnasium") for need in package.requires or [])
            and package.name != "vis-rpg"
        ):
            yield from (
                package.read_text("top_level.txt") or package.name.replace("-", "_")
            ).split()


def is_mujoco(env: gymnasium.Env[Any, Any]) -> bool:
    """Tell whether an environment has a model of MuJoCo, and where its bodies are."""
    inner: Any = env.unwrapped
    return isinstance(getattr(inner, "model", None), mujoco.MjModel) and isinstance(
        getattr(inner, "data", None), mujoco.MjData
    )


def _render_fast(env: gymnasium.Env[Any, Any]) -> None:
    """Turn off shadows and multisampling of a MuJoCo model: nearly all of a frame's cost."""
    model: Any = getattr(env.unwrapped, "model", None)
    if hasattr(model, "vis"):
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


def _velocities(env: gymnasium.Env[Any, Any]) -> tuple[tuple[int, int], ...]:
    """Which numbers of the state are velocities, where the environment tells, as MuJoCo's v5 do."""
    spans, end = [], 0
    for name, size in getattr(env.unwrapped, "observation_structure", {}).items():
        begin, end = end, end + size * (not name.startswith("skipped"))
        if name in ("qvel", "cvel", "ten_velocity"):
            spans.append((begin, end))
    return tuple(spans)


def make_gym(id: str, obs: str, processes: bool = False, **kwargs: Any) -> GymTask:
    """Make a registered environment as a task.

    Args:
        id: As Gymnasium has it, or `module:Id-v0`, whose module may lie in the working directory.
        obs: state | pixels.
        processes: Step it in worker processes.
        kwargs: For `gymnasium.make`.

    Raises:
        UserError: For an unknown id (naming the nearest), for an action space that is not a bounded
            Box, for obs=state where the observation is no list of numbers, and for obs=pixels where
            it cannot be rendered.
    """
    check_choice("obs", obs, OBSERVATIONS)
    env = _make(id, kwargs)
    if "rgb_array" in env.metadata.get("render_modes", []):
        env.close()
        mend_gymnasium_viewers()
        env = _make(id, {**kwargs, "render_mode": "rgb_array"})
    elif obs == "pixels":
        raise UserError(f"obs=pixels for {id}: it does not render to rgb_array; use obs=state")
    if env.spec is None or env.spec.max_episode_steps is None:
        env = gymnasium.wrappers.TimeLimit(env, DEFAULT_LENGTH)
    length = (
        env.spec.max_episode_steps if env.spec and env.spec.max_episode_steps else DEFAULT_LENGTH
    )
    scene = GymScene(env) if is_mujoco(env) else None
    names = scene.names if scene else ()
    declared = Task(
        "gym", names, episode_length=length, velocities=_velocities(env), processes=processes
    )
    task = GymTask(env, declared, obs, scene)
    if obs == "pixels":
        if hasattr(env.unwrapped, "mujoco_renderer"):
            check_gl()
        _render_fast(env)
        try:
            task.reset(seed=0)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"task.id={id} cannot be reset: {one_line(error)}") from error
    return task
