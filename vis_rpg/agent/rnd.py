"""Object-centric exploration (Section 4.3.2): random network distillation on the novelty of an
observation, and nothing else.

M novelty width, N objects, each with M / N numbers of the novelty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from perception.encoders.cnn import STACK, Conv4, encode_pairs
from vis_rpg.agent.networks import MLP
from vis_rpg.agent.rnd_inputs import FrameNovelty

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
        self.squares += (
            weight * ((x - x.mean()) ** 2).sum() + delta**2 * self.count * number / total
        )
        self.mean += delta * number / total
        self.count += number

    @torch.no_grad()
    def follow(self, before: Tensor, after: Tensor) -> None:
        """What gave `before` (B,) now gives `after` (B,): move the mean along, so that it is as
        usual as it was."""
        self.mean += after.mean() - before.mean()

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, clipped at +-100; zero as long as nothing has been counted."""
        std = (self.squares / self.count.clamp(min=1.0)).sqrt().clamp(min=1e-8)
        return torch.where(
            self.count > 0, ((x - self.mean) / std).clamp(-CLIP, CLIP), torch.zeros_like(x)
        )


def rnd_network(inputs: int, width: int) -> MLP:
    """The 3-layer MLP with leaky ReLU of Appendix A."""
    return MLP(inputs, width, width, width, leaky=True)


class FrameNetwork(nn.Module):
    """The paper's convolutional RND network: frames (1 + T, B, H, W, 3) uint8 -> of pairs (T, B,
    D). It begins as all networks here do, by orthogonal weights, which four layers of ReLU neither
    damp nor blow up, and no biases, which would say the same of all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = Conv4(3 * STACK)
        for layer in self.cnn:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
                nn.init.zeros_(layer.bias)

    def forward(self, frames: Tensor) -> Tensor:
        return encode_pairs(self.cnn, frames)


class ObjectRND(nn.Module):
    """g_θ distils a random network g'; its normalised error is the bonus, high where objects have
    seldom been.

    The mean IS subtracted: a familiar configuration earns a negative bonus. Statistics are
    cumulative over training batches and start after `warmup` updates, until when the bonus is zero.
    """

    updates: Tensor

    def __init__(
        self,
        novelty_dim: int,
        width: int,
        warmup: int,
        objects: int = 0,
        network: Callable[[], nn.Module] | None = None,
    ) -> None:
        """objects: above 0, each is scored alone, by networks that all share and that are told
        which one it is, and errors are summed; network: makes one that reads something else than
        (..., M), such as frames."""
        super().__init__()
        self.objects = objects
        make = network or partial(
            rnd_network, novelty_dim // objects + objects if objects else novelty_dim, width
        )
        self.predictor = make()
        self.target = make().requires_grad_(False)
        self.moments = RunningMoments()
        self.warmup = warmup
        self.register_buffer("updates", torch.zeros(()))

    def error(self, novelty: Tensor, presence: Tensor | None = None) -> Tensor:
        """Squared distance summed over outputs, which is also the predictor's loss: (..., M) ->
        (...).

        presence: (..., N) in [0, 1], weights of objects that are scored alone, None for 1: what is
        not there is not new.
        """
        errors = (self.residual(novelty) ** 2).sum(-1)
        if not self.objects:
            return errors
        return (errors if presence is None else errors * presence).sum(-1)

    def residual(self, novelty: Tensor, predictor: nn.Module | None = None) -> Tensor:
        """What a predictor, its own by default, misses of the target: (..., M) -> (..., width), or
        (..., N, width) of objects alone."""
        if self.objects:
            each = novelty.unflatten(-1, (self.objects, -1))
            which = torch.eye(self.objects, device=each.device, dtype=each.dtype).expand(
                *each.shape[:-1], -1
            )
            novelty = torch.cat([each, which], -1)
        whole = (
            self.moments.mean.dtype
        )  # whatever autocast makes of outputs: their difference is small
        return (predictor or self.predictor)(novelty).to(whole) - self.target(novelty).to(whole)

    @torch.no_grad()
    def count(self, error: Tensor) -> None:
        """Count errors (B,) of a training batch into the statistics, in place."""
        self.updates += 1
        self.moments.update(error, (self.updates > self.warmup).to(error.dtype))

    @torch.no_grad()
    def bonus(self, novelty: Tensor, presence: Tensor | None = None) -> Tensor:
        """Normalised error of observations (..., M) -> (...)."""
        return self.moments.normalise(self.error(novelty, presence))


class HasNovelty(Protocol):
    """A perception, or what stands in for its novelty."""

    object_count: int

    @property
    def novelty_dim(self) -> int: ...


def make_rnd(of: HasNovelty, config: Any) -> ObjectRND:
    """By the group `exploration`; raises ValueError where objects are to be scored one by one and
    the novelty knows none."""
    if config.per_object and not of.object_count:
        raise ValueError(
            "exploration.per_object=true: the novelty here knows no objects to score one by "
            "one; use per_object=false"
        )
    if isinstance(of, FrameNovelty):
        return ObjectRND(0, 0, config.warmup_updates, network=FrameNetwork)
    return ObjectRND(
        of.novelty_dim,
        config.width,
        config.warmup_updates,
        of.object_count if config.per_object else 0,
    )
