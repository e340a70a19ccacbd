"""Rollouts of a z that is chosen in the page while it is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from vis_rpg.agent.actor import Actor
from vis_rpg.analysis.evaluation import episode_seed
from vis_rpg.analysis.explorer.rollouts import Film, Rollouts, roll_out, rollout_data
from vis_rpg.analysis.explorer.states import ZView
from vis_rpg.analysis.video import frames_per_second
from vis_rpg.envs.make import task_of
from vis_rpg.errors import UserError, require

MOST_STARTS = 2**31
FAR = 100
"""Standard deviations of z."""


@dataclass
class Stage:
    """An agent in its environment, to be rolled out."""

    actor: Actor
    env: gymnasium.Env
    view: ZView
    seed: int
    """Of starts and z."""
    variance: float
    """Of latent states, as for `rollout_data`."""

    @property
    def choice(self) -> Literal["category", "place", "none"]:
        """How z is chosen: a category, a place in the plane of z, or it is drawn anew."""
        kind = self.view.kind
        if self.actor.agent.redraws or kind not in ("categorical", "gaussian"):
            return "none"
        return "category" if kind == "categorical" else "place"

    def rollout(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Play an episode by mean actions, and return what the player shows of it.

        Args:
            wanted: `start`, the number of a start, which also draws z where it is not chosen;
                `category` from 1, or `u` and `v`, of a z whose other directions are 0.

        Raises:
            UserError: One of them is no number or far too large, or there is no such category.
        """
        start = _number(wanted, "start")
        require(
            start == int(start) and 0 <= start < MOST_STARTS,
            f"start={start:g}: give a whole number from 0 to {MOST_STARTS - 1:,}",
        )
        start = int(start)
        z = self._z(wanted)
        self.actor.generator.manual_seed(start)
        film = Film(self.env, self.actor.agent)
        rollout = roll_out(self.actor, film, episode_seed(self.seed, start), z)
        recorded = Rollouts([rollout], film.no_pictures, frames_per_second(self.env))
        played: dict[str, Any] = rollout_data(recorded, self.view, task_of(self.env), self.variance)
        return played["rollouts"][0]

    def _z(self, wanted: Mapping[str, str]) -> torch.Tensor | None:
        """Return (Z,), None where it is drawn."""
        dim = self.actor.agent.space.dim
        if self.choice == "none":
            return None
        z = np.zeros(dim, np.float32)
        if self.choice == "category":
            category = int(_number(wanted, "category"))
            require(1 <= category <= dim, f"category={category}: give one from 1 to {dim}")
            z[category - 1] = 1.0
        else:
            place = np.array([_number(wanted, "u"), _number(wanted, "v")])
            require(bool((abs(place) <= FAR).all()), f"u, v: give numbers from -{FAR} to {FAR}")
            z = self.view.z_at(place, dim)
        return torch.as_tensor(z, dtype=torch.float32)


def _number(wanted: Mapping[str, str], name: str) -> float:
    """Return a finite number.

    Raises:
        UserError: It is none, or missing.
    """
    try:
        value = float(wanted.get(name, ""))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{name}={wanted.get(name, '')}: give a number")
    return value
