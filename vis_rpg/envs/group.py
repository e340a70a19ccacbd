"""Several environments of one task, stepped side by side in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium
import numpy as np

from vis_rpg.envs.factory import object_positions, task_of
from vis_rpg.errors import RunStopped, UserError

SEED_STRIDE = 1000
"""Environment i of a group with seed s starts from seed s * 1000 + i."""


@dataclass
class StepResult:
    """One step of N environments."""

    obs: np.ndarray
    """(N, ...) after the step; of a finished episode its final observation, not the next one's first."""
    reward: np.ndarray
    """(N,) float32."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""
    success: np.ndarray
    """(N,) bool."""
    objects: np.ndarray
    """(N, n, 2 or 3) float64, true positions in world units."""
    first_obs: dict[int, np.ndarray]
    """For each environment whose episode ended: the first observation (...) of its next one, which has begun."""


class EnvGroup:
    """Steps `count` environments of one task.

    make: index -> environment. Each is seeded at its first reset only; its own generator carries on from there.
    Raises RunStopped for an environment that raises, for an action, observation or reward that is not finite.
    """

    def __init__(self, make: Callable[[int], gymnasium.Env[np.ndarray, np.ndarray]], count: int, seed: int) -> None:
        self.seed = seed
        self.envs = [make(index) for index in range(count)]
        self.task = task_of(self.envs[0])
        self.infos: list[dict[str, Any]] = [{} for _ in self.envs]
        """Of the newest observation of each environment (of the next episode's first one, where one has ended)."""
        self.obs: list[np.ndarray] = [np.zeros(0) for _ in self.envs]
        """(...) the observation that each environment's next action answers to."""
        self._episodes = [0] * count

    def __len__(self) -> int:
        return len(self.envs)

    def reset(self) -> np.ndarray:
        """Begin an episode everywhere: first observations (N, ...)."""
        for index in range(len(self)):
            self._reset(index, self._seed(index) if self._episodes[index] == 0 else None)
        return self._finite("observation", np.stack(self.obs))

    def step(self, actions: np.ndarray) -> StepResult:
        """Carry out actions (N, A) in [-1, 1]; environments whose episode ends are reset at once."""
        self._finite("action", actions)
        results = [self._step(index, action) for index, action in enumerate(actions)]
        obs, reward, terminated, truncated, infos = zip(*results, strict=True)
        step = StepResult(
            obs=self._finite("observation", np.stack(obs)),
            reward=self._finite("reward", np.array(reward, np.float32)),
            terminated=np.array(terminated, bool),
            truncated=np.array(truncated, bool),
            success=np.array([info["success"] for info in infos], bool),
            objects=np.stack([object_positions(info) for info in infos]),
            first_obs={},
        )
        self.obs, self.infos = list(obs), list(infos)
        for index in np.flatnonzero(step.terminated | step.truncated):
            self._reset(int(index), None)
            step.first_obs[int(index)] = self.obs[index]
        if step.first_obs:
            self._finite("observation", np.stack(self.obs))
        return step

    def get_state(self) -> list[dict[str, Any]]:
        """Of each environment: NumPy arrays and JSON values; its "env" is None where it cannot be saved."""
        return [
            {
                "env": self._saved(env),
                "episodes": self._episodes[index],
                "obs": self.obs[index].copy(),
                "success": bool(self.infos[index]["success"]),
                "objects": object_positions(self.infos[index]).copy(),
            }
            for index, env in enumerate(self.envs)
        ]

    def set_state(self, states: list[dict[str, Any]]) -> list[int]:
        """Continue from `get_state`; `obs` then holds what the next actions answer to.

        Returns the environments that could not be restored: their episodes are dropped, and new ones, freshly seeded, have begun.
        """
        dropped = []
        for index, state in enumerate(states):
            self._episodes[index] = int(state["episodes"])
            if state["env"] is None:
                dropped.append(index)
                entropy = [self._seed(index), self._episodes[index]]
                self._reset(index, int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            else:
                self.envs[index].get_wrapper_attr("set_state")(state["env"])
                self.obs[index] = np.array(state["obs"])
                self.infos[index] = {"success": bool(state["success"]), "objects": np.array(state["objects"])}
        return dropped

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _seed(self, index: int) -> int:
        return self.seed * SEED_STRIDE + index

    def _reset(self, index: int, seed: int | None) -> None:
        try:
            self.obs[index], self.infos[index] = self.envs[index].reset(seed=seed)
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises ends the run, with its name
            self._stop(index, "at reset", error)
        self._episodes[index] += 1

    def _step(self, index: int, action: np.ndarray) -> tuple[Any, ...]:
        try:
            return self.envs[index].step(action)
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises ends the run, with its name
            self._stop(index, f"at action {np.asarray(action).tolist()}", error)

    @staticmethod
    def _saved(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
        if not env.has_wrapper_attr("get_state"):
            return None
        try:
            return env.get_wrapper_attr("get_state")()
        except NotImplementedError:
            return None

    def _name(self, index: int) -> str:
        spec = self.envs[index].spec
        return f"{spec.id if spec else self.task.name}, environment {index} (seed {self._seed(index)}, episode {self._episodes[index]})"

    def _stop(self, index: int, when: str, error: Exception) -> NoReturn:
        what = " ".join(str(error).split())
        raise RunStopped(f"{self._name(index)} raised {type(error).__name__} {when}: {what}") from error

    def _finite(self, quantity: str, values: np.ndarray) -> np.ndarray:
        """`values` (N, ...), or RunStopped with the first environment where they are not finite."""
        if not np.isfinite(values).all():
            bad = next(index for index, value in enumerate(values) if not np.isfinite(value).all())
            raise RunStopped(f"{quantity} of {self._name(bad)} is not finite")
        return values
