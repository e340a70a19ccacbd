"""Network parts: two-hidden-layer MLPs with ELU (Appendix A), an ensemble of them, and a GRU cell.

All weights are orthogonal and biases zero at the start. Everything here works under `torch.func.vmap`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.gru import GRUCell


def elu_(x: Tensor) -> Tensor:
    """x where it is positive, e^x - 1 elsewhere; overwrites x. Compiled it takes `exp`, which fuses into one pass of a third of the time
    that `expm1` needs on a CPU and is equal to within 1e-7."""
    if torch.compiler.is_compiling():
        return torch.where(x > 0, x, x.clamp(max=0.0).exp() - 1.0)
    return F.elu_(x)


class ELU(nn.Module):
    """`elu_` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return elu_(x)


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
    """`members` MLPs of Appendix A with one output each, that read the same input: the first layer is one product for all, the second one
    batched product, and the last, which is too narrow to be one, a weighted sum."""

    def __init__(self, members: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.members, self.hidden = members, hidden
        self.first = linear(inputs, members * hidden)
        for block in self.first.weight.data.chunk(members):
            nn.init.orthogonal_(block)
        self.weight = nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(members)]))
        self.bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.last_weight = nn.Parameter(torch.stack([nn.init.orthogonal_(torch.empty(1, hidden)) for _ in range(members)]))
        self.last_bias = nn.Parameter(torch.zeros(members, 1))

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """x: (B, inputs) -> (members, B), of all or of so many first members."""
        n = members or self.members
        first = F.linear(x, self.first.weight[: n * self.hidden], self.first.bias[: n * self.hidden])
        x = elu_(first).unflatten(-1, (n, self.hidden)).transpose(0, 1)
        x = elu_(torch.baddbmm(self.bias[:n], x, self.weight[:n]))
        return (x * self.last_weight[:n]).sum(-1) + self.last_bias[:n]


def gru_cell(inputs: int, hidden: int) -> GRUCell:
    """A GRU cell with orthogonal weights and zero biases."""
    cell = GRUCell(inputs, hidden)
    cell.input, cell.recurrent = linear(inputs, 3 * hidden), linear(hidden, 3 * hidden)
    return cell
