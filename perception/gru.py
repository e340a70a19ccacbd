"""The recurrent cell of both packages."""

from __future__ import annotations

from torch import Tensor, nn

from perception import ops


class GRUCell(nn.Module):
    """A GRU cell written from its products.

    Products of the input can thus be taken for many steps at once, and `torch.func.vmap` can batch
    the cell (it cannot batch torch's fused one).

    Args:
        inputs: Width of the input.
        hidden: Width of the state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def forward(self, inputs: Tensor, h: Tensor) -> Tensor:
        """Take one step, in the precision of h.

        Args:
            inputs: `self.input(x)`, (..., 3 * hidden).
            h: (..., hidden).

        Returns:
            The next state (..., hidden).
        """
        return ops.gru_gates(inputs, self.recurrent(h), h)
