"""The joint policy of Eq. 1: π(z|s₁), drawn once per episode, and π(a|s,z)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_rpg.agent.latent import LatentSpace, bounded_log_std
from vis_rpg.agent.networks import Linear, mlp


class ActionPolicy(nn.Module):
    """An action policy π(a|s,z) on [-1, 1]^A: a density of u, squashed by a = tanh(u).

    Attributes:
        noise_dim: Standard normal numbers that an action is made of, E.
    """

    noise_dim: int

    def forward(self, s: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample reparameterized actions.

        Args:
            s: (B, S).
            z: (B, Z).
            noise: (B, E).

        Returns:
            Actions (B, A) and log π(a|s,z), (B,).
        """
        raise NotImplementedError

    def log_prob(self, s: Tensor, z: Tensor, a: Tensor) -> Tensor:
        """Return log π(a|s,z) of given actions (B, A): (B,)."""
        raise NotImplementedError

    def mean_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the action without noise, (B, A)."""
        raise NotImplementedError


def log_slope(u: Tensor) -> Tensor:
    """Return log |d tanh(u) / du| of each number."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def unsquash(a: Tensor) -> Tensor:
    """Return u of tanh(u) = a, for actions at the bounds one just within."""
    return torch.atanh(a.clamp(-1 + 1e-6, 1 - 1e-6))


def log_normal(noise: Tensor, std: Tensor) -> Tensor:
    """Return the log density of mean + std * noise of each number."""
    return -0.5 * noise**2 - std.log() - 0.5 * math.log(2 * math.pi)


class GaussianPolicy(ActionPolicy):
    """A tanh-normal with a state-dependent std.

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
        self.std_scale, self.noise_dim = std_scale, action_dim

    def distribution(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, each (B, A), of the normal before the tanh."""
        mean, raw = self.net(s, z).chunk(2, -1)
        return mean, bounded_log_std(raw).exp() * self.std_scale

    def forward(self, s: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample a = tanh(mean + std * noise)."""
        mean, std = self.distribution(s, z)
        u = mean + std * noise
        return torch.tanh(u), (log_normal(noise, std) - log_slope(u)).sum(-1)

    def log_prob(self, s: Tensor, z: Tensor, a: Tensor) -> Tensor:
        """Return log π(a|s,z)."""
        mean, std = self.distribution(s, z)
        u = unsquash(a)
        return (log_normal((u - mean) / std, std) - log_slope(u)).sum(-1)

    def mean_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return tanh(mean)."""
        return torch.tanh(self.distribution(s, z)[0])


class MixturePolicy(ActionPolicy):
    """A mixture of tanh-normals.

    The density is exact. The choice of a component is an arg max of Gumbel noise and logits, whose
    gradient is that of their softmax (straight through), so that logits learn from Q as well.

    Args:
        state_dim: S.
        action_dim: A.
        z_dim: Z.
        hidden: Width of hidden layers.
        std_scale: Factor on the stds.
    """

    COMPONENTS = 12

    def __init__(
        self, state_dim: int, action_dim: int, z_dim: int, hidden: int, std_scale: float
    ) -> None:
        super().__init__()
        self.net = mlp(state_dim + z_dim, self.COMPONENTS * (2 * action_dim + 1), hidden)
        self.std_scale, self.action_dim = std_scale, action_dim
        self.noise_dim = action_dim + self.COMPONENTS

    def distribution(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights (B, K), means and stds (B, K, A) of K components, before the tanh."""
        K, A = self.COMPONENTS, self.action_dim
        logits, mean, raw = self.net(s, z).split([K, K * A, K * A], -1)
        std = bounded_log_std(raw).exp() * self.std_scale
        return logits.log_softmax(-1), mean.unflatten(-1, (K, A)), std.unflatten(-1, (K, A))

    @staticmethod
    def _log_density(u: Tensor, log_weight: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        own = log_normal((u.unsqueeze(-2) - mean) / std, std).sum(-1)
        return (log_weight + own).logsumexp(-1) - log_slope(u).sum(-1)

    def forward(self, s: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample a component, then from it."""
        log_weight, mean, std = self.distribution(s, z)
        own, choice = noise.split([self.action_dim, self.COMPONENTS], -1)
        uniform = (0.5 * torch.erfc(-choice / math.sqrt(2))).clamp(1e-7, 1 - 1e-7)
        scores = log_weight - torch.log(-torch.log(uniform))  # with Gumbel noise
        soft = scores.softmax(-1)
        hard = F.one_hot(scores.argmax(-1), self.COMPONENTS).to(soft.dtype)
        share = (hard + soft - soft.detach()).unsqueeze(-1)
        u = (share * (mean + std * own.unsqueeze(-2))).sum(-2)
        return torch.tanh(u), self._log_density(u, log_weight, mean, std)

    def log_prob(self, s: Tensor, z: Tensor, a: Tensor) -> Tensor:
        """Return log π(a|s,z)."""
        return self._log_density(unsquash(a), *self.distribution(s, z))

    def mean_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return tanh of the mean of the likeliest component."""
        log_weight, mean, _ = self.distribution(s, z)
        row = log_weight.argmax(-1)[..., None, None].expand(*mean.shape[:-2], 1, mean.shape[-1])
        return torch.tanh(mean.gather(-2, row).squeeze(-2))


class FlowPolicy(ActionPolicy):
    """A normalising flow: a normal, then inverse autoregressive layers (Kingma et al. 2016).

    Each layer maps u_i to u_i exp(log_scale_i) + shift_i, both functions of context and u_1 ..
    u_{i-1}; the order turns round between layers. They begin as the identity.

    Args:
        state_dim: S.
        action_dim: A.
        z_dim: Z.
        hidden: Width of hidden layers.
        std_scale: Factor on the std of the normal.
    """

    LAYERS = 4

    def __init__(
        self, state_dim: int, action_dim: int, z_dim: int, hidden: int, std_scale: float
    ) -> None:
        super().__init__()
        self.net = mlp(state_dim + z_dim, 2 * action_dim + hidden, hidden)
        self.flow = nn.ModuleList(
            AutoregressiveLayer(action_dim, hidden) for _ in range(self.LAYERS)
        )
        self.std_scale, self.noise_dim = std_scale, action_dim

    def distribution(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and std (B, A) of the normal, and the layers' context (B, hidden)."""
        A = self.noise_dim
        mean, raw, context = self.net(s, z).split(
            [A, A, self.net.layers[-1].out_features - 2 * A], -1
        )
        return mean, bounded_log_std(raw).exp() * self.std_scale, context

    def forward(self, s: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample from the normal and run the layers."""
        mean, std, context = self.distribution(s, z)
        u, log_density = mean + std * noise, log_normal(noise, std)
        for layer in self.flow:
            shift, log_scale = layer(u, context)
            u, log_density = u * log_scale.exp() + shift, log_density - log_scale
            u, log_density = u.flip(-1), log_density.flip(-1)
        return torch.tanh(u), (log_density - log_slope(u)).sum(-1)

    def log_prob(self, s: Tensor, z: Tensor, a: Tensor) -> Tensor:
        """Return log π(a|s,z); layers are inverted number by number."""
        mean, std, context = self.distribution(s, z)
        u = unsquash(a)
        log_density = -log_slope(u).sum(-1)
        for layer in reversed(self.flow):
            u = u.flip(-1)
            before = torch.zeros_like(u)
            for i in range(u.shape[-1]):
                shift, log_scale = layer(before, context)
                known = (u - shift) * (-log_scale).exp()
                before = torch.cat(
                    [before[..., :i], known[..., i : i + 1], before[..., i + 1 :]], -1
                )
            log_density = log_density - layer(before, context)[1].sum(-1)
            u = before
        return log_density + log_normal((u - mean) / std, std).sum(-1)

    def mean_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the action that the normal's mean is mapped to."""
        return self(
            s, z, torch.zeros(*s.shape[:-1], self.noise_dim, dtype=s.dtype, device=s.device)
        )[0]


class AutoregressiveLayer(nn.Module):
    """A masked MLP (Germain et al. 2015): outputs i see inputs before i, and all of the context.

    Args:
        size: A.
        hidden: Width of the context and of the hidden layer.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.first, self.context = Linear(size, hidden), Linear(hidden, hidden)
        self.last = Linear(hidden, 2 * size)
        self.direct = Linear(hidden, 2 * size)  # without it the first number would not see context
        for layer in (self.last, self.direct):
            nn.init.zeros_(layer.weight)
        degree = torch.arange(hidden) % max(size - 1, 1)
        order = torch.arange(size)
        self.register_buffer("seen", (degree[:, None] >= order).float(), persistent=False)
        after = (order[:, None] > degree).float().repeat(2, 1)
        self.register_buffer("after", after, persistent=False)
        self.seen: Tensor
        self.after: Tensor

    def forward(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and log scale, each (B, A), for u (B, A) and context (B, hidden)."""
        first = F.linear(u, self.first.weight * self.seen, self.first.bias)
        x = F.elu(first + self.context(context))
        found = F.linear(x, self.last.weight * self.after, self.last.bias) + self.direct(context)
        shift, raw = found.chunk(2, -1)
        return shift, 2 * torch.tanh(raw / 2)


POLICIES: dict[str, type[GaussianPolicy] | type[MixturePolicy] | type[FlowPolicy]] = {
    "gaussian": GaussianPolicy,
    "gmm": MixturePolicy,
    "flow": FlowPolicy,
}
"""By `agent.policy.kind`."""


class LatentPolicy(nn.Module):
    """The latent policy π(z|s₁), or π(z|s, z before) where z is drawn anew within episodes.

    It is the space's fixed prior (sparse tasks), or learned by policy gradient (dense tasks).

    Args:
        space: The space of z.
        state_dim: S.
        hidden: Width of hidden layers.
        learned: Whether π(z|s₁) is learned.
        follows: Whether it sees the z before, of zeros at an episode's start.
    """

    def __init__(
        self,
        space: LatentSpace,
        state_dim: int,
        hidden: int,
        learned: bool,
        follows: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        inputs = state_dim + follows * space.dim
        self.net = mlp(inputs, space.prior_outputs, hidden) if learned and space.dim else None
        if self.net is not None:
            # Starts as the fixed prior: N(0, I), or uniform.
            nn.init.zeros_(self.net.get_parameter("layers.2.weight"))

    def outputs(self, s1: Tensor, before: Tensor | None = None) -> Tensor | None:
        """Return the outputs that parameterise π(z|s₁); None for a fixed prior.

        Args:
            s1: States where z is drawn, (B, S).
            before: The z before, (B, Z), where π sees it.
        """
        if self.net is None:
            return None
        return self.net(s1) if before is None else self.net(s1, before)

    def log_prob(self, z: Tensor, s1: Tensor, before: Tensor | None = None) -> Tensor:
        """Return log π(z|s₁), (B,), for z (B, Z); the rest as of `outputs`."""
        outputs = self.outputs(s1, before)
        if outputs is None:
            outputs = z.new_zeros(*z.shape[:-1], self.space.prior_outputs)
        return self.space.log_prior(z, outputs)

    def forward(self, s1: Tensor, noise: Tensor, before: Tensor | None = None) -> Tensor:
        """Draw z (B, Z) by noise (B, Z), without gradient; the rest as of `outputs`."""
        with torch.no_grad():
            return self.space.sample(noise, self.outputs(s1, before))
