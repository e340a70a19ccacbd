"""Network parts: two-hidden-layer MLPs with ELU (Appendix A), an ensemble of them, and a GRU cell written as its products.

All weights are orthogonal and biases zero at the start. Everything here works under `torch.func.vmap`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """The MLP of Appendix A: two hidden layers with ELU."""
    return nn.Sequential(linear(inputs, hidden), nn.ELU(), linear(hidden, hidden), nn.ELU(), linear(hidden, outputs))


class EnsembleMLP(nn.Module):
    """`members` MLPs of Appendix A evaluated together, each layer one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        sizes = [(inputs, hidden), (hidden, hidden), (hidden, outputs)]
        self.weights = nn.ParameterList(nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(i, o)) for _ in range(members)])) for i, o in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for _, o in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs), the same for every member, or (members, B, inputs). Returns (members, B, outputs)."""
        if x.dim() == 2:
            x = x.expand(self.weights[0].shape[0], *x.shape)
        x = F.elu(torch.baddbmm(self.biases[0], x, self.weights[0]))
        x = F.elu(torch.baddbmm(self.biases[1], x, self.weights[1]))
        return torch.baddbmm(self.biases[2], x, self.weights[2])


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
