"""Reparameterized policy learning on the bandit of Fig. 4: Eq. 2 with the exact reward.

One step, so γ = 0 and H = 1: no critic, no replay, no world model. π(z|s), π(a|s,z) and p_φ(z|s,a)
are the modules of the full agent. The reward is known and differentiable, so π(a|s,z) follows its
pathwise gradient, while π(z|s) learns by the score function. Symbols and shapes as in
`vis_rpg.agent`; x = REACH * a is the action in the units of the reward. s is a constant one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vis_rpg.agent.latent import Posterior, make_latent
from vis_rpg.agent.policy import GaussianPolicy, LatentPolicy, log_slope
from vis_rpg.config import BanditRPGConfig
from vis_rpg.envs.tasks.bandit import REACH, bandit_reward


@dataclass
class Modes:
    """A policy: a mixture of tanh-normals on [-1, 1], one for each z, or one without z."""

    probability: Tensor
    """(Z,)."""
    mean: Tensor
    """(Z,), before the tanh."""
    std: Tensor
    """(Z,), before the tanh."""
    elbo: float = math.nan
    """Of Eq. 2 with unit weights, in nats; NaN for an agent without z."""


class Learner(Protocol):
    """An agent for the bandit: `BanditRPG` or `GaussianReinforce`."""

    def update(self, generator: torch.Generator) -> None:
        """Take one gradient step on fresh actions."""

    def modes(self) -> Modes:
        """Return the current policy."""


class BanditRPG(nn.Module):
    """RPG with a categorical z on a known reward.

    All weights of Eq. 2 except that of the reward decay towards zero. The entropy of π(z|s) must
    weigh as much as the consistency: only then do the two add up to the mutual information of z and
    action, which is largest for many z with distinct actions. With less, one wide z that always
    acts is at least as good, and π(z|s) collapses before the rewards of the others are known.
    """

    def __init__(self, config: BanditRPGConfig) -> None:
        """Make the networks from the section `rpg` of the config."""
        super().__init__()
        self.config = config
        self.space = make_latent("categorical", config.categories, 0.0)
        self.pi = GaussianPolicy(1, 1, self.space.dim, config.hidden_dim, config.std_scale)
        self.pi_z = LatentPolicy(self.space, 1, config.hidden_dim, learned=True)
        self.p_phi = Posterior(self.space, 1, 1, config.hidden_dim)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.lr, fused=True)
        self.weight = 1.0  # of consistency and entropies, times `decay` per update

    def losses(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of π(a|s,z), of π(z|s) and of p_φ, each for its own network alone.

        The first is minus the terms of Eq. 2 that depend on the action.

        Args:
            z: (B, Z) drawn from π(z|s).
            noise: (B, 1) standard normal.
        """
        s = torch.ones_like(noise)
        a, log_pi = self.pi(s, z, noise)
        log_p_z = self.p_phi.log_prob(z, s, a)
        reward = self.config.reward_weight * bandit_reward(REACH * a).squeeze(-1)
        value = reward + self.weight * (
            self.config.consistency * log_p_z - self.config.entropy_a * log_pi
        )

        outputs = self.pi_z.outputs(s[:1])
        assert outputs is not None
        advantage = leave_one_out(value.detach())
        entropy = self.weight * self.config.entropy_z * self.space.entropy(outputs)
        latent_loss = -(advantage * self.space.log_prior(z, outputs)).mean() - entropy.mean()
        return -value.mean(), latent_loss, -log_p_z.mean()

    def update(self, generator: torch.Generator) -> None:
        """Take one Adam step of all three networks on fresh draws of z and a."""
        batch = self.config.batch_size
        noise = torch.randn(batch, 1, generator=generator)
        z = self.pi_z(torch.ones(1, 1), self.space.noise((batch,), generator))
        for part, loss in zip((self.pi, self.pi_z, self.p_phi), self.losses(z, noise), strict=True):
            parameters = list(part.parameters())
            for p, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
            ):
                p.grad = gradient
        self.optimizer.step()
        self.weight *= self.config.decay

    @torch.no_grad()
    def modes(self) -> Modes:
        """Return one tanh-normal for each category."""
        z = torch.eye(self.space.dim)
        s = torch.ones(self.space.dim, 1)
        outputs = self.pi_z.outputs(s[:1])
        assert outputs is not None
        mean, std = self.pi.distribution(s, z)
        own = outputs.softmax(-1).squeeze(0), mean.squeeze(-1), std.squeeze(-1)
        return Modes(*own, elbo=self.elbo(*own))

    def elbo(self, probability: Tensor, mean: Tensor, std: Tensor) -> float:
        """Return the bound of Eq. 2 on log p(O), in nats, by quadrature over u = atanh(a).

        It is the mean over z and a of w R(a) + log p(a) + log p_φ(z|s,a) - log π(z|s) - log
        π(a|s,z), with a uniform p(a) on [-1, 1] and w the weight of the reward.

        Args:
            probability: π(z|s), (Z,).
            mean: Of u, (Z,).
            std: Of u, (Z,).
        """
        u, du, weighted = quadrature(self.config.reward_weight)
        a, normal = u.tanh().float(), torch.distributions.Normal(mean[:, None], std[:, None])
        log_u = normal.log_prob(u.float()).double()
        z = torch.eye(self.space.dim)[:, None].expand(-1, len(u), -1)
        rows = a[None, :, None].expand(len(z), -1, -1)
        log_z = self.p_phi.log_prob(z, torch.ones_like(rows), rows).double()
        inner = weighted + log_z - probability.double().clamp(min=1e-40).log()[:, None] - log_u
        return float((probability.double() @ (log_u.exp() * inner).sum(-1)) * du)


def leave_one_out(value: Tensor) -> Tensor:
    """Return values (..., B) minus the mean of the others: a baseline that leaves no bias."""
    return value - (value.sum(-1, keepdim=True) - value) / (value.shape[-1] - 1)


def quadrature(weight: float) -> tuple[Tensor, float, Tensor]:
    """Return a grid of u = atanh(a), its step, and w R(a) + log p(a) + log da/du at each point."""
    u = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    reward = weight * bandit_reward(REACH * u.tanh())
    return u, float(u[1] - u[0]), reward - math.log(2) + log_slope(u)


def log_evidence(weight: float) -> float:
    """Return log p(O) = log of the mean of exp(w R(a)) over uniform actions, in nats."""
    _, du, weighted = quadrature(weight)
    return float(weighted.logsumexp(0)) + math.log(du)


def mean_reward(modes: Modes, actions: int, generator: torch.Generator) -> float:
    """Return the mean reward of this many sampled actions."""
    z = torch.multinomial(modes.probability, actions, replacement=True, generator=generator)
    u = modes.mean[z] + modes.std[z] * torch.randn(actions, generator=generator)
    return bandit_reward(REACH * u.tanh()).mean().item()


def density(modes: Modes, x: Tensor) -> Tensor:
    """Return the density of each z's share; the shares sum to the density of the policy.

    Args:
        modes: The policy.
        x: (X,) actions strictly within (-REACH, REACH).

    Returns:
        (Z, X).
    """
    a = x / REACH
    normal = torch.distributions.Normal(modes.mean[:, None], modes.std[:, None])
    return modes.probability[:, None] * normal.log_prob(a.atanh()).exp() / (REACH * (1 - a**2))


def train(
    learner: Learner, updates: int, every: int, generator: torch.Generator
) -> Iterator[tuple[int, Modes]]:
    """Train, reporting before the first update, after each `every`, and after the last.

    Yields:
        The number of updates done and the policy.
    """
    yield 0, learner.modes()
    for done in range(1, updates + 1):
        learner.update(generator)
        if done % every == 0 or done == updates:
            yield done, learner.modes()
