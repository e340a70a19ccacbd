"""What the tasks share: observations, the episode's clock, seeding, and the saved state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from vis_rpg.envs.rendering.frames import FRAME, STACK, VIDEO, FrameStack
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError, nearest

MAX_TRIES = 1000
"""Randomized scenes drawn, at most, until one is in view with nothing inside another thing."""
MAX_PENETRATION = 0.005
"""Metres by which things may be inside each other in one: contacts are soft."""
OBSERVATIONS = ("state", "pixels")


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Raise UserError unless a setting's value is one of those known."""
    if value not in known:
        hint = nearest(value, known)
        raise UserError(f"{key}={value} is not one of {', '.join(known)}{hint}")


def frames_space() -> gymnasium.spaces.Box:
    """Two stacked RGB frames, oldest first: (2, 64, 64, 3) uint8."""
    return gymnasium.spaces.Box(0, 255, (STACK, FRAME, FRAME, 3), np.uint8)


class BaseTask(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task from state (S,) float32 or pixels (2, 64, 64, 3) uint8; actions (A,) in [-1, 1].

    A task says how it starts, moves, is seen and succeeds; this class keeps the clock, the frame
    stack and the saved state. `reset` and `step` put into info: "success" (bool) and "objects" ((N,
    2) or (N, 3) float64: true positions of the objects of interest in world units, for metrics and
    drawings, never for training). Reaching the episode's length is truncation, never termination.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}
    threads_from: float = float("inf")
    """How many environments must step together for threads to be faster than one: `advance` must
    leave Python's lock for long."""

    def __init__(
        self,
        task: Task,
        actions: int,
        state_limits: np.ndarray,
        obs: str = "state",
        render_mode: str | None = None,
    ) -> None:
        """Declare the spaces.

        Args:
            task: The declaration.
            actions: A, numbers of an action.
            state_limits: (S,) the largest absolute value of each number of the state, in world
                units; infinite where none is known.
            obs: state | pixels.
            render_mode: Gymnasium's.

        Raises:
            UserError: For an unknown `obs`.
        """
        check_choice("obs", obs, OBSERVATIONS)
        self.task = task
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (actions,), np.float32)
        limits = state_limits.astype(np.float32)
        self.observation_space = (
            frames_space()
            if obs == "pixels"
            else gymnasium.spaces.Box(-limits, limits, dtype=np.float32)
        )
        self._stack = FrameStack() if obs == "pixels" else None
        self._steps = 0
        self._reward = 0.0

    @abstractmethod
    def _start(self) -> None:
        """Put everything where an episode starts."""

    def _randomize(self) -> None:
        """From where an episode starts, put what can move anywhere that it can be.

        Drawn from the episode's generator; a task in which nothing can stays as it starts.
        """

    @property
    def randomizes(self) -> bool:
        """Whether the task has randomized resets (`reset(options={"randomize": True})`)."""
        return type(self)._randomize is not BaseTask._randomize

    @abstractmethod
    def _move(self, action: np.ndarray) -> float:
        """Carry out one action in [-1, 1]; the reward, where it is not that of a sparse task."""

    @abstractmethod
    def _state(self) -> np.ndarray:
        """(S,) in world units."""

    @abstractmethod
    def _objects(self) -> np.ndarray:
        """(N, 2 or 3) float64 true positions in world units."""

    @abstractmethod
    def _frame(self, size: int) -> np.ndarray:
        """(size, size, 3) uint8."""

    @abstractmethod
    def _save(self) -> dict[str, Any]:
        """The physical state, for `_load`."""

    @abstractmethod
    def _load(self, saved: dict[str, Any]) -> None:
        """Continue from `_save`."""

    def _success(self) -> bool:
        return False

    def _terminated(self) -> bool:
        """Whether the episode has truly ended; most tasks never do."""
        return False

    def _info(self) -> dict[str, Any]:
        return {"success": self._success(), "objects": self._objects()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Of the environment's generator, which else carries on.
            options: {"randomize": True} puts what can move anywhere it can be, so that frames show
                every object in many places: for discovering objects and for measuring, never for an
                agent's training.

        Returns:
            The observation and info.
        """
        super().reset(seed=seed)
        self._steps = 0
        self._start()
        if options and options.get("randomize"):
            self._randomize()
        obs = (
            self._stack.start(self._frame(FRAME))
            if self._stack
            else self._state().astype(np.float32)
        )
        return obs, self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Carry out an action (A,): `advance`, then `outcome`."""
        self.advance(action)
        return self.outcome()

    def advance(self, action: np.ndarray) -> None:
        """The physics of one step.

        It draws nothing, so that environments may advance in threads, side by side.
        """
        self._reward = self._move(self._clipped(action))
        self._steps += 1

    @staticmethod
    def _clipped(action: np.ndarray) -> np.ndarray:
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)

    def outcome(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """What `step` returns, of the step that `advance` has made."""
        obs = (
            self._stack.push(self._frame(FRAME))
            if self._stack
            else self._state().astype(np.float32)
        )
        info = self._info()
        reward = float(info["success"]) if self.task.sparse else self._reward
        return obs, reward, self._terminated(), self._steps >= self.task.episode_length, info

    def render(self) -> np.ndarray:
        """A picture for videos: (256, 256, 3) uint8."""
        return self._frame(VIDEO)

    def get_state(self) -> dict[str, Any]:
        """Everything that `set_state` needs to continue bit for bit, random generator included.

        Returns:
            NumPy arrays and JSON values.
        """
        state = {"steps": self._steps, "rng": self.np_random.bit_generator.state, **self._save()}
        return state | {"frames": self._stack.frames.copy()} if self._stack else state

    def set_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Continue from `get_state`, in this or another instance of the same environment.

        Returns:
            info, as `reset` does.
        """
        self._steps = int(state["steps"])
        self.np_random.bit_generator.state = state["rng"]
        if self._stack:
            self._stack.frames = np.array(state["frames"], np.uint8)
        self._load(state)
        return self._info()
