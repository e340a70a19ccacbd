"""A slot model that sees what it is told to see, so that scores and failures can be tested without
training one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from perception.slots.decoder import Decoded
from perception.slots.model import SlotConfig, SlotModel, SlotOutput


class Painted(SlotModel):
    """Answers with label maps (E, T, H, W), 0 for background and 1 .. slots, whatever frames it is
    shown.

    leak: share of each foreground pixel that is spread over all slots.
    """

    def __init__(self, labels: np.ndarray, slots: int, leak: float = 0.0) -> None:
        height, width = labels.shape[2:]
        super().__init__(SlotConfig(slots=slots, width=4, channels=4, frame_size=(height, width)))
        self.sizes.fill_(25.0)
        self.labels, self.leak = torch.from_numpy(labels), leak

    def encode_video(self, frames: Tensor) -> list[SlotOutput]:
        return [self.painted(self.labels[:, t]) for t in range(len(frames))]

    def painted(self, labels: Tensor) -> SlotOutput:
        slots = self.config.slots
        masks = torch.nn.functional.one_hot(labels, slots + 1)[..., 1:].permute(0, 3, 1, 2).float()
        masks = (1 - self.leak) * masks + self.leak / slots * masks.sum(dim=1, keepdim=True)
        decoded = Decoded(
            masks,
            torch.zeros(len(labels), slots, 3),
            torch.zeros(len(labels), 3, *labels.shape[1:]),
        )
        return SlotOutput(
            torch.zeros(len(labels), slots, 4),
            self.locate(masks),
            decoded,
            masks.sum(dim=1),
        )


def frames_for(labels: np.ndarray) -> np.ndarray:
    """Black frames (E, T, H, W, 3) for label maps."""
    return np.zeros((*labels.shape, 3), np.uint8)
