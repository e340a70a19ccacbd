"""Object-centric exploration (Section 4.3.2): random network distillation on what `Percept.novelty` holds, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vis_rpg.networks import linear

CLIP = 100.0


class RunningMoments(nn.Module):
    """Mean and variance over everything ever seen (Chan et al. 1983), kept on the device."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor, weight: Tensor) -> None:
        """Count a batch x (B,) in; weight: scalar, 0 leaves everything as it was."""
        number = weight * x.numel()
        total = (self.count + number).clamp(min=1.0)
        delta = x.mean() - self.mean
        self.squares += weight * ((x - x.mean()) ** 2).sum() + delta**2 * self.count * number / total
        self.mean += delta * number / total
        self.count += number

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, clipped at +-100; zero as long as nothing has been counted."""
        std = (self.squares / self.count.clamp(min=1.0)).sqrt().clamp(min=1e-8)
        return torch.where(self.count > 0, ((x - self.mean) / std).clamp(-CLIP, CLIP), torch.zeros_like(x))


def rnd_network(inputs: int, width: int) -> nn.Sequential:
    """The 3-layer MLP with leaky ReLU of Appendix A."""
    return nn.Sequential(linear(inputs, width), nn.LeakyReLU(), linear(width, width), nn.LeakyReLU(), linear(width, width))


class ObjectRND(nn.Module):
    """g_θ distils a random network g'; its normalised error is the bonus, high where objects have seldom been.

    The mean IS subtracted: a familiar configuration earns a negative bonus. Statistics are cumulative over training batches and start
    after `warmup` updates, until when the bonus is zero.
    """

    updates: Tensor

    def __init__(self, novelty_dim: int, width: int, warmup: int) -> None:
        super().__init__()
        self.predictor = rnd_network(novelty_dim, width)
        self.target = rnd_network(novelty_dim, width).requires_grad_(False)
        self.moments = RunningMoments()
        self.warmup = warmup
        self.register_buffer("updates", torch.zeros(()))

    def error(self, novelty: Tensor) -> Tensor:
        """Squared distance summed over outputs, which is also the predictor's loss: (..., M) -> (...)."""
        with torch.autocast(novelty.device.type, enabled=False):  # a small difference of large outputs
            return ((self.predictor(novelty) - self.target(novelty)) ** 2).sum(-1)

    @torch.no_grad()
    def count(self, error: Tensor) -> None:
        """Count errors (B,) of a training batch into the statistics, in place."""
        self.updates += 1
        self.moments.update(error, (self.updates > self.warmup).to(error.dtype))

    @torch.no_grad()
    def bonus(self, novelty: Tensor) -> Tensor:
        """Normalised error of observations (..., M) -> (...)."""
        return self.moments.normalise(self.error(novelty))
