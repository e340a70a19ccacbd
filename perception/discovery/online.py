"""A slot model that learns on from frames that an agent collects."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from perception.discovery.losses import Batch, SlotLoss
from perception.slots.model import SlotModel


class SlotLearner:
    """Steps of object discovery on a copy of a slot model, with its segment proposals unchanged.

    No gradient comes from what its slots are used for.

    Args:
        model: The slot model; stays as it is.
        rate: Adam's, lower than discovery's, since little is to change.
    """

    def __init__(self, model: SlotModel, rate: float = 1e-4) -> None:
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.loss = SlotLoss(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate)

    def learn(self, frames: Tensor, previous: Tensor, is_first: Tensor) -> Tensor:
        """Make one step.

        Args:
            frames: (B, H, W, 3) uint8.
            previous: (B, K, D) slots of the frame before.
            is_first: (B,) bool, rows that start anew.

        Returns:
            The loss, a scalar without gradient.
        """
        loss, _ = self.loss(Batch(frames, is_first), previous)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()
