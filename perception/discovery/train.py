"""Object discovery: trains a slot model from frames alone, without labels.

Segments are proposed first, by common fate; slot attention then learns to see them, each slot its
segment, in one pass over a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.discovery.camera import changed, measure_camera, measure_spread, steadied
from perception.discovery.common_fate import ProposalConfig, propose_segments
from perception.discovery.losses import Batch, LossConfig, SlotLoss
from perception.images import as_images
from perception.slots.alignment import CELL, Alignment
from perception.slots.background import BackgroundConfig, estimate_background, flickering, view
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.shadows import darkest_shadow


@dataclass(frozen=True)
class DiscoveryConfig(LossConfig):
    """How a slot model is trained."""

    steps: int = 1000
    """Updates."""
    batch: int = 16
    """Frames per update, half of them seen as first ones."""
    learning_rate: float = 2e-3
    warmup: int = 50
    """Updates of linear warm-up."""
    carried_frames: float = 50
    """Mean number of frames over which slots are carried in training."""
    slot_shuffle_prob: float = 0.15
    """Probability that a later frame starts from another row's slots, so that a slot that has lost
    its object finds back to it."""
    min_slot_pixels: float = 4.0
    """Pixels from which a slot sees something."""
    seed: int = 0
    compiled: bool = False
    """Whether the loss is compiled, which takes a minute and pays in long trainings."""
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)


@dataclass
class VideoData:
    """E clips of T frames of one scene."""

    frames: NDArray[np.uint8]
    """(E, T, H, W, 3)."""
    shares: NDArray[np.float16]
    """(E, T, N, H, W): each segment's share of each pixel."""


class ClipSampler:
    """Reads frames from clips, one per row and step.

    Half of the rows jump to a random frame at every step, seen as an episode's first one. The
    others go on by a frame, each carrying its slots, and turn back at a clip's end: objects move as
    plausibly in reverse, and slots are carried for longer than clips last.

    Args:
        scenes: Clips of each scene.
        batch: Number of rows, as many of each scene.
        carried_frames: Mean number of frames between jumps of the carried rows.
        rng: Draws frames.
    """

    def __init__(
        self,
        scenes: Sequence[VideoData],
        batch: int,
        carried_frames: float,
        rng: np.random.Generator,
    ) -> None:
        self.clips = [scenes[i // 2 % len(scenes)] for i in range(batch)]
        self.lengths = np.array([clips.frames.shape[1] for clips in self.clips])
        self.jump = np.where(np.arange(batch) % 2 == 0, 1.0, 1 / carried_frames)
        self.rng = rng
        self.episode, self.time = np.zeros(batch, dtype=np.int64), np.full(batch, -1)
        self.pace = np.ones(batch, dtype=np.int64)

    def sample(self) -> Batch:
        """The next frame of each row."""
        first = (self.rng.random(len(self.jump)) < self.jump) | (self.time < 0)
        ahead = self.time + self.pace
        self.pace = np.where((ahead < 0) | (ahead >= self.lengths), -self.pace, self.pace)
        drawn = [self.rng.integers(len(clips.frames)) for clips in self.clips]
        self.episode = np.where(first, drawn, self.episode)
        self.time = np.where(first, self.rng.integers(self.lengths), self.time + self.pace)
        rows = list(zip(self.clips, self.episode, self.time, strict=True))
        return Batch(
            torch.from_numpy(np.stack([clips.frames[e, t] for clips, e, t in rows])),
            torch.from_numpy(first),
            torch.from_numpy(np.stack([clips.shares[e, t] for clips, e, t in rows])).float(),
        )


def discover(
    scenes: Sequence[NDArray[np.uint8]],
    slot_config: SlotConfig,
    config: DiscoveryConfig,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    device: torch.device | str = "cpu",
) -> SlotModel:
    """Train a slot model on scenes of one fixed camera.

    Args:
        scenes: Clips (E, T, H, W, 3) of each variant of the task.
        slot_config: Its `slots` is about how many segments to propose; the model has a slot for
            each that was found.
        config: How it is trained.
        progress: Wraps the updates, to show them.
        device: Where it is trained.

    Returns:
        The model, on the CPU.

    Raises:
        NothingToDiscover: If nothing differs from the background.
        ValueError: For clips that are too short or too small.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = initial_model(scenes, slot_config, config, rng)
    data = [VideoData(clips, _shares(model, clips)) for clips in scenes]
    sampler = ClipSampler(data, config.batch, config.carried_frames, rng)
    loss_of = SlotLoss(model, config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: learning_rate_factor(i, config)
    )
    compute = torch.compile(loss_of, dynamic=False) if config.compiled else loss_of
    slots = torch.zeros(config.batch, model.config.slots, model.config.width, device=device)
    order = torch.zeros(config.batch, dtype=torch.int64, device=device)
    for _ in progress(range(config.steps)):
        optimizer.zero_grad(set_to_none=True)
        batch = sampler.sample()
        batch = Batch(**{name: value.to(device) for name, value in vars(batch).items()})
        before = shuffle_slots(slots, config.slot_shuffle_prob)
        begins = batch.is_first | (before != slots).flatten(1).any(dim=1)
        loss, slots, order = compute(batch, before, order, begins)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.cpu().eval()
    model.sizes.copy_(typical_sizes(model, scenes, config.min_slot_pixels))
    return model


def initial_model(
    scenes: Sequence[NDArray[np.uint8]],
    slot_config: SlotConfig,
    config: DiscoveryConfig,
    rng: np.random.Generator,
) -> SlotModel:
    """Build an untrained slot model, with the backgrounds and segment proposals of scenes.

    Args:
        scenes: As `discover` takes them.
        slot_config: Likewise.
        config: Likewise.
        rng: Draws frames and colours.

    Returns:
        The model.

    Raises:
        NothingToDiscover: If nothing differs from the background.
        ValueError: For clips that are too short or too small.
    """
    if min(scenes[0].shape[2:4]) < CELL or any(clips.shape[1] < 2 for clips in scenes):
        raise ValueError(f"clips need at least 2 frames of {CELL} x {CELL} pixels")
    cameras = [measure_camera(clips) for clips in scenes]
    backgrounds, chosen, moved = [], [], []
    darkest = 1.0
    for clips, camera in zip(scenes, cameras, strict=True):
        steady = clips if camera.exact else steadied(clips)
        empty_scene = estimate_background(steady, config.background, camera.noise)
        backgrounds.append(torch.from_numpy(empty_scene))
        if camera.exact:
            backgrounds += torch.from_numpy(flickering(clips, empty_scene, config.background))
            if slot_config.threshold >= 0:  # below 0 all is foreground
                darkest = min(
                    darkest,
                    darkest_shadow(
                        clips,
                        empty_scene,
                        slot_config.threshold,
                        config.background.shadow_share,
                    ),
                )
        shape = len(clips), clips.shape[1] - 1  # frames with one before them
        drawn = rng.permutation(np.prod(shape))[: config.proposals.frames // len(scenes)]
        clip, time = np.unravel_index(np.sort(drawn), shape)
        chosen.append(clips[clip, time + 1])
        moved.append(changed(steady[clip, time + 1], steady[clip, time], camera))
    slot_config = replace(
        slot_config,
        adapt=slot_config.adapt or not all(camera.exact for camera in cameras),
        compressed=any(camera.compressed for camera in cameras),
        darkest=darkest,
    )
    empty = as_images(torch.stack(backgrounds))
    alignment = None
    if slot_config.adapt:
        alignment = Alignment(empty)
        spreads = [measure_spread(clips, empty, alignment) for clips in scenes]
        alignment.spread.copy_(torch.stack(spreads).amax(0))
    views = [
        view(
            some,
            empty,
            slot_config.threshold,
            slot_config.softness,
            alignment,
            slot_config.compressed,
            slot_config.darkest,
        )
        for some in as_images(torch.from_numpy(np.concatenate(chosen))).split(100)
    ]
    images, alpha = (torch.cat([getattr(of, name) for of in views]) for name in ("images", "alpha"))
    proposals = propose_segments(
        images,
        alpha > 0.5,
        slot_config.slots,
        rng,
        slot_config.splits,
        torch.from_numpy(np.concatenate(moved)),
        config.proposals,
        slot_config.segments,
    )
    found = replace(
        slot_config,
        backgrounds=len(backgrounds),
        slots=proposals.count,
        clusters=len(proposals.codebook),
        splits=len(proposals.splits),
        twins=tuple(map(len, proposals.alike)),
    )
    model = SlotModel(found, torch.stack(backgrounds), proposals)
    if alignment is not None:
        model.alignment = alignment
    return model


@torch.no_grad()
def _shares(model: SlotModel, clips: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Each segment's share (E, T, N, H, W) of clips (E, T, H, W, 3), which are read many times.

    Each of twins keeps its place among the segments throughout a clip.
    """
    frames = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]))
    views = map(model.view, map(as_images, frames.split(100)))
    shares = [model.proposals(seen.images, seen.alpha).half().numpy() for seen in views]
    whole = np.concatenate(shares).reshape(*clips.shape[:2], *shares[0].shape[1:])
    places: Tensor | None = None
    for time in range(clips.shape[1] if model.proposals.alike else 0):
        own, places = model.proposals.follow(torch.from_numpy(whole[:, time]).float(), places)
        whole[:, time] = own.half().numpy()
    return whole


def shuffle_slots(slots: Tensor, prob: float) -> Tensor:
    """Replace the slots of some rows by another row's, in another order.

    Args:
        slots: (B, K, D).
        prob: Probability of each row.

    Returns:
        (B, K, D).
    """
    batch, count = slots.shape[:2]
    other = slots[torch.randperm(batch)][:, torch.randperm(count)]
    return torch.where((torch.rand(batch) < prob).view(-1, 1, 1).to(slots.device), other, slots)


@torch.no_grad()
def typical_sizes(
    model: SlotModel, scenes: Sequence[NDArray[np.uint8]], min_pixels: float
) -> Tensor:
    """Median pixels of each slot where it has more than `min_pixels`, over a quarter of the frames.

    Args:
        model: The slot model.
        scenes: Clips (E, T, H, W, 3) of each scene.
        min_pixels: Pixels from which a slot sees something; its size if it never does.

    Returns:
        (K,).
    """
    frames = np.concatenate(
        [clips[:, :: max(1, clips.shape[1] // 4)].reshape(-1, *clips.shape[2:]) for clips in scenes]
    )
    pixels = torch.cat(
        [model(some).decoded.masks.sum(dim=(2, 3)) for some in torch.from_numpy(frames).split(100)]
    )
    seen = torch.where(pixels > min_pixels, pixels, torch.nan)
    return seen.nanmedian(dim=0).values.nan_to_num(min_pixels)


def learning_rate_factor(step: int, config: DiscoveryConfig) -> float:
    """Linear warm-up, then a cosine to one twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
