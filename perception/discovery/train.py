"""Object discovery: a slot model from frames alone, without labels.

Things are found first, by what moves as one (`perception.finding`); slot attention then learns to
see them: each slot its thing, pixel by pixel, in frames that it need not look at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.discovery.common_fate import propose_segments
from perception.discovery.losses import Batch, LossConfig, SlotLoss
from perception.images import as_images
from perception.slots.background import estimate_background, foreground_alpha, nearest_background
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.segments import SegmentProposals

CARRIED = 50
"""Mean number of frames for which slots are carried in training, if clips are long enough."""
SPECK = 4.0
"""Pixels from which a slot sees something."""
LOOKED_AT = 1500
"""Frames in which things are looked for."""


@dataclass(frozen=True)
class DiscoveryConfig(LossConfig):
    """How a slot model is trained, and for what."""

    steps: int = 1000
    batch: int = 16
    """Frames, half of them seen as first ones."""
    learning_rate: float = 2e-3
    warmup: int = 50
    slot_shuffle_prob: float = 0.15
    """Share of the later frames that are seen from the slots of another row, so that a slot that
    has lost its thing finds back to it."""
    seed: int = 0
    compiled: bool = False
    """Whether the loss is compiled, which takes a minute and pays in long trainings."""


@dataclass
class VideoData:
    """What is learned from of one scene: E clips of T frames."""

    frames: NDArray[np.uint8]
    """(E, T, H, W, 3)."""
    shares: NDArray[np.float16]
    """(E, T, N, H, W): what things have of each pixel."""
    actions: NDArray[np.float32] | None = None
    """(E, T, A): what was done in each frame."""


class ClipSampler:
    """Places in clips from which frames are read: half of the rows jump to a new place at every
    step and are seen as an episode's first frame; the others go on by a frame, each carrying its
    slots, so that slots learn to stay with their things for long. At a clip's end they turn back:
    things move as plausibly in reverse, and slots are carried for longer than clips last. Where
    actions are known, which do not act in reverse, they jump instead."""

    def __init__(self, scenes: Sequence[VideoData], batch: int, rng: np.random.Generator) -> None:
        self.clips = [scenes[i // 2 % len(scenes)] for i in range(batch)]  # as many of each scene
        self.lengths = np.array([clips.frames.shape[1] for clips in self.clips])
        self.forward_only = scenes[0].actions is not None
        self.jump = np.where(np.arange(batch) % 2 == 0, 1.0, 1 / CARRIED)
        self.rng = rng
        self.episode, self.time = np.zeros(batch, dtype=np.int64), np.full(batch, -1)
        self.pace = np.ones(batch, dtype=np.int64)

    def sample(self) -> Batch:
        """The next frames, and what is known of them."""
        first = (self.rng.random(len(self.jump)) < self.jump) | (self.time < 0)
        ahead = self.time + self.pace
        over = (ahead < 0) | (ahead >= self.lengths)
        if self.forward_only:
            first |= over
        else:
            self.pace = np.where(over, -self.pace, self.pace)
        self.episode = np.where(
            first, [self.rng.integers(len(clips.frames)) for clips in self.clips], self.episode
        )
        self.time = np.where(first, self.rng.integers(self.lengths), self.time + self.pace)
        earlier = np.where(self.time > 0, self.time - 1, 1)
        now, before = (
            list(zip(self.episode.tolist(), times.tolist(), strict=True))
            for times in (self.time, earlier)
        )
        frames = self._read("frames", now)
        moved = (frames != self._read("frames", before)).any(dim=-1)
        action = self._read("actions", before) if self.forward_only else None
        return Batch(
            frames, torch.from_numpy(first), self._read("shares", now).float(), moved, action
        )

    def _read(self, name: str, places: Sequence[tuple[int, int]]) -> Tensor:
        return torch.from_numpy(
            np.stack(
                [
                    getattr(clips, name)[place]
                    for clips, place in zip(self.clips, places, strict=True)
                ]
            )
        )


def discover(
    scenes: Sequence[NDArray[np.uint8]],
    slot_config: SlotConfig,
    config: DiscoveryConfig,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    actions: Sequence[NDArray[np.float32]] | None = None,
    device: torch.device | str = "cpu",
) -> SlotModel:
    """Train a slot model on scenes of one fixed camera: for each variant of the task its clips (E,
    T, H, W, 3).

    slot_config.slots: about how many things to look for; the model has a slot for each that was
    found. actions: (E, T, A) of each scene, what was done in each frame, where slot_config.actions
    is not 0. device: where it learns; the model comes back on the CPU. Raises ValueError where
    nothing stands out from the background.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = untrained(scenes, slot_config, rng)
    done = actions if slot_config.actions and actions is not None else [None] * len(scenes)
    sampler = ClipSampler(
        [
            VideoData(clips, _shares(model, clips), own)
            for clips, own in zip(scenes, done, strict=True)
        ],
        config.batch,
        rng,
    )
    objective = SlotLoss(model, config).to(device)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: learning_rate_factor(i, config)
    )
    step = torch.compile(objective, dynamic=False) if config.compiled else objective
    slots = torch.zeros(config.batch, model.config.slots, model.config.width, device=device)
    for _ in progress(range(config.steps)):
        optimizer.zero_grad(set_to_none=True)
        loss, slots = step(
            sampler.sample().to(device), shuffle_slots(slots, config.slot_shuffle_prob)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.cpu().eval()
    model.sizes.copy_(typical_sizes(model, scenes))
    return model


def untrained(
    scenes: Sequence[NDArray[np.uint8]], config: SlotConfig, rng: np.random.Generator
) -> SlotModel:
    """A slot model for scenes as `discover` takes them, that knows their backgrounds and things,
    and has yet to learn to see these."""
    backgrounds = torch.from_numpy(np.stack([estimate_background(clips) for clips in scenes]))
    things = propose_from_scenes(scenes, backgrounds, config, rng)
    found = replace(
        config,
        backgrounds=len(backgrounds),
        slots=things.things,
        parts=len(things.colours),
        joints=len(things.joints),
    )
    return SlotModel(found, backgrounds, things)


@torch.no_grad()
def _shares(model: SlotModel, clips: NDArray[np.uint8]) -> NDArray[np.float16]:
    """What things have of each frame of clips (E, T, H, W, 3): (E, T, N, H, W). All are looked at
    several times: it is found once."""
    frames = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]))
    shares = [
        model.things(images, model.foreground(images)[0]).half().numpy()
        for images in map(as_images, frames.split(100))
    ]
    return np.concatenate(shares).reshape(*clips.shape[:2], *shares[0].shape[1:])


def shuffle_slots(slots: Tensor, share: float) -> Tensor:
    """Slots (B, K, D) with those of a share of the rows replaced by another row's, in another
    order."""
    batch, count = slots.shape[:2]
    other = slots[torch.randperm(batch)][:, torch.randperm(count)]
    return torch.where((torch.rand(batch) < share).view(-1, 1, 1).to(slots.device), other, slots)


def propose_from_scenes(
    scenes: Sequence[NDArray[np.uint8]],
    backgrounds: Tensor,
    config: SlotConfig,
    rng: np.random.Generator,
) -> SegmentProposals:
    """The things in some frames of all scenes, (E, T, H, W, 3) each, before `backgrounds` (V, H, W,
    3)."""
    chosen, moved = [], []
    for clips in scenes:
        followers = len(clips), clips.shape[1] - 1  # frames with one before them
        clip, time = np.unravel_index(
            np.sort(rng.permutation(np.prod(followers))[: LOOKED_AT // len(scenes)]), followers
        )
        chosen.append(clips[clip, time + 1])
        moved.append((clips[clip, time + 1] != clips[clip, time]).any(axis=-1))
    images = as_images(torch.from_numpy(np.concatenate(chosen)))
    empty = as_images(backgrounds)
    alpha = torch.cat(
        [
            foreground_alpha(
                some, nearest_background(some, empty), config.threshold, config.softness
            )
            for some in images.split(100)
        ]
    )
    return propose_segments(
        images,
        alpha > 0.5,
        config.slots,
        rng,
        config.joints,
        torch.from_numpy(np.concatenate(moved)),
    )


@torch.no_grad()
def typical_sizes(model: SlotModel, scenes: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Median number of pixels of each slot (K,) where it sees anything, on some frames of each
    scene."""
    frames = np.concatenate(
        [clips[:, :: max(1, clips.shape[1] // 4)].reshape(-1, *clips.shape[2:]) for clips in scenes]
    )
    pixels = torch.cat(
        [model(some).decoded.masks.sum(dim=(2, 3)) for some in torch.from_numpy(frames).split(100)]
    )
    sizes = [
        own[own > SPECK].median() if (own > SPECK).any() else own.new_tensor(SPECK)
        for own in pixels.T
    ]
    return torch.stack(sizes)


def learning_rate_factor(step: int, config: DiscoveryConfig) -> float:
    """Linear warm-up, then a cosine to one twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
