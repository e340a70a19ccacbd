"""A slot model that goes on learning from frames that somebody collects."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from perception.discovery.losses import Batch, SlotLoss
from perception.slots.model import SlotModel


class SlotLearner:
    """A copy of a slot model, and steps of object discovery on it: no gradient comes from what its
    slots are used for.

    The loss is discovery's, with the things that were found then; rate: of Adam, lower than
    discovery's, as little is to change.
    """

    def __init__(self, model: SlotModel, rate: float = 1e-4) -> None:
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.objective = SlotLoss(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate)

    def learn(self, frames: Tensor, previous: Tensor, is_first: Tensor) -> Tensor:
        """One step on frames (B, H, W, 3) uint8, seen from the slots `previous` (B, K, D) of the
        frame before where not `is_first` (B,); returns the loss."""
        loss, _ = self.objective(Batch(frames, is_first), previous)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()
