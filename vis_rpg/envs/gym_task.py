"""Any Gymnasium id with a Box action space as a task, from its state or from its pictures."""

from __future__ import annotations

from typing import Any

import cv2
import gymnasium
import numpy as np

from vis_rpg.envs.base import check_obs, frames_space, nearest
from vis_rpg.envs.rendering import FRAME, FrameStack, check_gl, mend_gymnasium_viewers
from vis_rpg.envs.task import Task
from vis_rpg.errors import UserError, one_line

DEFAULT_LENGTH = 1000
"""Steps of an episode where the id sets no limit."""


class GymTask(gymnasium.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """The outermost wrapper: actions (A,) in [-1, 1]; observations (S,) float32 or (2, 64, 64, 3) uint8; no named objects.

    Its physical state cannot be saved: a resumed run drops the running episode.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], task: Task, obs: str) -> None:
        super().__init__(env)
        self.task = task
        actions = env.action_space
        assert isinstance(actions, gymnasium.spaces.Box)
        self._low, self._high = actions.low, actions.high
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (actions.low.size,), np.float32)
        self._stack = FrameStack() if obs == "pixels" else None
        if obs == "pixels":
            self.observation_space = frames_space()
        else:
            space = env.observation_space
            assert isinstance(space, gymnasium.spaces.Box)
            low, high = (bound.ravel().astype(np.float32) for bound in (space.low, space.high))
            self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def _frame(self) -> np.ndarray:
        return cv2.resize(np.ascontiguousarray(self.env.render()), (FRAME, FRAME), interpolation=cv2.INTER_AREA)

    @staticmethod
    def _info(info: dict[str, Any]) -> dict[str, Any]:
        success = bool(info.get("success", info.get("is_success", False)))
        return {**info, "success": success, "objects": np.zeros((0, 2))}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._stack.start(self._frame()) if self._stack else np.asarray(obs, np.float32).ravel(), self._info(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        share = (np.clip(action, -1.0, 1.0).reshape(self._low.shape) + 1) / 2
        # The weighted mean, not low + share * range: rounding may not leave the Box at its ends.
        raw = ((1 - share) * self._low + share * self._high).astype(self._low.dtype)
        obs, reward, terminated, truncated, info = self.env.step(raw)
        seen = self._stack.push(self._frame()) if self._stack else np.asarray(obs, np.float32).ravel()
        return seen, float(reward), bool(terminated), bool(truncated), self._info(info)

    def get_state(self) -> dict[str, Any]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(f"the state of {self.spec.id if self.spec else 'this environment'} cannot be saved")

    def set_state(self, state: dict[str, Any]) -> None:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(f"the state of {self.spec.id if self.spec else 'this environment'} cannot be restored")


def _make(id: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"task.id={id} is not registered with Gymnasium{nearest(id, list(gymnasium.registry))}") from error
    except Exception as error:  # an id may fail in any way of its own: a missing package, an unknown argument
        raise UserError(f"task.id={id} cannot be made: {one_line(error)}") from error


def _render_fast(env: gymnasium.Env[Any, Any]) -> None:
    """Without shadows and multisampling, where the environment draws a MuJoCo model: nearly all of a frame's cost, lost at 64 x 64."""
    model: Any = getattr(env.unwrapped, "model", None)
    if hasattr(model, "vis"):
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


def make_gym(id: str, obs: str, processes: bool = False, **kwargs: Any) -> GymTask:
    """The registered environment `id` as a task; `kwargs` go to `gymnasium.make`; processes: step it in worker processes.

    Raises UserError for an unknown id (naming the nearest), for an action space that is not a bounded Box, for obs=state where the
    observation is no Box, and for obs=pixels where it cannot be rendered.
    """
    check_obs(obs)
    env = _make(id, kwargs)
    if "rgb_array" in env.metadata.get("render_modes", []):
        env.close()
        mend_gymnasium_viewers()
        env = _make(id, {**kwargs, "render_mode": "rgb_array"})
    elif obs == "pixels":
        raise UserError(f"obs=pixels for {id}: it does not render to rgb_array; use obs=state")
    if env.spec is None or env.spec.max_episode_steps is None:
        env = gymnasium.wrappers.TimeLimit(env, DEFAULT_LENGTH)
    actions, space = env.action_space, env.observation_space
    if not isinstance(actions, gymnasium.spaces.Box) or not np.issubdtype(actions.dtype, np.floating):
        raise UserError(f"task.id={id}: its action space is {actions}; only a Box of real numbers can be trained")
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise UserError(f"task.id={id}: its action space {actions} is unbounded; wrap it into finite bounds and register that")
    if obs == "state" and not isinstance(space, gymnasium.spaces.Box):
        raise UserError(f"obs=state for {id}: its observation is a {type(space).__name__}, not a Box; use obs=pixels")
    length = env.spec.max_episode_steps if env.spec and env.spec.max_episode_steps else DEFAULT_LENGTH
    task = GymTask(env, Task("gym", (), episode_length=length, processes=processes), obs)
    if obs == "pixels":
        if hasattr(env.unwrapped, "mujoco_renderer"):
            check_gl()
        _render_fast(env)
        try:
            task.reset(seed=0)
        except Exception as error:  # rendering fails in the ways of its library
            raise UserError(f"obs=pixels for {id}: it cannot be rendered here ({one_line(error)}); use obs=state") from error
    return task
