"""Bandit (Fig. 4): one step, one action, two modes.

The wide one is a trap, the narrow one is the best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vis_rpg.envs.tasks.base import OBSERVATIONS, BaseTask, check_choice
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError, require

REACH = 1.2
"""An action in [-1, 1] times this is the x of the reward."""


def bandit_reward(x: Tensor) -> Tensor:
    """Exact reward of x in [-1.2, 1.2], elementwise and differentiable almost everywhere.

    Left mode: narrow, peak 1.1 at -0.6. Right mode: wide, rising to 0.5 at 0.875, where it drops to
    0.
    """
    left = torch.relu(1.1 - 18 * (2 * x + 1.2) ** 2)
    right = torch.relu(0.5 - 0.125 * (2 * x - 1.75) ** 2)
    return left + torch.where(x < 0.875, right, torch.zeros_like(right))


class Bandit(BaseTask):
    """One action, one step; the observation is a constant (1,) zero.

    There is nothing to see: obs=pixels raises UserError.
    """

    metadata = {"render_modes": []}

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        check_choice("obs", obs, OBSERVATIONS)
        require(
            obs != "pixels",
            "obs=pixels for vis_rpg/Bandit-v0: it has no picture; use obs=state",
        )
        super().__init__(Task("bandit", (), episode_length=1), 1, np.ones(1), obs, render_mode)

    def _start(self) -> None:
        pass

    def _move(self, action: np.ndarray) -> float:
        return bandit_reward(torch.from_numpy(REACH * action)).item()

    def _state(self) -> np.ndarray:
        return np.zeros(1)

    def _objects(self) -> np.ndarray:
        return np.zeros((0, 2))

    def _frame(self, size: int) -> np.ndarray:
        raise UserError("vis_rpg/Bandit-v0 has no picture")

    def _save(self) -> dict[str, Any]:
        return {}

    def _load(self, saved: dict[str, Any]) -> None:
        pass
