"""The joint policy of Eq. 1: π(z|s₁), drawn once per episode, and π(a|s,z)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_rpg.agent.latent import LatentSpace, bounded_log_std
from vis_rpg.agent.networks import mlp


class ActionPolicy(nn.Module):
    """The action policy π(a|s,z): a tanh-normal on [-1, 1]^A with a state-dependent std.

    Args:
        state_dim: S.
        action_dim: A.
        z_dim: Z.
        hidden: Width of hidden layers.
        std_scale: Factor on the std.
    """

    def __init__(
        self, state_dim: int, action_dim: int, z_dim: int, hidden: int, std_scale: float
    ) -> None:
        super().__init__()
        self.net = mlp(state_dim + z_dim, 2 * action_dim, hidden)
        self.std_scale = std_scale

    def distribution(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, each (B, A), of the normal before the tanh."""
        mean, raw = self.net(s, z).chunk(2, -1)
        return mean, bounded_log_std(raw).exp() * self.std_scale

    def forward(self, s: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample reparameterized actions a = tanh(mean + std * noise).

        Args:
            s: (B, S).
            z: (B, Z).
            noise: (B, A).

        Returns:
            Actions (B, A) and log π(a|s,z), (B,).
        """
        mean, std = self.distribution(s, z)
        u = mean + std * noise
        log_normal = -0.5 * noise**2 - std.log() - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), (log_normal - log_slope).sum(-1)

    def mean_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the action without noise, (B, A)."""
        return torch.tanh(self.distribution(s, z)[0])


class LatentPolicy(nn.Module):
    """The latent policy π(z|s₁).

    It is the space's fixed prior (sparse tasks), or learned by policy gradient (dense tasks).

    Args:
        space: The space of z.
        state_dim: S.
        hidden: Width of hidden layers.
        learned: Whether π(z|s₁) is learned.
    """

    def __init__(self, space: LatentSpace, state_dim: int, hidden: int, learned: bool) -> None:
        super().__init__()
        self.space = space
        self.net = mlp(state_dim, space.prior_outputs, hidden) if learned and space.dim else None
        if self.net is not None:
            # Starts as the fixed prior: N(0, I), or uniform.
            nn.init.zeros_(self.net.get_parameter("layers.2.weight"))

    def outputs(self, s1: Tensor) -> Tensor | None:
        """Return the outputs that parameterise π(z|s₁) at s1 (B, S); None for a fixed prior."""
        return None if self.net is None else self.net(s1)

    def forward(self, s1: Tensor, noise: Tensor) -> Tensor:
        """Draw z (B, Z) at the first states of episodes s1 (B, S), without gradient."""
        with torch.no_grad():
            return self.space.sample(noise, self.outputs(s1))
