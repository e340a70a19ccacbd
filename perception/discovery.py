"""Object discovery: a slot model from frames alone, without labels.

Things are found first, by what moves as one (`perception.finding`); slot attention then learns to see them: each slot its thing, pixel by
pixel, in frames that it need not look at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.background import as_images, estimate_background, foreground_alpha, nearest_background
from perception.finding import find_things
from perception.slot_model import Sight, SlotConfig, SlotModel
from perception.things import Things

CARRIED = 50
"""Mean number of frames for which slots are carried in training, if clips are long enough."""
SPECK = 4.0
"""Pixels from which a slot sees something."""
LOOKED_AT = 1500
"""Frames in which things are looked for."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """How a slot model is trained."""

    steps: int = 1000
    batch: int = 16
    """Frames, half of them seen as first ones."""
    learning_rate: float = 2e-3
    warmup: int = 50
    confused: float = 0.15
    """Share of the later frames that are seen from the slots of another row, so that a slot that has lost its thing finds back to it."""
    seed: int = 0


def slot_loss(sight: Sight, shares: Tensor, images: Tensor) -> Tensor:
    """Cross entropy between what slots claim of each foreground pixel and `shares` (B, K, H, W), what their things have of it, and the
    squared error of the colours that slots tell, images (B, 3, H, W) in [0, 1].

    Each thing's pixels count as the root of their number, so that small things are not lost beside large ones.
    """
    claims = (sight.decoded.masks / sight.alpha.unsqueeze(1).clamp(min=1e-4)).clamp(min=1e-4).log()
    size = shares.sum(dim=(2, 3))
    own = -(shares * claims).sum(dim=(2, 3)) / (size + 1.0).sqrt()
    pixels = sight.decoded.masks.sum(dim=(2, 3)).detach()
    seen = torch.einsum("bkhw,bchw->bkc", sight.decoded.masks, images) / pixels.clamp(min=1e-3).unsqueeze(-1)
    error = (pixels > 1) * (sight.decoded.colours - seen.detach()).square().sum(dim=2)
    return (own.sum() / size.sum().clamp(min=1.0).sqrt() / len(size) ** 0.5) + error.mean()


class Cursors:
    """Places in clips from which frames are read: half of the rows jump to a new place at every step and are seen as an episode's
    first frame; the others go on by a frame, each carrying its slots, so that slots learn to stay with their things for long. At a clip's
    end they turn back: things move as plausibly in reverse, and slots are carried for longer than clips last."""

    def __init__(
        self, scenes: Sequence[NDArray[np.uint8]], shares: Sequence[NDArray[np.float16]], batch: int, rng: np.random.Generator
    ) -> None:
        self.clips = [scenes[i // 2 % len(scenes)] for i in range(batch)]  # as many of each scene
        self.shares = [shares[i // 2 % len(scenes)] for i in range(batch)]
        self.lengths = np.array([clips.shape[1] for clips in self.clips])
        self.jump = np.where(np.arange(batch) % 2 == 0, 1.0, 1 / CARRIED)
        self.rng = rng
        self.episode, self.time = np.zeros(batch, dtype=np.int64), np.full(batch, -1)
        self.pace = np.ones(batch, dtype=np.int64)

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next frames (B, H, W, 3), what things have of them (B, N, H, W), and which of them are seen as first ones (B,)."""
        first = (self.rng.random(len(self.jump)) < self.jump) | (self.time < 0)
        ahead = self.time + self.pace
        self.pace = np.where((ahead < 0) | (ahead >= self.lengths), -self.pace, self.pace)
        self.episode = np.where(first, [self.rng.integers(clips.shape[0]) for clips in self.clips], self.episode)
        self.time = np.where(first, self.rng.integers(self.lengths), self.time + self.pace)
        places = list(zip(self.episode, self.time, strict=True))
        frames = np.stack([clips[place] for clips, place in zip(self.clips, places, strict=True)])
        shares = np.stack([shares[place] for shares, place in zip(self.shares, places, strict=True)])
        return torch.from_numpy(frames), torch.from_numpy(shares).float(), torch.from_numpy(first)


def discover(
    scenes: Sequence[NDArray[np.uint8]],
    slot_config: SlotConfig,
    config: DiscoveryConfig,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> SlotModel:
    """Train a slot model on scenes of one fixed camera: for each variant of the task its clips (E, T, H, W, 3).

    slot_config.slots: about how many things to look for; the model has a slot for each that was found.
    Raises ValueError where nothing stands out from the background.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = untrained(scenes, slot_config, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate_factor(i, config))
    cursors = Cursors(scenes, [_shares(model, clips) for clips in scenes], config.batch, rng)
    slots = torch.zeros(config.batch, model.config.slots, model.config.width)
    for _ in progress(range(config.steps)):
        frames, shares, is_first = cursors.advance()
        optimizer.zero_grad(set_to_none=True)
        loss, slots = discovery_loss(model, frames, confuse(slots, config.confused), is_first, shares)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.sizes.copy_(typical_sizes(model.eval(), scenes))
    return model


def untrained(scenes: Sequence[NDArray[np.uint8]], config: SlotConfig, rng: np.random.Generator) -> SlotModel:
    """A slot model for scenes as `discover` takes them, that knows their backgrounds and things, and has yet to learn to see these."""
    backgrounds = torch.from_numpy(np.stack([estimate_background(clips) for clips in scenes]))
    things = look_for_things(scenes, backgrounds, config, rng)
    found = replace(config, backgrounds=len(backgrounds), slots=things.things, parts=len(things.colours), joints=len(things.joints))
    return SlotModel(found, backgrounds, things)


@torch.no_grad()
def _shares(model: SlotModel, clips: NDArray[np.uint8]) -> NDArray[np.float16]:
    """What things have of each frame of clips (E, T, H, W, 3): (E, T, N, H, W). All are looked at several times: it is found once."""
    frames = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]))
    shares = [model.things(images, model.foreground(images)[0]).half().numpy() for images in map(as_images, frames.split(100))]
    return np.concatenate(shares).reshape(*clips.shape[:2], *shares[0].shape[1:])


def confuse(slots: Tensor, share: float) -> Tensor:
    """Slots (B, K, D) with those of a share of the rows replaced by another row's, in another order."""
    batch, count = slots.shape[:2]
    other = slots[torch.randperm(batch)][:, torch.randperm(count)]
    return torch.where((torch.rand(batch) < share).view(-1, 1, 1).to(slots.device), other, slots)


def look_for_things(scenes: Sequence[NDArray[np.uint8]], backgrounds: Tensor, config: SlotConfig, rng: np.random.Generator) -> Things:
    """The things in some frames of all scenes, (E, T, H, W, 3) each, before `backgrounds` (V, H, W, 3)."""
    chosen, moved = [], []
    for clips in scenes:
        followers = len(clips), clips.shape[1] - 1  # frames with one before them
        clip, time = np.unravel_index(np.sort(rng.permutation(np.prod(followers))[: LOOKED_AT // len(scenes)]), followers)
        chosen.append(clips[clip, time + 1])
        moved.append((clips[clip, time + 1] != clips[clip, time]).any(axis=-1))
    images = as_images(torch.from_numpy(np.concatenate(chosen)))
    empty = as_images(backgrounds)
    alpha = torch.cat(
        [foreground_alpha(some, nearest_background(some, empty), config.threshold, config.softness) for some in images.split(100)]
    )
    return find_things(images, alpha > 0.5, config.slots, rng, config.joints, torch.from_numpy(np.concatenate(moved)))


def discovery_loss(
    model: SlotModel, frames: Tensor, slots: Tensor, is_first: Tensor, shares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss on frames (B, H, W, 3) uint8 that follow the slots (B, K, D) of the frames before where not `is_first` (B,), and the slots
    seen (B, K, D), without gradient. shares: (B, N, H, W) what things have of the frames, if that is known."""
    images = as_images(frames)
    shares = model.things(images, model.foreground(images)[0]) if shares is None else shares
    sight = model.see(images, slots, is_first, adopt=False)
    return slot_loss(sight, shares, images), sight.slots.detach()


@torch.no_grad()
def typical_sizes(model: SlotModel, scenes: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Median number of pixels of each slot (K,) where it sees anything, on some frames of each scene."""
    frames = np.concatenate([clips[:, :: max(1, clips.shape[1] // 4)].reshape(-1, *clips.shape[2:]) for clips in scenes])
    pixels = torch.cat([model(some).decoded.masks.sum(dim=(2, 3)) for some in torch.from_numpy(frames).split(100)])
    sizes = [own[own > SPECK].median() if (own > SPECK).any() else own.new_tensor(SPECK) for own in pixels.T]
    return torch.stack(sizes)


def learning_rate_factor(step: int, config: DiscoveryConfig) -> float:
    """Linear warm-up, then a cosine to one twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
