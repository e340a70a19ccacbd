"""Object discovery: a slot model from frames alone, without labels.

The loss is the likelihood of a mixture: every foreground pixel should have the colour and lie near the place of the slot that
claims it. Colour tells objects apart, place keeps a slot from taking two of them, and a concave price on slot sizes leaves
spare slots empty instead of sharing an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.background import estimate_background
from perception.slot_model import Sight, SlotConfig, SlotModel

CARRIED = 50
"""Mean number of frames for which slots are carried in training."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """How a slot model is trained."""

    steps: int = 600
    batch: int = 16
    """Frames, half of them seen as first ones."""
    learning_rate: float = 1e-3
    warmup: int = 50
    place_weight: float = 0.1
    """Of the squared distance of a pixel to its slot's centroid, in half image widths, beside squared colour distance."""
    balance_weight: float = 0.3
    """At first: of the divergence of the slots' shares of a batch from equal ones. Without it a slot that finds nothing early is dead."""
    size_weight: float = 0.2
    """Later: of the sum of square roots of the slots' shares of a frame's foreground. Without it spare slots share objects."""
    seed: int = 0


def mixture_loss(sight: Sight, frames: Tensor, places: Tensor, place_weight: float, balance_weight: float, size_weight: float) -> Tensor:
    """The loss of one batch of frames (B, H, W, 3).

    Spread of colour within slots over the whole batch (a thing keeps its look from scene to scene, so a slot stays with its thing),
    spread of place within each frame, balance among slots, the price of using slots, and what the slots themselves say of colour.
    """
    images = frames.permute(0, 3, 1, 2).float() / 255
    masks = sight.decoded.masks  # (B, K, H, W)
    mass = sight.alpha.sum().clamp(min=1.0)
    pixels = masks.sum(dim=(2, 3))  # (B, K)
    paint = torch.einsum("bkhw,bchw->bkc", masks, images)
    colours = paint.sum(dim=0) / pixels.sum(dim=0).clamp(min=1e-3).unsqueeze(-1)  # (K, 3)
    centroids = sight.coordinates[..., :2]
    # Within a slot, the mean squared deviation is the mean square less the squared mean.
    square = (sight.alpha * (images.square().sum(dim=1) + place_weight * places.square().sum(dim=-1))).sum()
    explained = (pixels.sum(dim=0) * colours.square().sum(dim=1)).sum() + place_weight * (pixels * centroids.square().sum(dim=2)).sum()
    shares = pixels.sum(dim=0) / mass
    balance = (shares * (shares * len(shares) + 1e-6).log()).sum()
    price = (pixels / sight.alpha.sum(dim=(1, 2)).clamp(min=1.0).unsqueeze(1) + 1e-4).sqrt().sum(dim=1).mean()
    seen = (paint / pixels.clamp(min=1e-3).unsqueeze(-1)).detach()
    said = (pixels.detach() * (sight.decoded.colours - seen).square().sum(dim=2)).sum()
    return (square - explained + said) / mass + balance_weight * balance + size_weight * price


class Cursors:
    """Places in clips from which frames are read: half of the rows jump to a new place at every step and are seen as an episode's
    first frame; the others go on by a frame, each carrying its slots, so that slots learn to stay with their things for long."""

    def __init__(self, scenes: Sequence[NDArray[np.uint8]], batch: int, rng: np.random.Generator) -> None:
        self.clips = [scenes[i // 2 % len(scenes)] for i in range(batch)]  # as many of each scene
        self.jump = np.where(np.arange(batch) % 2 == 0, 1.0, 1 / CARRIED)
        self.rng = rng
        self.episode, self.time = np.zeros(batch, dtype=np.int64), np.full(batch, np.iinfo(np.int32).max)

    def advance(self) -> tuple[Tensor, Tensor]:
        """The next frames (B, H, W, 3), and which of them are seen as first ones (B,)."""
        self.time += 1
        lengths = np.array([clips.shape[1] for clips in self.clips])
        first = (self.rng.random(len(self.jump)) < self.jump) | (self.time >= lengths)
        self.episode = np.where(first, [self.rng.integers(clips.shape[0]) for clips in self.clips], self.episode)
        self.time = np.where(first, self.rng.integers(lengths), self.time)
        frames = np.stack([clips[e, t] for clips, e, t in zip(self.clips, self.episode, self.time, strict=True)])
        return torch.from_numpy(frames), torch.from_numpy(first)


def discover(
    scenes: Sequence[NDArray[np.uint8]],
    slot_config: SlotConfig,
    config: DiscoveryConfig,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> SlotModel:
    """Train a slot model on scenes of one fixed camera: for each variant of the task its clips (E, T, H, W, 3)."""
    torch.manual_seed(config.seed)
    backgrounds = torch.from_numpy(np.stack([estimate_background(clips) for clips in scenes]))
    model = SlotModel(replace(slot_config, backgrounds=len(backgrounds)), backgrounds)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate_factor(i, config))
    cursors = Cursors(scenes, config.batch, np.random.default_rng(config.seed))
    slots = torch.zeros(config.batch, slot_config.slots, slot_config.width)
    for step in progress(range(config.steps)):
        frames, is_first = cursors.advance()
        sight = model(frames, slots, is_first)
        slots = sight.slots.detach()
        optimizer.zero_grad(set_to_none=True)
        mixture_loss(sight, frames, model.places, *loss_weights(step / config.steps, config)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.config = replace(model.config, object_pixels=typical_size(model.eval(), scenes))
    return model


@torch.no_grad()
def typical_size(model: SlotModel, scenes: Sequence[NDArray[np.uint8]]) -> float:
    """Median number of pixels of the slots that see anything, on some frames of each scene."""
    pixels = [model(torch.from_numpy(clips[:, clips.shape[1] // 2])).decoded.masks.sum(dim=(2, 3)).flatten() for clips in scenes]
    seen = torch.cat(pixels)
    return float(seen[seen > 4].median()) if (seen > 4).any() else model.config.object_pixels


def learning_rate_factor(step: int, config: DiscoveryConfig) -> float:
    """Linear warm-up, then a cosine to one twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def loss_weights(done: float, config: DiscoveryConfig) -> tuple[float, float, float]:
    """Weights of place, balance and size at the share `done` of training: balance ends where size begins, at 0.4."""
    balance = min(1.0, max(0.0, 4 - 10 * done))
    size = min(1.0, max(0.0, 10 * done - 4))
    return config.place_weight, config.balance_weight * balance, config.size_weight * size
