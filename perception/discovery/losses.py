"""What a slot model is trained for: to see the things that were found, and what else is known to
help slots, to be added to it.

B batch, K slots, D slot width, H and W of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from kornia.morphology import dilation
from torch import Tensor, nn

from perception.images import as_images
from perception.slots.model import SlotConfig, SlotModel, SlotOutput, pixel_places

AROUND = 5
"""Side of the square within which a pixel that changes counts as motion."""
TEMPERATURE = 0.1
"""Of the contrast of slots over time."""
HIDDEN = 64
"""Width of the layer by which slots tell frozen features."""


@dataclass(frozen=True)
class LossConfig:
    """What a slot model is trained for, and by products of which precision."""

    pseudo_label_loss: bool = True
    """Whether slots learn to see the things that were found; without, they learn to reconstruct
    frames, as slot models usually do."""
    static_pixel_weight: float = 1.0
    """Weight of pixels around which nothing moves, of those in motion having 1."""
    contrast: float = 0.0
    """Weight of the contrast of slots over time."""
    features: float = 0.0
    """Weight of the frozen features that slots tell."""
    backbone: str | None = None
    """The timm model whose features they are."""
    weights: str | None = None
    """Its weights: hub, a safetensors file, or None for random ones."""
    precision: str = "float32"
    """Of the products: float32 or bfloat16."""


@dataclass
class Batch:
    """Frames to learn from."""

    frames: Tensor
    """(B, H, W, 3) uint8."""
    is_first: Tensor
    """(B,) bool: seen as an episode's first frame; the others follow the slots of the frame before.
    """
    shares: Tensor | None = None
    """(B, N, H, W): what the things have of each pixel; None: to be worked out."""
    moved: Tensor | None = None
    """(B, H, W) bool: where the frame differs from the one before; None: nowhere."""
    action: Tensor | None = None
    """(B, A): what was done in the frame before."""

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        values: dict[str, Any] = {
            name: None if value is None else value.to(device) for name, value in vars(self).items()
        }
        return Batch(**values)


class SlotLoss(nn.Module):
    """The loss of a slot model, and what is trained beside it and thrown away."""

    def __init__(self, model: SlotModel, terms: LossConfig = LossConfig()) -> None:
        super().__init__()
        self.model, self.terms = model, terms
        self.features = FeatureTargets(model.config, terms) if terms.features else None

    def forward(self, batch: Batch, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on a batch whose later frames follow `slots` (B, K, D), and the slots seen,
        without gradient."""
        with torch.autocast(
            slots.device.type, torch.bfloat16, enabled=self.terms.precision == "bfloat16"
        ):
            loss, seen = self._loss(batch, slots)
        return loss.float(), seen.detach().float()

    def _loss(self, batch: Batch, slots: Tensor) -> tuple[Tensor, Tensor]:
        model, terms = self.model, self.terms
        images = as_images(batch.frames)
        sight = model.see(images, slots, batch.is_first, assign_unseen=False, action=batch.action)
        weight = (
            motion_weight(batch.moved, terms.static_pixel_weight)
            if batch.moved is not None and terms.static_pixel_weight != 1.0
            else None
        )
        if terms.pseudo_label_loss:
            shares = (
                model.things(images, model.foreground(images)[0])
                if batch.shares is None
                else batch.shares
            )
            loss = pseudo_label_loss(sight, shares, images, weight)
        else:
            loss = reconstruction_loss(sight, images, weight)
        if terms.contrast:
            loss = loss + terms.contrast * contrast_over_time(slots, sight.slots, ~batch.is_first)
        if self.features is not None:
            loss = loss + terms.features * self.features(sight, images)
        return loss, sight.slots


def pseudo_label_loss(
    sight: SlotOutput, shares: Tensor, images: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Cross entropy between what slots claim of each foreground pixel and `shares` (B, K, H, W),
    what their things have of it, and the squared error of the colours that slots tell, images (B,
    3, H, W) in [0, 1]. weight: (B, H, W) of each pixel, 1 where None.

    Each thing's pixels count as the root of their number, so that small things are not lost beside
    large ones.
    """
    claims = (sight.decoded.masks / sight.alpha.unsqueeze(1).clamp(min=1e-4)).clamp(min=1e-4).log()
    shares = shares if weight is None else shares * weight.unsqueeze(1)
    size = shares.sum(dim=(2, 3))
    own = -(shares * claims).sum(dim=(2, 3)) / (size + 1.0).sqrt()
    pixels = sight.decoded.masks.sum(dim=(2, 3)).detach()
    seen = torch.einsum("bkhw,bchw->bkc", sight.decoded.masks, images) / pixels.clamp(
        min=1e-3
    ).unsqueeze(-1)
    error = (pixels > 1) * (sight.decoded.colours - seen.detach()).square().sum(dim=2)
    return (own.sum() / size.sum().clamp(min=1.0).sqrt() / len(size) ** 0.5) + error.mean()


def reconstruction_loss(sight: SlotOutput, images: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared error of the frames (B, 3, H, W) that slots and background draw, of a pixel of the
    foreground; weight as in `pseudo_label_loss`."""
    error = (sight.decoded.image - images).square().sum(dim=1)
    error = error if weight is None else error * weight
    return error.sum() / sight.alpha.sum().clamp(min=1.0)


def motion_weight(moved: Tensor, resting: float) -> Tensor:
    """Weight of each pixel (B, H, W): 1 around what moved (B, H, W), `resting` elsewhere, so that
    things at rest are not lost."""
    near = dilation(
        moved.unsqueeze(1).float(),
        torch.ones(AROUND, AROUND, device=moved.device),
        engine="convolution",
    )[:, 0]
    return resting + (1 - resting) * near


def contrast_over_time(before: Tensor, now: Tensor, later: Tensor) -> Tensor:
    """How little a slot is known again among all slots of the batch (Manasyan et al. 2025): cross
    entropy of the slot `now` (B, K, D) being that of the frame `before` (B, K, D), by the cosine,
    over the rows that follow a frame (B,) bool."""
    now, before = (F.normalize(slots.flatten(0, 1), dim=1) for slots in (now, before))
    rows = later.repeat_interleave(len(now) // len(later)).float()
    error = F.cross_entropy(
        now @ before.T / TEMPERATURE, torch.arange(len(now), device=now.device), reduction="none"
    )
    return (error * rows).sum() / rows.sum().clamp(min=1.0)


class FeatureTargets(nn.Module):
    """Frozen features of a timm model as what slots are to tell beside their colours (Seitzer et
    al. 2023): each slot tells those of a place by a small network of the slot and the place, and
    the masks mix them, with those of the background, which knows the place alone.
    """

    def __init__(self, config: SlotConfig, terms: LossConfig) -> None:
        super().__init__()
        from perception.encoders.timm import FrozenFeatures  # timm is slow to import

        if terms.backbone is None:
            raise ValueError(f"features={terms.features}: name a timm model, backbone=...")
        self.backbone = FrozenFeatures(terms.backbone, config.frame_size, terms.weights)
        self.background = nn.Parameter(torch.zeros(1, 1, config.width))
        self.tell = nn.Sequential(
            nn.Linear(config.width + 2, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, self.backbone.channels),
        )
        self.register_buffer(
            "places", pixel_places(self.backbone.grid).flatten(0, 1), persistent=False
        )
        self.places: Tensor

    def forward(self, sight: SlotOutput, images: Tensor) -> Tensor:
        """Squared error of the features of images (B, 3, H, W) in [0, 1]."""
        target = self.backbone(images)  # (B, C, h, w)
        slots = torch.cat([sight.slots, self.background.expand(len(images), -1, -1)], dim=1)
        places = self.places.expand(*slots.shape[:2], -1, -1)
        told = self.tell(
            torch.cat([slots.unsqueeze(2).expand(*places.shape[:3], -1), places], dim=3)
        )  # (B, K + 1, h * w, C)
        masks = torch.cat([sight.decoded.masks, 1 - sight.alpha.unsqueeze(1)], dim=1)
        masks = F.adaptive_avg_pool2d(masks, self.backbone.grid).flatten(2)
        return (torch.einsum("bkl,bklc->bcl", masks, told) - target.flatten(2)).square().mean()
