"""Acting: what an agent carries through episodes, for one environment or many side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.base import Memory, Window
from vis_rpg.agent.rpg import Agent
from vis_rpg.seeding import restore_generator


class Actor:
    """An agent in `envs` environments: their z, what perception remembers, and the newest features.

    From Python: `actor.reset()` at each episode (a new z, a clean memory), `actor.act(obs)` at each
    step.
    """

    def __init__(self, agent: Agent, envs: int = 1, seed: int = 0) -> None:
        self.agent, self.envs = agent, envs
        self.device = agent.log_alpha.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.memory: Memory = {}
        self.features = torch.zeros(envs, *agent.model.perception.feature_shape, device=self.device)
        self.z = torch.zeros(envs, agent.space.dim, device=self.device)
        self.previous_action = torch.zeros(envs, agent.action_dim, device=self.device)
        self.is_first = torch.ones(envs, dtype=torch.bool, device=self.device)
        self.given_z: Tensor | None = None

    # For users ------------------------------------------------------------------------------------

    def reset(self, z: Tensor | np.ndarray | None = None) -> None:
        """Begin a new episode: z is drawn from π(z|s₁) at its first step, or given, (Z,) or (envs,
        Z)."""
        self.is_first[:] = True
        self.previous_action.zero_()
        self.given_z = (
            None
            if z is None
            else torch.as_tensor(z, dtype=torch.float32, device=self.device).expand(self.envs, -1)
        )

    def act(self, obs: np.ndarray, explore: bool = False) -> np.ndarray:
        """The action (A,) for one environment's observation; `explore` samples π(a|s,z) instead of
        taking its mean."""
        self.see(obs[None])
        return self.decide(explore)[0].cpu().numpy()

    # For the trainer ------------------------------------------------------------------------------

    @torch.no_grad()
    def see(self, obs: np.ndarray, rows: np.ndarray | None = None) -> Window:
        """Perceive new observations (N, ...) of all environments, or of these rows; returns what
        replay stores of them."""
        pick = torch.arange(self.envs) if rows is None else torch.as_tensor(rows)
        pick = pick.to(self.device)
        memory = {name: value[pick] for name, value in self.memory.items()}
        seen_obs = torch.as_tensor(np.ascontiguousarray(obs), device=self.device)
        if seen_obs.is_floating_point():
            seen_obs = seen_obs.float()
        percept, seen, memory = self.agent.model.perception.perceive(
            seen_obs, self.previous_action[pick], self.is_first[pick], memory
        )
        for name, value in memory.items():
            if name not in self.memory:
                self.memory[name] = value.new_zeros(self.envs, *value.shape[1:])
            self.memory[name][pick] = value
        self.features[pick] = percept.features
        return seen

    @torch.no_grad()
    def decide(self, explore: bool) -> Tensor:
        """Actions (envs, A) for the newest observations; draws z where an episode begins."""
        s = self.agent.model.f(self.features)
        z = (
            self.agent.pi_z(s, self.agent.space.noise((self.envs,), self.generator))
            if self.given_z is None
            else self.given_z
        )
        self.z = torch.where(self.is_first[:, None], z, self.z)
        if explore:
            noise = torch.randn(
                self.envs, self.agent.action_dim, generator=self.generator, device=self.device
            )
            action, _ = self.agent.pi(s, self.z, noise)
        else:
            action = self.agent.pi.mean_action(s, self.z)
        self.did(action)
        return action

    def did(self, action: Tensor) -> None:
        """Note the action that is taken, where it is not one that `decide` returned."""
        self.previous_action = (
            action.clone()
        )  # zeroed where an episode begins, which whoever holds the action must not see
        self.is_first = torch.zeros_like(self.is_first)

    def begin(self, rows: np.ndarray) -> None:
        """New episodes begin in these environments."""
        pick = torch.as_tensor(rows, device=self.device)
        self.is_first[pick] = True
        self.previous_action[pick] = 0

    def state(self) -> dict[str, Any]:
        """Everything that acting carries, for a checkpoint."""
        return {
            "memory": dict(self.memory),
            "features": self.features,
            "z": self.z,
            "previous_action": self.previous_action,
            "is_first": self.is_first,
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.memory = {name: value.to(self.device) for name, value in state["memory"].items()}
        for name in ("features", "z", "previous_action", "is_first"):
            setattr(self, name, state[name].to(self.device))
        restore_generator(self.generator, state["generator"])
