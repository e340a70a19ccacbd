"""Acting: the state that an agent carries through the episodes of one or many environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.base import RecurrentState, StoredObs
from vis_rpg.agent.planner import plan
from vis_rpg.agent.rpg import Agent
from vis_rpg.seeding import restore_generator


class Actor:
    """Runs an agent in `envs` environments, with their z, perception state and newest features.

    In Python, call `reset()` at each episode (a new z, a clean state) and `act(obs)` at each step.

    Args:
        agent: On its device.
        envs: Number of environments.
        seed: Seeds z and exploration noise.
        measure_z: Whether to keep count for `z_information`; p_φ is only there in training.
    """

    def __init__(self, agent: Agent, envs: int = 1, seed: int = 0, measure_z: bool = False) -> None:
        self.agent, self.envs = agent, envs
        self.measure_z = measure_z and agent.space.dim > 0
        self.device = agent.log_alpha.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.state = RecurrentState()
        self.features = torch.zeros(envs, *agent.model.perception.feature_shape, device=self.device)
        self.z = torch.zeros(envs, agent.space.dim, device=self.device)
        self.previous_action = torch.zeros(envs, agent.action_dim, device=self.device)
        self.is_first = torch.ones(envs, dtype=torch.bool, device=self.device)
        self.given_z: Tensor | None = None
        self.left = torch.zeros(envs, dtype=torch.int64, device=self.device)
        """Steps for which z acts, (envs,), the newest action's among them; `agent.latent.every`."""
        self.log_prior = torch.zeros(envs, device=self.device)
        """log π(z|s₁), (envs,)."""
        self.information = torch.zeros(2, envs, device=self.device)
        """Of running episodes: the sum of log p_φ(z|s,a) - log π(z|s₁), and how many steps."""
        horizon = agent.config.horizon if agent.config.planner else 0
        self.planned = torch.zeros(horizon, envs, agent.action_dim, device=self.device)
        """Where planning begins at the next step, (H, envs, A)."""

    # For users ------------------------------------------------------------------------------------

    def reset(self, z: Tensor | np.ndarray | None = None) -> None:
        """Begin a new episode.

        Args:
            z: (Z,) or (envs, Z); None draws it from π(z|s₁) at the first step.
        """
        self.is_first[:] = True
        self.previous_action.zero_()
        self.given_z = None
        if z is not None:
            given = torch.as_tensor(z, dtype=torch.float32, device=self.device)
            self.given_z = given.expand(self.envs, -1)

    def act(self, obs: np.ndarray, explore: bool = False) -> np.ndarray:
        """Return the action (A,) for the observation of a single environment.

        Args:
            obs: As the environment gives it.
            explore: Whether to sample π(a|s,z) instead of taking its mean.
        """
        self.observe(obs[None])
        return self.select_action(explore)[0].cpu().numpy()

    # For the trainer ------------------------------------------------------------------------------

    def observe(self, obs: np.ndarray, rows: np.ndarray | None = None) -> StoredObs:
        """Encode new observations.

        Args:
            obs: (N, ...).
            rows: Indices (N,) of the environments they come from; None for all.

        Returns:
            The columns that replay stores, each (N, ...).
        """
        pick = torch.arange(self.envs) if rows is None else torch.as_tensor(rows)
        pick = pick.to(self.device)
        tensor = torch.as_tensor(np.ascontiguousarray(obs), device=self.device)
        if tensor.is_floating_point():
            tensor = tensor.float()
        own = (self.state.hidden, self.state.previous)
        before = RecurrentState(*({k: value[pick] for k, value in part.items()} for part in own))
        features, stored, after = self.agent.model.perception.encode(
            tensor, self.previous_action[pick], self.is_first[pick], before
        )
        for part, new in zip(own, (after.hidden, after.previous), strict=True):
            for name, value in new.items():
                if name not in part:
                    part[name] = value.new_zeros(self.envs, *value.shape[1:])
                part[name][pick] = value
        self.features[pick] = features
        return stored

    @torch.no_grad()
    def select_action(self, explore: bool, instead: Tensor | None = None) -> Tensor:
        """Return actions (envs, A) for the newest observations; draw z where an episode begins.

        Args:
            explore: Whether to sample π(a|s,z) instead of taking its mean.
            instead: Actions (envs, A) that are taken in place of the policy's.
        """
        agent, z, due, before = self.agent, self.given_z, self.is_first, None
        s = agent.model.f(self.features)
        if agent.redraws:
            due = due | (self.left == 1)
            self.left = torch.where(due, agent.config.latent.every, self.left - 1)
            before = self.z * ~self.is_first[:, None]
        if z is None:
            z = agent.pi_z(s, agent.space.noise((self.envs,), self.generator), before)
        self.z = torch.where(due[:, None], z, self.z)
        if agent.config.planner:
            mean = self.planned * ~self.is_first[:, None]
            action, self.planned = plan(agent, s, self.z, mean, self.generator, explore)
        elif explore:
            shape = self.envs, agent.pi.noise_dim
            noise = torch.randn(shape, generator=self.generator, device=self.device)
            action, _ = agent.pi(s, self.z, noise)
        else:
            action = agent.pi.mean_action(s, self.z)
        action = action if instead is None else instead
        if self.measure_z:
            log_prior = agent.pi_z.log_prob(self.z, s, before)
            self.log_prior = torch.where(due, log_prior, self.log_prior)
            told = agent.p_phi.log_prob(self.z, s, action) - self.log_prior
            steps = torch.ones_like(told)
            self.information = self.information * ~self.is_first + torch.stack([told, steps])
        # A copy: `on_reset` zeroes rows, which the caller's action must not see.
        self.previous_action = action.clone()
        self.is_first = torch.zeros_like(self.is_first)
        return action

    def z_information(self, row: int) -> float:
        """Return how well p_φ tells z from the (s, a) of an environment's running episode.

        It is the mean of log p_φ(z|s,a) - log π(z|s₁), in nats: over episodes a lower bound of the
        mutual information of z and (s, a), but for what p_φ has learned from the episode's own
        beginning, which makes it too high.
        """
        told, steps = self.information[:, row].tolist()
        return told / steps if steps else float("nan")

    def on_reset(self, rows: np.ndarray) -> None:
        """Begin new episodes in the environments `rows`."""
        pick = torch.as_tensor(rows, device=self.device)
        self.is_first[pick] = True
        self.previous_action[pick] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that acting carries, for a checkpoint."""
        return {
            "hidden": dict(self.state.hidden),
            "previous": dict(self.state.previous),
            "features": self.features,
            "z": self.z,
            "previous_action": self.previous_action,
            "is_first": self.is_first,
            "left": self.left,
            "planned": self.planned,
            "log_prior": self.log_prior,
            "information": self.information,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        parts = (
            {k: v.to(self.device) for k, v in state[p].items()} for p in ("hidden", "previous")
        )
        self.state = RecurrentState(*parts)
        names = "features", "z", "previous_action", "is_first", "left", "planned"
        for name in (*names, "log_prior", "information"):
            setattr(self, name, state[name].to(self.device))
        restore_generator(self.generator, state["generator"])
