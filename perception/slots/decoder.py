"""Decodes slots into an image.

The attention maps are the masks, so that gradients reach the attention directly. A broadcast
decoder needs tens of thousands of steps to find objects of 1% of the image; here a slot only
predicts its colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Decoded:
    """K decoded slots: B batch, H and W of the frame."""

    masks: Tensor
    """(B, K, H, W) share of each pixel that belongs to a slot; the rest is background."""
    colours: Tensor
    """(B, K, 3) in [0, 1]."""
    background: Tensor
    """(B, 3, H, W) in [0, 1]."""

    @property
    def image(self) -> Tensor:
        """The picture (B, 3, H, W) in [0, 1] of the slots' colours before the background."""
        foreground = torch.einsum("bkhw,bkc->bchw", self.masks, self.colours)
        return foreground + (1 - self.masks.sum(dim=1, keepdim=True)) * self.background


class MaskDecoder(nn.Module):
    """Masks from attention logits and foreground alpha, with one colour per slot.

    The logits have the grid of the tokens. Within a token's cell, each slot claims pixels by a
    query over features at full resolution; without these, edges are as blurred as the grid.

    Args:
        width: Slot width.
        pixel_channels: Channels of the features at full resolution, 0 for none.
    """

    def __init__(self, width: int, pixel_channels: int) -> None:
        super().__init__()
        self.colour = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        self.pixels = self.query = None
        if pixel_channels:
            self.pixels = nn.Sequential(
                nn.Conv2d(6, pixel_channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(pixel_channels, pixel_channels, 1),
            )
            self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, pixel_channels))

    def forward(
        self, slots: Tensor, logits: Tensor, alpha: Tensor, background: Tensor, inputs: Tensor
    ) -> Decoded:
        """Decode slots (B, K, D).

        Args:
            slots: (B, K, D).
            logits: (B, K, h, w) attention logits.
            alpha: (B, H, W) foreground.
            background: (B, 3, H, W) in [0, 1].
            inputs: (B, 6, H, W) the encoder's.

        Returns:
            Masks and colours, before that background.
        """
        logits = F.interpolate(logits, size=alpha.shape[-2:], mode="bilinear", align_corners=False)
        if self.pixels is not None and self.query is not None:
            # The last layer is linear: slots are projected in place of the many more pixels.
            last = cast(nn.Conv2d, self.pixels[-1])
            features, query = self.pixels[:-1](inputs), self.query(slots)
            told = torch.einsum("bkc,bchw->bkhw", query @ last.weight.flatten(1), features)
            logits = logits + told + (query @ cast(Tensor, last.bias))[..., None, None]
        masks = logits.softmax(dim=1) * alpha.unsqueeze(1)
        colours = torch.sigmoid(self.colour(slots))
        return Decoded(masks, colours, background)
