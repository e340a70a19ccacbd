"""Small Gymnasium environments that end, fail or give what is no number, for tests."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Faulty(gymnasium.Env[np.ndarray, np.ndarray]):
    """A random walk of 3 numbers; `fault` sets in once this environment has made `after` steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, fault: str = "none", after: int = 45) -> None:
        self.fault, self.after, self.steps = fault, after, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "reset" and self.steps > self.after:
            raise OSError("the simulator is gone")
        self.position = self.np_random.normal(size=3)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.position = self.position + 0.1 * float(action[0]) + 0.01 * self.np_random.normal(size=3)
        obs, reward = self.position.copy(), float(-abs(self.position[0]))
        if self.steps > self.after:
            if self.fault == "observation":
                obs[1] = np.nan
            elif self.fault == "reward":
                reward = float("inf")
            elif self.fault == "raises":
                raise RuntimeError("joint 3\nis broken")
        return obs, reward, self.fault == "ends" and self.np_random.random() < 0.2, False, {}


gymnasium.register("vis_rpg_tests/Faulty-v0", Faulty, max_episode_steps=20)
FAULTY = ("task=gym", "task.id=vis_rpg_tests/Faulty-v0")
