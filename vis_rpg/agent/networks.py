"""Network parts: two-hidden-layer MLPs with ELU (Appendix A), an ensemble of them, and a GRU cell.

All weights are orthogonal and biases zero at the start. Everything here works under
`torch.func.vmap`. Parts that have a `fused` are run by the kernels of `perception.fused` where it
is true and the input is what they take.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.encoders.cnn import Conv4
from perception.gru import GRUCell
from perception.ops import fused


def elu_(x: Tensor) -> Tensor:
    """x where it is positive, e^x - 1 elsewhere; overwrites x. Compiled it takes `exp`, which fuses
    into one pass of a third of the time that `expm1` needs on a CPU and is equal to within 1e-7."""
    if torch.compiler.is_compiling():
        return torch.where(x > 0, x, x.clamp(max=0.0).exp() - 1.0)
    return F.elu_(x)


def _beside(x: tuple[Tensor, ...]) -> Tensor:
    return x[0] if len(x) == 1 else torch.cat(x, -1)


class ELU(nn.Module):
    """`elu_` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return elu_(x)


class Linear(nn.Linear):
    """A linear layer with orthogonal weights and zero bias."""

    fused = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and fused.usable([x]):
            return fused.chain([x], [self.weight], [self.bias])
        return super().forward(x)


class MLP(nn.Sequential):
    """Linear layers with an activation between them: ELU, or leaky ReLU."""

    fused = False

    def __init__(self, *widths: int, leaky: bool = False) -> None:
        """widths: of the input, and of each layer's output."""
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [Linear(inputs, outputs), nn.LeakyReLU() if leaky else ELU()]
        super().__init__(*layers[:-1])
        self.activation = "leaky_relu" if leaky else "elu"

    def forward(self, *x: Tensor) -> Tensor:
        """x: (..., K_i), beside each other what the first layer reads."""
        if self.fused:
            layers = [layer for layer in self if isinstance(layer, Linear)]
            if fused.usable(x, (layer.out_features for layer in layers[:-1])):
                return fused.chain(
                    x,
                    [layer.weight for layer in layers],
                    [layer.bias for layer in layers],
                    self.activation,
                )
        return super().forward(_beside(x))


def mlp(inputs: int, outputs: int, hidden: int) -> MLP:
    """The MLP of Appendix A: two hidden layers with ELU."""
    return MLP(inputs, hidden, hidden, outputs)


class EnsembleMLP(nn.Module):
    """`members` MLPs of Appendix A with one output each, that read the same input: the first layer
    is one product for all, the second one batched product, and the last, which is too narrow to be
    one, a weighted sum."""

    fused = False

    def __init__(self, members: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.members, self.hidden = members, hidden
        self.first = Linear(inputs, members * hidden)
        for block in self.first.weight.data.chunk(members):
            nn.init.orthogonal_(block)
        self.weight = nn.Parameter(
            torch.stack([nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(members)])
        )
        self.bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.last_weight = nn.Parameter(
            torch.stack([nn.init.orthogonal_(torch.empty(1, hidden)) for _ in range(members)])
        )
        self.last_bias = nn.Parameter(torch.zeros(members, 1))

    def forward(self, *x: Tensor, members: int | None = None) -> Tensor:
        """x: (B, K_i), beside each other the inputs -> (members, B), of all or of so many first
        members."""
        n = members or self.members
        if self.fused and fused.usable(x, [self.hidden]):
            firsts = zip(
                self.first.weight.chunk(self.members),
                self.first.bias.chunk(self.members),
                strict=True,
            )
            return torch.cat(
                [
                    fused.chain(
                        x,
                        [w, self.weight[i], self.last_weight[i]],
                        [b, self.bias[i, 0], self.last_bias[i]],
                        "elu",
                    ).mT
                    for i, (w, b) in enumerate(list(firsts)[:n])
                ]
            )
        first = F.linear(
            _beside(x), self.first.weight[: n * self.hidden], self.first.bias[: n * self.hidden]
        )
        second = elu_(first).unflatten(-1, (n, self.hidden)).transpose(0, 1)
        second = elu_(torch.baddbmm(self.bias[:n], second, self.weight[:n].mT))
        return (second * self.last_weight[:n]).sum(-1) + self.last_bias[:n]


class GRU(GRUCell):
    """A GRU cell with orthogonal weights and zero biases."""

    fused = False

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.input, self.recurrent = Linear(inputs, 3 * hidden), Linear(hidden, 3 * hidden)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """x (B, inputs), h (B, hidden) -> next h (B, hidden)."""
        return (
            self._kernel(x.unsqueeze(0), h).squeeze(0)
            if self._runs_by_kernel(x, h)
            else self(self.input(x), h)
        )

    def unroll(self, x: Tensor, h: Tensor) -> Tensor:
        """Known inputs x (T, B, inputs) from h (B, hidden): (T, B, hidden). Products of the inputs
        are taken at once."""
        if self._runs_by_kernel(x, h):
            return self._kernel(x, h)
        hs = []
        for inputs in self.input(x):
            h = self(inputs, h)
            hs.append(h)
        return torch.stack(hs)

    def _runs_by_kernel(self, x: Tensor, h: Tensor) -> bool:
        return (
            self.fused and fused.usable([x]) and not any(t.shape[-1] % fused.WIDTH for t in (x, h))
        )

    def _kernel(self, x: Tensor, h: Tensor) -> Tensor:
        layers = (self.input, self.recurrent)
        return fused.gru(x, h, [layer.weight for layer in layers], [layer.bias for layer in layers])


FUSED = (Linear, MLP, EnsembleMLP, GRU, Conv4)
"""Parts that the kernels can run."""
