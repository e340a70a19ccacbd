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
    """(B, K, H, W) each segment's share of each pixel; each of twins keeps its own in a clip."""


class SlotLoss(nn.Module):
    """The loss of a slot model as a module, so that it can be compiled."""

    def __init__(self, model: SlotModel, config: LossConfig = LossConfig()) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.orders = nn.Buffer(model.proposals.orders(), persistent=False)
        """(O, K) the segment that each slot learns: twins may change places."""

    def forward(
        self, batch: Batch, slots: Tensor, order: Tensor, begins: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of a batch.

        Args:
            batch: B frames.
            slots: (B, K, D) of the frames before.
            order: (B,) of `orders`, the one of the frames before.
            begins: (B,) bool, rows in which nothing seen before tells twins apart: their order is
                what fits the slots best.

        Returns:
            The loss, a scalar, the new slots (B, K, D) without gradient, and the order (B,).
        """
        mixed = self.config.precision == "bfloat16"
        with torch.autocast(slots.device.type, torch.bfloat16, enabled=mixed):
            output = self.model(batch.frames, slots, batch.is_first, assign_unseen=False)
            images = as_images(batch.frames)
            if self.config.pseudo_label_loss:
                shares = batch.shares
                if len(self.orders) > 1:
                    costs = torch.stack(
                        [label_costs(output, shares[:, own]).sum(1) for own in self.orders]
                    )
                    order = torch.where(begins, costs.argmin(dim=0), order)
                    shares = shares.take_along_dim(self.orders[order][:, :, None, None], dim=1)
                loss = pseudo_label_loss(output, shares, images)
            else:
                loss = reconstruction_loss(output, images)
        return loss.float(), output.slots.detach().float(), order


def label_costs(output: SlotOutput, shares: Tensor) -> Tensor:
    """Cross entropy (B, K) between slots' masks and their segments' shares (B, K, H, W).

    A segment's pixels count as the root of their number, so that small ones are not lost next to
    large ones.
    """
    claims = output.decoded.masks / output.alpha.unsqueeze(1).clamp(min=1e-4)
    size = shares.sum(dim=(2, 3))
    return -(shares * claims.clamp(min=1e-4).log()).sum(dim=(2, 3)) / (size + 1.0).sqrt()


def pseudo_label_loss(output: SlotOutput, shares: Tensor, images: Tensor) -> Tensor:
    """Cross entropy (`label_costs`) of segment proposals, plus slots' error in colour.

    Args:
        output: Slots of B frames.
        shares: (B, K, H, W) each segment's share of each pixel.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        A scalar.
    """
    masks = output.decoded.masks
    size, own = shares.sum(dim=(2, 3)), label_costs(output, shares)
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
