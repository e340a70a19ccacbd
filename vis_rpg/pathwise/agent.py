"""Agents that learn through known, differentiable dynamics.

RPG, trajectory optimisation and REINFORCE maximise Eq. 2 with the exact rewards; they differ in z
and in the estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from vis_rpg.agent.latent import LatentSpace, Posterior, make_latent
from vis_rpg.agent.policy import GaussianPolicy, LatentPolicy
from vis_rpg.config import PathwiseAgentConfig
from vis_rpg.envs.tasks.differentiable import Dynamics
from vis_rpg.pathwise.estimators import (
    Weights,
    action_loss,
    latent_loss,
    posterior_loss,
    rollout,
)

CLIP = 1.0
"""Largest norm of the gradient of a network."""


class Draws(NamedTuple):
    """Random numbers of a batch of episodes, each (..., B, ·)."""

    s1: Tensor
    """First states, (..., B, S)."""
    z: Tensor
    """Noise of z, (..., B, Z)."""
    noise: Tensor
    """Noise of actions, (..., T, B, A)."""


class PlacesPosterior(Posterior):
    """p_φ(z|s) that reads some numbers of the state alone.

    Args:
        space: The space of z.
        places: Their indices.
        hidden: Width of hidden layers.
    """

    def __init__(self, space: LatentSpace, places: Sequence[int], hidden: int) -> None:
        super().__init__(space, len(places), 0, hidden)
        self.places = list(places)

    def log_prob(self, z: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """Return log p_φ(z|s), (B,)."""
        return super().log_prob(z, s[..., self.places], a[..., :0])


class PathwiseAgent(nn.Module):
    """The networks π(a|s,z), π(z|s₁) and p_φ(z|s,a).

    Args:
        dynamics: The model.
        config: z, the estimator, and all sizes.
    """

    def __init__(self, dynamics: Dynamics, config: PathwiseAgentConfig) -> None:
        super().__init__()
        self.dynamics, self.config = dynamics, config
        kind = "categorical" if config.categories else "none"
        self.space = make_latent(kind, config.categories, 0.0)
        sizes = dynamics.state_dim, dynamics.action_dim
        self.pi = GaussianPolicy(*sizes, self.space.dim, config.hidden_dim, config.std_scale)
        self.pi_z = LatentPolicy(self.space, sizes[0], config.hidden_dim, learned=True)
        self.p_phi: Posterior = (
            Posterior(self.space, *sizes, config.hidden_dim)
            if config.posterior == "state_action"
            else PlacesPosterior(self.space, dynamics.places, config.hidden_dim)
        )

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return function(self, *inputs): what `functional_call` needs."""
        return function(self, *inputs)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draw what `count` episodes need."""
        steps = self.dynamics.task.episode_length
        return Draws(
            self.dynamics.start((count,), generator),
            self.space.noise((count,), generator),
            torch.randn(steps, count, self.dynamics.action_dim, generator=generator),
        )


def losses(agent: PathwiseAgent, weight: float, draws: Draws) -> dict[str, Tensor]:
    """Return the loss of each network, for its own gradient alone.

    Args:
        agent: The agent.
        weight: Of consistency and entropies, a factor on those of the config.
        draws: Of the batch.
    """
    config, z = agent.config, agent.pi_z(draws.s1, draws.z)
    weights = Weights(config.reward_weight, weight * config.consistency, weight * config.entropy_a)
    run = rollout(agent.dynamics, agent.pi, draws.s1, z, draws.noise, config.pathwise)
    loss, returned = action_loss(run, z, agent.p_phi, weights, config.pathwise)
    found = {"pi": loss}
    outputs = agent.pi_z.outputs(draws.s1)
    if outputs is not None:
        entropy = weight * config.entropy_z * agent.space.entropy(outputs).mean()
        found["pi_z"] = latent_loss(returned, agent.space.log_prior(z, outputs)) - entropy
        found["p_phi"] = posterior_loss(run, z, agent.p_phi)
    return found


@torch.no_grad()
def outcome(agent: PathwiseAgent, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Return returns (B,), successes (B,) and states (T + 1, B, S) of sampled episodes."""
    z = agent.pi_z(draws.s1, draws.z)
    run = rollout(agent.dynamics, agent.pi, draws.s1, z, draws.noise, False)
    return run.rewards.sum(0), agent.dynamics.success(run.states[-1]), run.states


class PathwiseLearner:
    """Trains one agent for each of several seeds, side by side.

    Operators are small: ten seeds take little longer than one.

    Args:
        dynamics: The model.
        config: Of the agents.
        seeds: Of their weights and draws.
    """

    def __init__(
        self, dynamics: Dynamics, config: PathwiseAgentConfig, seeds: Sequence[int]
    ) -> None:
        self.config, self.agents = config, []
        for seed in seeds:
            torch.manual_seed(seed)
            self.agents.append(PathwiseAgent(dynamics, config))
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.looking = [torch.Generator().manual_seed(seed + 1_000_000) for seed in seeds]
        """What is only looked at draws from others, so that looking changes nothing."""
        self.agent = self.agents[0]
        state, _ = stack_module_state(self.agents)
        self.state: dict[str, Tensor] = state
        self.optimizer = torch.optim.Adam(self.state.values(), lr=config.lr)
        self.weight = 1.0

    def apply(self, count: int, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call function(agent, *inputs, draws) of every seed on `count` fresh episodes."""
        return self._apply(self.looking, count, function, *inputs)

    def _apply(
        self,
        generators: Sequence[torch.Generator],
        count: int,
        function: Callable[..., Any],
        *inputs: Any,
    ) -> Any:
        drawn = [self.agent.draw(count, generator) for generator in generators]
        draws = Draws(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))
        return torch.vmap(
            lambda state, own: functional_call(self.agent, state, (function, *inputs, own))
        )(self.state, draws)

    def gradients(self, generators: Sequence[torch.Generator]) -> dict[str, list[Tensor]]:
        """Return the gradient of each network, its parameters with a leading axis of seeds."""
        found = self._apply(generators, self.config.batch_size, losses, self.weight)
        gradients = {}
        for part, loss in found.items():
            own = [p for name, p in self.state.items() if name.startswith(f"{part}.")]
            gradients[part] = list(torch.autograd.grad(loss.sum(), own, retain_graph=True))
        return gradients

    def update(self) -> None:
        """Take one Adam step of each network on fresh episodes."""
        for part, found in self.gradients(self.generators).items():
            squares = [g.flatten(1).square().sum(1) for g in found]
            norm = torch.stack(squares).sum(0).sqrt()
            factor = (CLIP / (norm + 1e-6)).clamp(max=1.0)
            own = [p for name, p in self.state.items() if name.startswith(f"{part}.")]
            for p, g in zip(own, found, strict=True):
                p.grad = g * factor.view(-1, *[1] * (g.dim() - 1))
        self.optimizer.step()
        self.weight *= self.config.decay

    def noise_to_signal(self, batches: int) -> Tensor:
        """Return the variance of the gradient of π(a|s,z) of a batch over its squared mean.

        Args:
            batches: Independent gradients that both are estimated from.

        Returns:
            One number a seed.
        """
        found = []
        for _ in range(batches):
            own = self.gradients(self.looking)["pi"]
            found.append(torch.cat([g.flatten(1) for g in own], 1))
        each = torch.stack(found)
        variance = each.var(0).sum(1)
        # The square of the mean of so many batches has a part of their variance in it.
        signal = each.mean(0).square().sum(1) - variance / batches
        return variance / signal.clamp(min=1e-12)
