"""The loss of a slot model: pseudo-labels from segment proposals, or reconstruction.

B batch, K slots, D slot width, H and W of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perception.images import as_images
from perception.slots.model import SlotModel, SlotOutput


@dataclass(frozen=True)
class LossConfig:
    """What a slot model learns."""

    pseudo_label_loss: bool = True
    """Whether slots learn the segment proposals; without, they learn to reconstruct frames, as slot
    models usually do."""
    precision: str = "float32"
    """Of matrix products: float32 or bfloat16."""


@dataclass
class Batch:
    """Frames to learn from."""

    frames: Tensor
    """(B, H, W, 3) uint8."""
    is_first: Tensor
    """(B,) bool: an episode's first frame; the others follow the slots of the frame before."""
    shares: Tensor
    """(B, K, H, W) each segment's share of each pixel."""


class SlotLoss(nn.Module):
    """The loss of a slot model as a module, so that it can be compiled."""

    def __init__(self, model: SlotModel, config: LossConfig = LossConfig()) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of a batch.

        Args:
            batch: B frames.
            slots: (B, K, D) of the frames before.

        Returns:
            The loss, a scalar, and the new slots (B, K, D) without gradient.
        """
        mixed = self.config.precision == "bfloat16"
        with torch.autocast(slots.device.type, torch.bfloat16, enabled=mixed):
            output = self.model(batch.frames, slots, batch.is_first, assign_unseen=False)
            images = as_images(batch.frames)
            if self.config.pseudo_label_loss:
                loss = pseudo_label_loss(output, batch.shares, images)
            else:
                loss = reconstruction_loss(output, images)
        return loss.float(), output.slots.detach().float()


def pseudo_label_loss(output: SlotOutput, shares: Tensor, images: Tensor) -> Tensor:
    """Cross entropy between slots' masks and segment proposals, plus slots' error in colour.

    A segment's pixels count as the root of their number, so that small ones are not lost next to
    large ones.

    Args:
        output: Slots of B frames.
        shares: (B, K, H, W) each segment's share of each pixel.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        A scalar.
    """
    masks = output.decoded.masks
    claims = (masks / output.alpha.unsqueeze(1).clamp(min=1e-4)).clamp(min=1e-4).log()
    size = shares.sum(dim=(2, 3))
    own = -(shares * claims).sum(dim=(2, 3)) / (size + 1.0).sqrt()
    pixels = masks.sum(dim=(2, 3)).detach()
    seen = torch.einsum("bkhw,bchw->bkc", masks, images) / pixels.clamp(min=1e-3).unsqueeze(-1)
    error = (pixels > 1) * (output.decoded.colours - seen.detach()).square().sum(dim=2)
    return (own.sum() / size.sum().clamp(min=1.0).sqrt() / len(size) ** 0.5) + error.mean()


def reconstruction_loss(output: SlotOutput, images: Tensor) -> Tensor:
    """Squared error of the frames that slots and background draw, per foreground pixel.

    Args:
        output: Slots of B frames.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        A scalar.
    """
    error = (output.decoded.image - images).square().sum(dim=1)
    return error.sum() / output.alpha.sum().clamp(min=1.0)
