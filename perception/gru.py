"""The recurrent cell of both packages."""

from __future__ import annotations

from torch import Tensor, nn

from perception import ops


class GRUCell(nn.Module):
    """A GRU cell written from its products, so that those of the input can be taken for many steps
    at once and `torch.func.vmap` can batch it (it cannot batch torch's fused one)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def forward(self, inputs: Tensor, h: Tensor) -> Tensor:
        """One step: inputs (..., 3 * hidden) = `self.input(x)`, h (..., hidden) -> (..., hidden),
        in the precision of h."""
        return ops.gru_gates(inputs, self.recurrent(h), h)
