"""Network parts: two-hidden-layer MLPs with ELU (Appendix A), an ensemble of them, and a GRU cell written as its products.

All weights are orthogonal and biases zero at the start. Everything here works under `torch.func.vmap`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _ELU(torch.autograd.Function):
    """ELU by `exp` instead of `expm1`, which on a CPU takes four times as long; equal to within 1e-7."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.maximum(x, x.clamp(max=0.0).exp_().sub_(1.0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * y.clamp(max=0.0).add_(1.0)


class ELU(nn.Module):
    """x where it is positive, e^x - 1 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return _ELU.apply(x)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """The MLP of Appendix A: two hidden layers with ELU."""
    return nn.Sequential(linear(inputs, hidden), ELU(), linear(hidden, hidden), ELU(), linear(hidden, outputs))


class EnsembleMLP(nn.Module):
    """`members` MLPs of Appendix A that read the same input: the first layer is one product for all, the others one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.members = members
        self.first = linear(inputs, members * hidden)
        for block in self.first.weight.data.chunk(members):
            nn.init.orthogonal_(block)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(hidden, o)) for _ in range(members)])) for o in (hidden, outputs)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in (hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs) -> (members, B, outputs)."""
        x = _ELU.apply(self.first(x)).unflatten(-1, (self.members, -1)).transpose(0, 1)
        x = _ELU.apply(torch.baddbmm(self.biases[0], x, self.weights[0]))
        return torch.baddbmm(self.biases[1], x, self.weights[1])


class GRUCell(nn.Module):
    """A GRU cell (Cho et al. 2014, in PyTorch's convention) whose input products can be taken for many steps at once."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = linear(inputs, 3 * hidden)
        self.recurrent = linear(hidden, 3 * hidden)

    def forward(self, inputs: Tensor, h: Tensor) -> Tensor:
        """One step: inputs (B, 3 * hidden) = `self.input(x)`, h (B, hidden) -> (B, hidden)."""
        input_reset, input_update, input_new = inputs.chunk(3, -1)
        reset, update, new = self.recurrent(h).chunk(3, -1)
        reset = torch.sigmoid(input_reset + reset)
        update = torch.sigmoid(input_update + update)
        new = torch.tanh(input_new + reset * new)
        return torch.lerp(new, h, update)
