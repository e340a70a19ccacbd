"""The recurrent cell equals PyTorch's."""

from __future__ import annotations

import torch
from torch import nn

from perception.gru import GRUCell


def test_the_gru_cell_equals_that_of_pytorch_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = GRUCell(6, 4).double(), nn.GRUCell(6, 4).double()
    theirs.weight_ih.data, theirs.bias_ih.data = ours.input.weight.data, ours.input.bias.data
    theirs.weight_hh.data, theirs.bias_hh.data = ours.recurrent.weight.data, ours.recurrent.bias.data
    x, h = torch.randn(9, 6).double(), torch.randn(9, 4).double()
    for _ in range(3):
        torch.testing.assert_close(ours(ours.input(x), h), theirs(x, h))
        h = theirs(x, h)
