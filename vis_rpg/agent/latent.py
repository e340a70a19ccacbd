"""Latent spaces of z, and the posterior p_φ(z|s,a), which keeps trajectories consistent with z.

A space has no parameters: it draws z from noise and scores z under the outputs of a network. Noise
is an argument, so callers are pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_rpg.agent.networks import mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


def bounded_log_std(raw: Tensor) -> Tensor:
    """Map any number smoothly into (LOG_STD_MIN, LOG_STD_MAX).

    It is the identity up to 1 from a bound and a tanh beyond. Unlike a clamp it has a gradient
    everywhere, so an overshot value can return.
    """
    linear = raw.clamp(LOG_STD_MIN + 1, LOG_STD_MAX - 1)
    return linear + torch.tanh(raw - linear)


class LatentSpace(Protocol):
    """A space of z; B stands for any leading shape.

    Attributes:
        dim: Width of z as networks see it; 0 for no latent.
        posterior_outputs: Outputs of the network of p_φ.
        prior_outputs: Outputs of the network of a learned π(z|s₁), which is the fixed prior where
            they are zeros.
    """

    dim: int
    posterior_outputs: int
    prior_outputs: int

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the noise (*shape, dim) that `sample` turns into z."""

    def sample(self, noise: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Turn noise into z (B, dim).

        Args:
            noise: (B, dim).
            outputs: Network outputs of π(z|s₁), (B, prior_outputs); None for the fixed prior.
        """

    def log_prior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return log π(z|s₁), (B,)."""

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy of π(z|s₁), (B,)."""

    def divergence(self, outputs: Tensor) -> Tensor:
        """Return KL(π(z|s₁) ‖ fixed prior), (B,)."""

    def log_posterior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return log p_φ(z|s,a), (B,)."""


class GaussianLatent:
    """Continuous z in R^dim.

    The prior is N(0, I), or a diagonal normal if learned; p_φ is a normal with a fixed std.

    Args:
        dim: Z.
        posterior_std: Std of p_φ (Table 1: 0.38).
    """

    def __init__(self, dim: int, posterior_std: float) -> None:
        self.dim = self.posterior_outputs = dim
        self.prior_outputs = 2 * dim
        self.posterior_std = posterior_std

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal noise (*shape, dim)."""
        return torch.randn(*shape, self.dim, generator=generator, device=generator.device)

    @staticmethod
    def _prior(outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and bounded log std."""
        mean, raw = outputs.chunk(2, -1)
        return mean, bounded_log_std(raw)

    def sample(self, noise: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return mean + std * noise, (B, dim); the noise itself for the fixed prior."""
        if outputs is None:
            return noise
        mean, log_std = self._prior(outputs)
        return mean + log_std.exp() * noise

    def log_prior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the log density of z under the diagonal normal, (B,)."""
        mean, log_std = self._prior(outputs)
        exponent = -0.5 * ((z - mean) / log_std.exp()) ** 2
        return (exponent - log_std).sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy of the diagonal normal, (B,)."""
        return self._prior(outputs)[1].sum(-1) + 0.5 * self.dim * math.log(2 * math.pi * math.e)

    def divergence(self, outputs: Tensor) -> Tensor:
        """Return the divergence of the diagonal normal from N(0, I), (B,)."""
        mean, log_std = self._prior(outputs)
        return (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).sum(-1)

    def log_posterior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the log density of z around the network's outputs (B, dim): (B,)."""
        constant = self.dim * (math.log(self.posterior_std) + 0.5 * math.log(2 * math.pi))
        return (-0.5 / self.posterior_std**2) * ((z - outputs) ** 2).sum(-1) - constant


class CategoricalLatent:
    """One-hot z of `dim` categories.

    The prior is uniform, or a softmax if learned; p_φ is a softmax.

    Args:
        dim: Z.
    """

    def __init__(self, dim: int) -> None:
        self.dim = self.posterior_outputs = self.prior_outputs = dim

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise, so that sampling is an arg max."""
        uniform = torch.rand(*shape, self.dim, generator=generator, device=generator.device)
        return -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))

    def sample(self, noise: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return the one-hot arg max (B, dim) of noise plus logits."""
        logits = noise if outputs is None else noise + outputs
        return F.one_hot(logits.argmax(-1), self.dim).to(noise.dtype)

    def log_prior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the log probability of z under the softmax of outputs, (B,)."""
        return (z * outputs.log_softmax(-1)).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy of the softmax, (B,)."""
        log_p = outputs.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def divergence(self, outputs: Tensor) -> Tensor:
        """Return the divergence of the softmax from the uniform prior, (B,)."""
        return math.log(self.dim) - self.entropy(outputs)

    log_posterior = log_prior


class NoLatent:
    """The empty space, which turns the agent into MBSAC: one Gaussian mode, the same updates."""

    dim = posterior_outputs = prior_outputs = 0

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return noise of width 0, (*shape, 0)."""
        return torch.zeros(*shape, 0, device=generator.device)

    def sample(self, noise: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return the empty z, (B, 0)."""
        return noise

    def log_prior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return zeros (B,)."""
        return z.sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return zeros (B,)."""
        return outputs.sum(-1)

    divergence, log_posterior = entropy, log_prior


class MixedLatent:
    """A one-hot half and a Gaussian half, independent of each other.

    Args:
        dim: Z; the categories are its half, rounded up.
        posterior_std: Std of the Gaussian half of p_φ.
    """

    def __init__(self, dim: int, posterior_std: float) -> None:
        self.dim = dim
        categories = (dim + 1) // 2
        self.parts: tuple[LatentSpace, ...] = (
            CategoricalLatent(categories),
            GaussianLatent(dim - categories, posterior_std),
        )
        self.posterior_outputs = sum(part.posterior_outputs for part in self.parts)
        self.prior_outputs = sum(part.prior_outputs for part in self.parts)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([part.dim for part in self.parts], -1)

    def _outputs(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return outputs.split([part.prior_outputs for part in self.parts], -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw Gumbel noise and standard normal noise."""
        return torch.cat([part.noise(shape, generator) for part in self.parts], -1)

    def sample(self, noise: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return both halves, (B, dim)."""
        given = (None, None) if outputs is None else self._outputs(outputs)
        halves = zip(self.parts, self._split(noise), given, strict=True)
        return torch.cat([part.sample(own, out) for part, own, out in halves], -1)

    def log_prior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of both halves, (B,)."""
        halves = zip(self.parts, self._split(z), self._outputs(outputs), strict=True)
        return sum((part.log_prior(*own) for part, *own in halves), z.new_zeros(()))

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum of both halves, (B,)."""
        halves = zip(self.parts, self._outputs(outputs), strict=True)
        return sum((part.entropy(own) for part, own in halves), outputs.new_zeros(()))

    def divergence(self, outputs: Tensor) -> Tensor:
        """Return the sum of both halves, (B,)."""
        halves = zip(self.parts, self._outputs(outputs), strict=True)
        return sum((part.divergence(own) for part, own in halves), outputs.new_zeros(()))

    def log_posterior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of both halves, (B,)."""
        own = outputs.split([part.posterior_outputs for part in self.parts], -1)
        halves = zip(self.parts, self._split(z), own, strict=True)
        return sum((part.log_posterior(*each) for part, *each in halves), z.new_zeros(()))


class SphereLatent:
    """Unit vectors in R^dim, uniform; p_φ is a von Mises-Fisher distribution of fixed width.

    The prior cannot be learned.

    Args:
        dim: Z, at least 2.
        posterior_std: p_φ has the concentration 1 / posterior_std², so that it is about as wide
            along the sphere as a normal of this std.
    """

    prior_outputs = 0

    def __init__(self, dim: int, posterior_std: float) -> None:
        self.dim = self.posterior_outputs = dim
        self.concentration = 1 / posterior_std**2
        order = dim / 2 - 1
        # log I(κ), of the modified Bessel function of the first kind.
        bessel = math.log(scipy.special.ive(order, self.concentration)) + self.concentration
        area = 0.5 * dim * math.log(2 * math.pi)
        self.log_constant = order * math.log(self.concentration) - area - bessel
        self.log_uniform = math.lgamma(dim / 2) - math.log(2) - 0.5 * dim * math.log(math.pi)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw standard normal noise (*shape, dim)."""
        return torch.randn(*shape, self.dim, generator=generator, device=generator.device)

    def sample(self, noise: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return the direction of the noise, (B, dim)."""
        return F.normalize(noise, dim=-1)

    def log_prior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the log density of the uniform distribution, (B,)."""
        return torch.full_like(z[..., 0], self.log_uniform)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return zeros (B,): the prior is fixed."""
        return outputs.sum(-1)

    divergence = entropy

    def log_posterior(self, z: Tensor, outputs: Tensor) -> Tensor:
        """Return the log density on the sphere about the direction of outputs (B, dim): (B,)."""
        cosine = (z * F.normalize(outputs, dim=-1)).sum(-1)
        return self.concentration * cosine + self.log_constant


SPACES: dict[str, Callable[[int, float], LatentSpace]] = {
    "gaussian": GaussianLatent,
    "categorical": lambda dim, posterior_std: CategoricalLatent(dim),
    "mixed": MixedLatent,
    "sphere": SphereLatent,
    "none": lambda dim, posterior_std: NoLatent(),
}
"""By `agent.latent.kind`."""


def make_latent(kind: str, dim: int, posterior_std: float) -> LatentSpace:
    """Make a latent space.

    Args:
        kind: A name of `SPACES`; "none" is MBSAC's.
        dim: Z.
        posterior_std: Std of a Gaussian p_φ.
    """
    return SPACES[kind](dim, posterior_std)


class Posterior(nn.Module):
    """The posterior p_φ(z|s,a); its log is the consistency reward of Eq. 2.

    Args:
        space: The space of z.
        state_dim: S.
        action_dim: A.
        hidden: Width of hidden layers.
    """

    def __init__(self, space: LatentSpace, state_dim: int, action_dim: int, hidden: int) -> None:
        super().__init__()
        self.space = space
        inputs = state_dim + action_dim
        self.net = mlp(inputs, space.posterior_outputs, hidden) if space.dim else None

    def log_prob(self, z: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """Return log p_φ(z|s,a), (B,), for z (B, Z), s (B, S), a (B, A); zero without a latent."""
        if self.net is None:
            return s.new_zeros(s.shape[:-1])
        return self.space.log_posterior(z, self.net(s, a))
