"""Partial observability: states without some of their numbers, and with noise."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import require

VELOCITIES = "velocities"


class PartialState(gymnasium.ObservationWrapper[np.ndarray, np.ndarray, np.ndarray]):
    """Hides numbers of the state, which are then 0, and adds noise to the others.

    Noise comes from the environment's own generator, so that its seed and its saved state cover it.

    Args:
        env: One whose observations are states (S,), with the attribute `task`.
        hide: `velocities`, as the task declares them, and indices of other numbers.
        noise: Std of the Gaussian noise, in the state's own units.

    Raises:
        UserError: The task declares no velocities, or has no number of that index.
    """

    def __init__(
        self, env: gymnasium.Env[np.ndarray, np.ndarray], hide: Sequence[str | int], noise: float
    ) -> None:
        super().__init__(env)
        space = env.observation_space
        self.noise, self.shown = noise, np.ones(space.shape or (), np.float32)
        task: Task = env.get_wrapper_attr("task")
        for name in hide:
            spans = task.velocities if name == VELOCITIES else ()
            if isinstance(name, int) and 0 <= name < len(self.shown):
                spans = ((name, name + 1),)
            require(
                len(spans) > 0 or name == VELOCITIES,
                f"obs.hide=[{name}]: give {VELOCITIES}, or indices from 0 to {len(self.shown) - 1}",
            )
            require(
                len(spans) > 0,
                f"obs.hide=[{name}]: task={task.name} does not say which numbers of its state are "
                "velocities; give their indices, such as obs.hide=[2]",
            )
            for begin, end in spans:
                self.shown[begin:end] = 0.0
        if noise > 0:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return what is seen of a state (S,), float32."""
        if self.noise > 0:
            noise = self.noise * self.np_random.standard_normal(observation.shape)
            observation = observation + noise.astype(np.float32)
        return observation * self.shown
