"""The recurrent cell equals PyTorch's."""

from __future__ import annotations

import torch
from torch import nn

from perception.gru import GRUCell


def test_the_gru_cell_equals_that_of_pytorch_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = GRUCell(6, 4).double(), nn.GRUCell(6, 4).double()
    theirs.weight_ih.data, theirs.bias_ih.data = ours.input.weight.data, ours.input.bias.data
    theirs.weight_hh.data, theirs.bias_hh.data = (
        ours.recurrent.weight.data,
        ours.recurrent.bias.data,
    )
    x, h = torch.randn(9, 6).double(), torch.randn(9, 4).double()
    for _ in range(3):
        torch.testing.assert_close(ours(ours.input(x), h), theirs(x, h))
        h = theirs(x, h)


def test_the_state_keeps_its_precision_where_products_are_rounded() -> None:
    torch.manual_seed(0)
    cell, x, h = GRUCell(6, 4), torch.randn(9, 6), torch.randn(9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cell(cell.input(x), h)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, cell(cell.input(x), h), atol=0.02, rtol=0.02)
