"""Small Gymnasium environments that end, fail, die or give what is no number, for tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from vis_rpg.errors import UserError


class Faulty(gymnasium.Env[np.ndarray, np.ndarray]):
    """A random walk of 3 numbers; `fault` sets in once this environment has made `after` steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, fault: str = "none", after: int = 45) -> None:
        self.fault, self.after, self.steps = fault, after, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "reset" and self.steps > self.after:
            raise OSError("the simulator is gone")
        self.position = self.np_random.normal(size=3)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.position = (
            self.position + 0.1 * float(action[0]) + 0.01 * self.np_random.normal(size=3)
        )
        obs, reward = self.position.copy(), float(-abs(self.position[0]))
        if self.steps > self.after:
            if self.fault == "observation":
                obs[1] = np.nan
            elif self.fault == "reward":
                reward = float("inf")
            elif self.fault == "shape":
                obs = obs[:2]
            elif self.fault == "raises":
                raise RuntimeError("joint 3\nis broken")
        return obs, reward, self.fault == "ends" and self.np_random.random() < 0.2, False, {}


class Mortal(Faulty):
    """A walk that takes its process along at its step number `at`; a file for each death in
    `marks`, and none after so many `deaths`."""

    def __init__(self, way: str = "kill", at: int = 5, deaths: int = 1, marks: str = "") -> None:
        super().__init__()
        self.way, self.at, self.deaths, self.marks = way, at, deaths, Path(marks)
        if way == "user":
            raise UserError("obs=pixels needs a renderer: install one")
        if way == "making":
            self._die()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if self.way == "reset" and self.steps >= self.at:
            self._die()
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.steps + 1 == self.at and self.way != "reset":
            self._die()
        return super().step(action)

    def _die(self) -> None:
        for number in range(self.deaths):
            try:
                (self.marks / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            if self.way == "raise":
                raise ZeroDivisionError("contact\nsolver")
            if self.way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)


class Blank(Faulty):
    """A walk whose picture shows nothing before its step `after`."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, after: int = 10**9, render_mode: str | None = None) -> None:
        super().__init__(after=after)
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        return np.full((64, 64, 3), 255 * (self.steps >= self.after), np.uint8)


gymnasium.register("vis_rpg_tests/Faulty-v0", Faulty, max_episode_steps=20)
gymnasium.register("vis_rpg_tests/Mortal-v0", Mortal, max_episode_steps=20)
gymnasium.register("vis_rpg_tests/Blank-v0", Blank, max_episode_steps=20)
FAULTY = ("task=gym", "task.id=vis_rpg_tests/Faulty-v0")


def in_workers(id: str, **kwargs: Any) -> dict[str, Any]:
    """The configuration of a task whose environments, registered here, live in worker processes."""
    return {
        "name": "gym",
        "id": f"tests.fake_envs:vis_rpg_tests/{id}",
        "processes": True,
        "kwargs": kwargs,
    }
