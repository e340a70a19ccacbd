"""From slots back to an image: the attention maps are the masks, so that gradients reach the
attention directly.

A broadcast decoder needs tens of thousands of steps to find objects of 1% of the image; here a slot
only has to say its colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Decoded:
    """K slots drawn: B batch, H and W of the frame."""

    masks: Tensor
    """(B, K, H, W): share of each pixel that belongs to a slot; what they leave of one is
    background."""
    colours: Tensor
    """(B, K, 3) in [0, 1]."""
    image: Tensor
    """(B, 3, H, W) in [0, 1]."""


class MaskDecoder(nn.Module):
    """Attention logits times foreground alpha as masks, one colour a slot, over the static
    background.

    The logits have the grid of the tokens; what belongs to whom within a cell, slots tell from the
    pixels' colours, by queries of their own over `fine` channels of full resolution. Without them
    (fine=0) edges are as blurred as the grid.
    """

    def __init__(self, width: int, fine: int) -> None:
        super().__init__()
        self.colour = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        self.pixels = (
            nn.Sequential(nn.Conv2d(6, fine, 3, padding=1), nn.ReLU(), nn.Conv2d(fine, fine, 1))
            if fine
            else None
        )
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, fine)) if fine else None

    def forward(
        self, slots: Tensor, logits: Tensor, alpha: Tensor, background: Tensor, seen: Tensor
    ) -> Decoded:
        """slots (B, K, D), logits (B, K, h, w), alpha (B, H, W), background (B, 3, H, W) in [0, 1],
        seen (B, 6, H, W): what the encoder sees."""
        logits = F.interpolate(logits, size=alpha.shape[-2:], mode="bilinear", align_corners=False)
        if self.pixels is not None and self.query is not None:
            logits = logits + torch.einsum("bkc,bchw->bkhw", self.query(slots), self.pixels(seen))
        masks = logits.softmax(dim=1) * alpha.unsqueeze(1)
        colours = torch.sigmoid(self.colour(slots))
        image = (
            torch.einsum("bkhw,bkc->bchw", masks, colours) + (1 - alpha).unsqueeze(1) * background
        )
        return Decoded(masks, colours, image)
