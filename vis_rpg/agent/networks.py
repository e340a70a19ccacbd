"""Network parts: MLPs with ELU (Appendix A), an ensemble of them, and a GRU.

Weights are initialised orthogonal, biases zero. Everything works under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from perception import ops
from perception.gru import GRUCell


class Linear(nn.Linear):
    """A linear layer with orthogonal weights and zero bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        *widths: Width of the input, then of each layer's output.
        activation: "elu" or "leaky_relu".
    """

    def __init__(self, *widths: int, activation: Literal["elu", "leaky_relu"] = "elu") -> None:
        super().__init__()
        layers = [Linear(*pair) for pair in pairwise(widths)]
        self.layers: Sequence[Linear] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.activation = activation

    def forward(self, *x: Tensor) -> Tensor:
        """Apply the layers to inputs (..., K_i), read as one tensor: -> (..., last width)."""
        weights = [layer.weight for layer in self.layers]
        return ops.mlp(x, weights, [layer.bias for layer in self.layers], self.activation)


def mlp(inputs: int, outputs: int, hidden: int) -> MLP:
    """Make the MLP of Appendix A: two hidden layers with ELU."""
    return MLP(inputs, hidden, hidden, outputs)


class EnsembleMLP(nn.Module):
    """An ensemble of Appendix A's MLPs with the same input and one output each.

    Args:
        members: Number of MLPs.
        inputs: Width of the input.
        hidden: Width of hidden layers.
    """

    def __init__(self, members: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.members = members
        self.first = Linear(inputs, members * hidden)
        for block in self.first.weight.data.chunk(members):
            nn.init.orthogonal_(block)
        second = [nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(members)]
        last = [nn.init.orthogonal_(torch.empty(1, hidden)) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack(second))
        self.bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.last_weight = nn.Parameter(torch.stack(last))
        self.last_bias = nn.Parameter(torch.zeros(members, 1))

    def forward(self, *x: Tensor, members: int | None = None) -> Tensor:
        """Run all, or the first `members`, MLPs: (B, K_i) -> (members, B)."""
        weights = self.first.weight, self.weight, self.last_weight
        biases = self.first.bias, self.bias, self.last_bias
        return ops.ensemble_mlp(x, weights, biases, members or self.members)


class GRU(GRUCell):
    """A GRU with orthogonal weights and zero biases."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.input, self.recurrent = Linear(inputs, 3 * hidden), Linear(hidden, 3 * hidden)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """Take one step: x (B, inputs), h (B, hidden) -> next h (B, hidden)."""
        layers = self.input, self.recurrent
        weights = [layer.weight for layer in layers]
        return ops.gru_step(x, h, weights, [layer.bias for layer in layers])

    def unroll(self, x: Tensor, h: Tensor) -> Tensor:
        """Take steps with known inputs x (T, B, inputs) from h (B, hidden): -> (T, B, hidden)."""
        layers = self.input, self.recurrent
        return ops.gru(x, h, [layer.weight for layer in layers], [layer.bias for layer in layers])
