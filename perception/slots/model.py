"""The slot model: encoder, slot attention, decoder, background and segment proposals in one file.

B batch, H and W of the frame, h and w of the token grid, K slots, D slot width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from perception.images import as_images
from perception.slots.alignment import Alignment
from perception.slots.attention import SlotAttention
from perception.slots.background import View, view
from perception.slots.decoder import Decoded, MaskDecoder
from perception.slots.occlusion import bodies_seen, fill_holes, remember_hidden
from perception.slots.segments import SegmentConfig, SegmentProposals

FORMAT = "perception slot model 1"
SEEN = 0.5
"""Presence above which an object is there."""


@dataclass(frozen=True)
class SlotConfig:
    """Sizes and thresholds of a slot model, stored in its file."""

    slots: int = 4
    width: int = 32
    """Of a slot."""
    channels: int = 16
    """Of the convolutional encoder."""
    pixel_channels: int = 0
    """Channels at full resolution that tell pixels of a token's cell apart; 0 for none."""
    stride: int = 2
    """Side of a token's cell in pixels, 2 or 4."""
    frame_size: tuple[int, int] = (64, 64)
    """(H, W), multiples of `stride`."""
    iterations: int = 3
    """Of slot attention on an episode's first frame."""
    backgrounds: int = 1
    """Empty scenes of the camera (a task's variants)."""
    clusters: int = 1
    """Colour clusters of the segment proposals."""
    splits: int = 0
    """Articulated segments, those that move most of the time, that are split in two slots."""
    twins: tuple[int, ...] = ()
    """How many things alike each segment of twins has; each is a slot."""
    threshold: float = 0.025
    """Distance from the background, in the RGB cube of side 1, at which alpha is one half."""
    softness: float = 0.0025
    """Width of the transition from background to foreground, in the same unit."""
    adapt: bool = False
    """Whether the camera is not exact, so that each frame's brightness, shift and noise are
    measured (`perception.slots.background.view`)."""
    compressed: bool = False
    """Whether frames have been compressed, which leaves colours coarser than brightness; it needs
    `adapt`."""
    darkest: float = 1.0
    """Share of its brightness that a background keeps in the darkest shadow, which is background; 1
    for no shadows. Not with `adapt`."""
    frequencies: int = 6
    """Of the positional encoding of centroids, the most that the measured jitter of a resting
    object allows."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    """How pixels are assigned to segments."""


@dataclass
class SlotOutput:
    """The slots of one batch of frames."""

    slots: Tensor
    """(B, K, D)."""
    coordinates: Tensor
    """(B, K, 4): centroid x (right) and y (down) in [-1, 1], area in units of the slot's typical
    one, presence in [0, 1]."""
    decoded: Decoded
    alpha: Tensor
    """(B, H, W) foreground share of each pixel."""


class FrameEncoder(nn.Module):
    """Encodes frames and their difference from the background as tokens.

    Args:
        channels: Of the convolutions.
        width: D.
        grid: (h, w).
        stride: Side of a token's cell in pixels.
    """

    def __init__(self, channels: int, width: int, grid: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(6, channels, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=stride // 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.position = nn.Linear(2, channels)
        self.mix = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.places = nn.Buffer(pixel_places(grid).flatten(0, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode (B, 6, H, W) as (B, h * w, D)."""
        tokens = self.convolutions(images).flatten(2).transpose(1, 2)
        return self.mix(tokens + self.position(self.places))


def pixel_places(size: tuple[int, int]) -> Tensor:
    """Centres (H, W, 2) of the cells of a grid: x (right) and y (down) in [-1, 1]."""
    y, x = torch.meshgrid([(torch.arange(n) + 0.5) * (2 / n) - 1 for n in size], indexing="ij")
    return torch.stack([x, y], dim=-1)


def _choose_points(model: SlotModel, _: object) -> None:
    """Do what follows from the backgrounds that have been loaded."""
    if model.alignment is not None:
        model.alignment.choose(as_images(model.backgrounds))


class SlotModel(nn.Module):
    """Sees the objects of a frame as slots.

    Args:
        config: Sizes and thresholds.
        backgrounds: (V, H, W, 3) uint8, the empty scenes.
        proposals: The segments that slots learn; they tell which colours are unseen.

    Raises:
        ValueError: If `frame_size` or `stride` does not fit.
    """

    def __init__(
        self,
        config: SlotConfig,
        backgrounds: Tensor | None = None,
        proposals: SegmentProposals | None = None,
    ) -> None:
        super().__init__()
        height, width = config.frame_size
        if config.stride not in (2, 4):
            raise ValueError(f"stride={config.stride}: choose 2 or 4")
        if height % config.stride or width % config.stride:
            raise ValueError(
                f"frame_size={config.frame_size}: height and width must be multiples of "
                f"{config.stride}"
            )
        self.config = config
        self.grid = (height // config.stride, width // config.stride)
        self.encoder = FrameEncoder(config.channels, config.width, self.grid, config.stride)
        self.attention = SlotAttention(
            config.slots, config.width, config.iterations, config.segments
        )
        self.decoder = MaskDecoder(config.width, config.pixel_channels)
        if backgrounds is None:
            backgrounds = torch.zeros(config.backgrounds, height, width, 3, dtype=torch.uint8)
        self.backgrounds = nn.Buffer(backgrounds)
        self.alignment = Alignment(as_images(backgrounds)) if config.adapt else None
        self.places = nn.Buffer(pixel_places(config.frame_size), persistent=False)
        self.sizes = nn.Buffer(torch.full((config.slots,), 40.0))
        """(K,) typical pixels of each slot, the unit of its area; measured on training frames."""
        self.proposals = proposals or SegmentProposals(
            torch.zeros(config.clusters, 3),
            torch.zeros(config.clusters),
            config.slots - config.splits - sum(config.twins) + len(config.twins),
            config.splits,
            config.segments,
            config.twins,
        )
        self.register_load_state_dict_post_hook(_choose_points)

    def view(self, images: Tensor) -> View:
        """Tell images (B, 3, H, W) in [0, 1] from the background."""
        config, empty = self.config, as_images(self.backgrounds)
        return view(
            images,
            empty,
            config.threshold,
            config.softness,
            self.alignment,
            config.compressed,
            config.darkest,
        )

    def forward(
        self,
        frames: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        assign_unseen: bool = True,
        skip: bool = False,
    ) -> SlotOutput:
        """Encode one frame of each row.

        Args:
            frames: (B, H, W, 3) uint8.
            previous: (B, K, D) slots of the frame before.
            is_first: (B,) bool, rows that start anew although `previous` is given.
            assign_unseen: Whether unused slots take objects of unseen colours.
            skip: Whether to look at values, and leave out what no row needs: not within compiled
                code, and a GPU would be waited for.

        Returns:
            Slots, their coordinates and masks.
        """
        seen = self.view(as_images(frames))
        images, alpha, background = seen.images, seen.alpha, seen.background
        inputs = torch.cat([images - 0.5, images - background], dim=1)
        known, unseen = alpha, None
        if assign_unseen:
            share = alpha * self.proposals.is_unseen(images)
            known, tokens = alpha - share, self._pooled(share).flatten(1)
            if not skip or (tokens.sum(dim=1) >= self.config.segments.unseen_tokens).any():
                colours = self._pooled(images * share.unsqueeze(1)).flatten(2).transpose(1, 2)
                unseen = tokens, colours / tokens.clamp(min=1e-6).unsqueeze(2)
        slots, logits = self.attention(
            self.encoder(inputs),
            self._pooled(known).flatten(1),
            None if previous is None else previous.detach(),
            is_first,
            unseen,
            skip,
        )
        decoded = self.decoder(slots, logits.unflatten(2, self.grid), alpha, background, inputs)
        coordinates = self.locate(decoded.masks, seen.shift)
        return SlotOutput(slots, coordinates, decoded, alpha)

    def _pooled(self, pixels: Tensor) -> Tensor:
        """Means over tokens' cells: (B, H, W) or (B, C, H, W) -> (B, h, w) or (B, C, h, w)."""
        return F.avg_pool2d(pixels, self.config.stride)

    def locate(self, masks: Tensor, shift: Tensor | None = None) -> Tensor:
        """Centroid, area and presence (B, K, 4) of masks (B, K, H, W).

        An empty mask lies at the centre. With the shifts (B, 2), in pixels, of an adaptive model
        objects are where they are in the scene, however the camera shakes.
        """
        pixels = masks.sum(dim=(2, 3))
        sums = torch.einsum("bkhw,hwc->bkc", masks, self.places)
        area = pixels / self.sizes
        presence = torch.sigmoid((area - 0.3) / 0.05)
        centroid = sums / pixels.clamp(min=1.0).unsqueeze(-1)
        if shift is not None and self.config.adapt:
            moved = shift * 2 / shift.new_tensor(self.config.frame_size[::-1])
            centroid = centroid - moved.unsqueeze(1) * pixels.clamp(max=1.0).unsqueeze(-1)
        return torch.cat([centroid, area.unsqueeze(-1), presence.unsqueeze(-1)], dim=-1)

    def remember(
        self, output: SlotOutput, carried: Mapping[str, Tensor], is_first: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Locate objects with what others hide of them (`remember_hidden`).

        A camera that is not exact does without: a mask that is kept would shake with the frame.

        Args:
            output: Of this step.
            carried: Returned by the step before; whatever else it holds is left alone.
            is_first: (B,) bool, rows that start anew.

        Returns:
            Coordinates (B, K, 4) as of `SlotOutput`, and what the next step needs.
        """
        if self.config.adapt:
            return output.coordinates, {}
        masks, bodies = output.decoded.masks, self.proposals.bodies()
        seen = bodies_seen(masks, bodies)
        if "whole" not in carried:
            whole = fill_holes(masks, seen, bodies)
        else:
            before, kept = carried["seen"], carried["whole"].float()
            whole = remember_hidden(masks, seen, before, kept, bodies)
            if is_first is not None and (masks.is_cuda or is_first.any()):  # no GPU is waited for
                first = fill_holes(masks, seen, bodies)
                whole = torch.where(is_first.view(-1, 1, 1, 1), first, whole)
        return self.locate(whole), {"seen": seen, "whole": whole.half()}

    def encode_video(self, frames: Tensor) -> list[SlotOutput]:
        """Encode frames one after the other: all iterations on the first, one on each later frame.

        Args:
            frames: (T, B, H, W, 3) uint8.

        Returns:
            T outputs of batch B.
        """
        outputs: list[SlotOutput] = []
        for frame in frames:
            outputs.append(self(frame, outputs[-1].slots if outputs else None))
        return outputs

    def save(self, path: Path, card: Mapping[str, Any]) -> None:
        """Write the model, its config and a card as one safetensors file.

        Args:
            path: The file; its folder is made.
            card: JSON values: task, frames, scores and so on.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.config)),
            "card": json.dumps(dict(card)),
        }
        partial = path.with_suffix(".partial")
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        partial.write_bytes(save(tensors, metadata))  # save_file's are for their owner alone
        partial.replace(path)

    @staticmethod
    def load(
        path: Path, frame_size: tuple[int, int] | None = None
    ) -> tuple[SlotModel, dict[str, Any]]:
        """Load a model and its card.

        Args:
            path: A file that `save` wrote.
            frame_size: (H, W) that the model must be for.

        Returns:
            The model and its card.

        Raises:
            ValueError: If the file is missing, broken, of another format or for other frames.
        """
        if not path.is_file():
            raise ValueError(f"slot model {path} does not exist; make one by object discovery")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(
                f"slot model {path} is truncated or no safetensors file: {error}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is no slot model that can be read (format {metadata.get('format')!r}, "
                f"wanted {FORMAT!r}); make one by object discovery"
            )
        try:
            values = json.loads(metadata["config"])
            segments, size = SegmentConfig(**values["segments"]), tuple(values["frame_size"])
            twins = tuple(values.get("twins", ()))
            values |= {"segments": segments, "frame_size": size, "twins": twins}
            config = SlotConfig(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"slot model {path} has a config that cannot be read: {error}"
            ) from error
        if frame_size is not None and config.frame_size != tuple(frame_size):
            raise ValueError(
                f"slot model {path} sees frames of {config.frame_size}, not "
                f"{tuple(frame_size)}; discover objects anew"
            )
        model = SlotModel(config)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"slot model {path} holds tensors of other shapes than its config {config} says"
            ) from error
        return model, json.loads(metadata["card"])
