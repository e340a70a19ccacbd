"""Random network distillation (Burda et al. 2019) as the object-centric bonus of Section 4.3.2.

M is the width of the RND's input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from perception.encoders.cnn import STACK, Conv4, encode_pairs
from vis_rpg.agent.networks import MLP

CLIP = 100.0


class RunningMeanStd(nn.Module):
    """Mean and variance of values, batch by batch (Chan et al. 1983), kept on the device.

    Args:
        window: Batches that are remembered, earlier ones fading away exponentially; 0: all.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, window: int = 0) -> None:
        super().__init__()
        self.window = window
        for name in ("count", "mean", "m2"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor, weight: Tensor) -> None:
        """Add a batch x (B,) to the statistics; a scalar weight of 0 leaves them unchanged."""
        number = weight * x.numel()
        if self.window:
            kept = ((self.window - 1) * x.numel() / self.count.clamp(min=1.0)).clamp(max=1.0)
            self.count *= kept**weight
            self.m2 *= kept**weight
        total = (self.count + number).clamp(min=1.0)
        delta = x.mean() - self.mean
        # `+=`, not `add_`, which compiled code drops for a 0-dimensional float64 tensor on a CPU.
        self.m2 += weight * ((x - x.mean()) ** 2).sum() + delta**2 * self.count * number / total
        self.mean += delta * number / total
        self.count += number

    def normalise(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std, clipped at ±100; zero before anything has been counted."""
        std = (self.m2 / self.count.clamp(min=1.0)).sqrt().clamp(min=1e-8)
        normal = ((x - self.mean) / std).clamp(-CLIP, CLIP)
        return torch.where(self.count > 0, normal, torch.zeros_like(x))


class FrameNetwork(nn.Module):
    """The paper's convolutional RND network: frames (1 + T, B, H, W, 3) uint8 -> pairs (T, B, D).

    Orthogonal weights keep the scale over four ReLU layers; biases, equal for all frames, are zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cnn = Conv4(3 * STACK)
        for layer in self.cnn:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
                nn.init.zeros_(layer.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode each frame together with the one before it: (T, B, D)."""
        return encode_pairs(self.cnn, frames)


class Bonus(nn.Module):
    """An exploration bonus: an error, normalised by that of training batches.

    The mean IS subtracted: what is familiar earns a negative bonus. Statistics are of all since
    `warmup` updates or of a window; until then the bonus is zero.

    Args:
        warmup: Updates before errors are counted.
        window: Updates whose errors are remembered, earlier ones fading away; 0: all.
    """

    updates: Tensor

    def __init__(self, warmup: int, window: int) -> None:
        super().__init__()
        self.statistics = RunningMeanStd(window)
        self.warmup = warmup
        self.register_buffer("updates", torch.zeros(()))

    @torch.no_grad()
    def update_stats(self, error: Tensor) -> None:
        """Add errors (B,) of a training batch to the statistics, in place."""
        self.updates += 1
        self.statistics.update(error, (self.updates > self.warmup).to(error.dtype))


class ObjectRND(Bonus):
    """The bonus of RND: normalised error of a predictor that distils a random target network.

    It is high where objects have seldom been.

    Args:
        input_dim: M, or None for frames, which convolutional networks read.
        width: Hidden and output width of the 3-layer MLPs with leaky ReLU (Appendix A).
        warmup: Updates before errors are counted.
        window: Updates whose errors are remembered, earlier ones fading away; 0: all.
    """

    def __init__(self, input_dim: int | None, width: int, warmup: int, window: int = 0) -> None:
        super().__init__(warmup, window)

        def make() -> nn.Module:
            if input_dim is None:
                return FrameNetwork()
            return MLP(input_dim, width, width, width, activation="leaky_relu")

        self.predictor = make()
        self.target = make().requires_grad_(False)

    def prediction_error(self, rnd_input: Tensor) -> Tensor:
        """Return squared distances summed over outputs, (..., M) -> (...): the predictor's loss."""
        # In full precision under autocast too: the difference is small.
        dtype = self.statistics.mean.dtype
        residual = self.predictor(rnd_input).to(dtype) - self.target(rnd_input).to(dtype)
        return (residual**2).sum(-1)

    @torch.no_grad()
    def bonus(self, rnd_input: Tensor) -> Tensor:
        """Return the normalised error of inputs: (..., M) -> (...)."""
        return self.statistics.normalise(self.prediction_error(rnd_input))
