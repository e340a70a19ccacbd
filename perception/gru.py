"""The one recurrent cell of both packages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GRUCell(nn.Module):
    """A GRU cell (Cho et al. 2014, in PyTorch's convention) written from its products, so that
    those of the input can be taken for many steps at once and `torch.func.vmap` can batch it (it
    cannot batch the fused one)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def forward(self, inputs: Tensor, h: Tensor) -> Tensor:
        """One step: inputs (..., 3 * hidden) = `self.input(x)`, h (..., hidden) -> (..., hidden),
        in the precision of h."""
        sizes = (2 * h.shape[-1], h.shape[-1])
        input_gates, input_new = inputs.split(sizes, -1)
        gates, new = self.recurrent(h).split(sizes, -1)
        reset, update = torch.sigmoid(input_gates + gates).chunk(2, -1)
        new = torch.tanh(torch.addcmul(input_new, reset, new))
        return torch.lerp(new.to(h.dtype), h, update.to(h.dtype))
