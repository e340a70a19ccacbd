"""Parameters of several agents in one tensor, so that an optimizer step is one call for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16
"""Each parameter begins at a multiple of this many numbers, for vector loads."""


class FlatParameters:
    """The same tensors of M agents, laid into one tensor `flat` (M, P).

    Each agent's tensors become views of its row; `Learner` checks that they stay so.

    Args:
        tensors: For each agent a list of tensors, of the same shapes.
    """

    def __init__(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        self.shapes = [t.shape for t in tensors[0]]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in self.sizes]
        self.flat = tensors[0][0].new_zeros(len(tensors), sum(self.padded))
        for rows, own in zip(self.blocks(), zip(*tensors, strict=True), strict=True):
            for row, tensor in zip(rows, own, strict=True):
                row.copy_(tensor.detach())
                tensor.data = row

    def blocks(self) -> list[Tensor]:
        """Return each tensor of all agents, (M, *shape), as a view."""
        parts = zip(self.flat.split(self.padded, 1), self.sizes, self.shapes, strict=True)
        return [part[:, :size].view(-1, *shape) for part, size, shape in parts]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Lay tensors (M, *shape), or (*shape) of a single agent, out as `flat`."""
        M = len(self.flat)
        pieces = []
        for tensor, size, padded in zip(tensors, self.sizes, self.padded, strict=True):
            pieces.append(tensor.reshape(M, size))
            if padded > size:
                pieces.append(tensor.new_zeros(M, padded - size))
        return torch.cat(pieces, 1)


def adam_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments and step of Adam's only tensor, not copied; {} before its first step."""
    return optimizer.state_dict()["state"].get(0, {})
