"""The whole slot model: encoder, slot attention, decoder and background, and the one file that
holds them.

B batch, H and W of the frame, h and w of the token grid, K slots, D slot width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from perception.gru import GRUCell
from perception.images import as_images
from perception.slots.attention import SlotAttention
from perception.slots.background import foreground_alpha, nearest_background
from perception.slots.decoder import Decoded, MaskDecoder
from perception.slots.segments import SegmentProposals

FORMAT = "vis-rpg slot model 3"


@dataclass(frozen=True)
class SlotConfig:
    """What a slot model is built from; lies in its file."""

    slots: int = 4
    width: int = 32
    channels: int = 16
    """Of the convolutional encoder."""
    fine: int = 0
    """Channels of full resolution by which pixels within a token's cell are told apart; 0 for none.
    """
    stride: int = 2
    """Side of a token's cell in pixels, 2 or 4."""
    frame_size: tuple[int, int] = (64, 64)
    """(H, W), multiples of `stride`."""
    iterations: int = 3
    """Of slot attention on an episode's first frame."""
    backgrounds: int = 1
    """Empty scenes that the camera knows (a task's variants)."""
    parts: int = 1
    """Colours that the foreground is divided into (`perception.things`)."""
    joints: int = 0
    """Things, those that move most of the time, that are seen as two limbs; each has a slot of its
    own."""
    threshold: float = 0.025
    """Distance from the background, in the RGB cube of side 1, at which a pixel is half foreground.
    """
    softness: float = 0.0025
    """Width of the transition from background to foreground, in the same unit."""
    actions: int = 0
    """Width of the actions by which slots are predicted from frame to frame; 0: they are carried as
    they are."""
    frequencies: int = 6
    """Of the positional encoding of centroids; the most that the measured jitter of a resting
    object allows."""


@dataclass
class SlotOutput:
    """One batch of frames, seen."""

    slots: Tensor
    """(B, K, D)."""
    coordinates: Tensor
    """(B, K, 4): centroid x (right) and y (down) in [-1, 1], area in that of the thing as a rule,
    presence in [0, 1]."""
    decoded: Decoded
    alpha: Tensor
    """(B, H, W): share of each pixel that is foreground."""


class FrameEncoder(nn.Module):
    """Frames and their difference from the background to tokens, one for each cell of `stride`
    pixels: (B, 6, H, W) -> (B, h * w, D)."""

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
        self.register_buffer("places", pixel_places(grid).flatten(0, 1), persistent=False)
        self.places: Tensor

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.convolutions(images).flatten(2).transpose(1, 2)
        return self.mix(tokens + self.position(self.places))


def pixel_places(size: tuple[int, int]) -> Tensor:
    """Centres of the cells of a grid: (H, W, 2) of x (right) and y (down) in [-1, 1]."""
    axes = [(torch.arange(n) + 0.5) * (2 / n) - 1 for n in size]
    y, x = torch.meshgrid(axes[0], axes[1], indexing="ij")
    return torch.stack([x, y], dim=-1)


class Predictor(nn.Module):
    """Slots after an action: a step of a GRU, whose state is bounded, on what was done and the mean
    of the slots. It begins by changing little."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.actions = actions
        self.cell = GRUCell(width + actions, width)
        nn.init.constant_(self.cell.recurrent.bias[width : 2 * width], 3.0)

    def forward(self, slots: Tensor, action: Tensor | None) -> Tensor:
        """Slots (B, K, D) and action (B, A), None where it is not known -> (B, K, D)."""
        action = slots.new_zeros(len(slots), self.actions) if action is None else action
        inputs = (
            torch.cat([slots.mean(dim=1), action], dim=1)
            .unsqueeze(1)
            .expand(-1, slots.shape[1], -1)
        )
        return self.cell(self.cell.input(inputs), slots)


class SlotModel(nn.Module):
    """Sees the objects of a frame as slots. config: sizes; backgrounds: (V, H, W, 3) uint8, the
    empty scenes; things: what slots learn to see, which goes with the model so that it can learn
    on."""

    def __init__(
        self,
        config: SlotConfig,
        backgrounds: Tensor | None = None,
        things: SegmentProposals | None = None,
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
        self.attention = SlotAttention(config.slots, config.width, config.iterations)
        self.decoder = MaskDecoder(config.width, config.fine)
        self.predictor = Predictor(config.width, config.actions) if config.actions else None
        empty = (
            torch.zeros(config.backgrounds, height, width, 3, dtype=torch.uint8)
            if backgrounds is None
            else backgrounds
        )
        self.register_buffer("backgrounds", empty)
        self.backgrounds: Tensor
        self.register_buffer("places", pixel_places(config.frame_size), persistent=False)
        self.places: Tensor
        self.register_buffer("sizes", torch.full((config.slots,), 40.0))
        self.sizes: Tensor
        """(K,) pixels that each slot's thing has as a rule: the unit of its area; measured on the
        training frames."""
        blank = torch.zeros(config.parts, 3), torch.zeros(config.parts)
        self.things = (
            SegmentProposals(*blank, config.slots - config.joints, config.joints)
            if things is None
            else things
        )

    def forward(
        self,
        frames: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        action: Tensor | None = None,
    ) -> SlotOutput:
        """See frames (B, H, W, 3) uint8, from the slots `previous` (B, K, D) of the frame before,
        in which `action` (B, A) was done, where not `is_first` (B,)."""
        return self.see(as_images(frames), previous, is_first, action=action)

    def foreground(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """How far each pixel of images (B, 3, H, W) in [0, 1] is foreground, (B, H, W), and the
        background (B, 3, H, W)."""
        background = nearest_background(images, as_images(self.backgrounds))
        return foreground_alpha(
            images, background, self.config.threshold, self.config.softness
        ), background

    def see(
        self,
        images: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        assign_unseen: bool = True,
        action: Tensor | None = None,
    ) -> SlotOutput:
        """`forward`, on images (B, 3, H, W) in [0, 1]. assign_unseen: whether slots that see
        nothing else see things of colours never seen."""
        alpha, background = self.foreground(images)
        seen = torch.cat([images - 0.5, images - background], dim=1)
        tokens = self.encoder(seen)
        known, unknown = alpha, None
        if assign_unseen:
            strange = alpha * self.things.strange(images)
            known = alpha - strange
            share = self._on_grid(strange)
            colours = self._on_grid(images * strange.unsqueeze(1)) / share.clamp(
                min=1e-6
            ).unsqueeze(1)
            unknown = share.flatten(1), colours.flatten(2).transpose(1, 2)
        if previous is not None:
            previous = (
                previous.detach()
                if self.predictor is None
                else self.predictor(previous.detach(), action)
            )
        slots, logits = self.attention(
            tokens, self._on_grid(known).flatten(1), previous, is_first, unknown
        )
        decoded = self.decoder(slots, logits.unflatten(2, self.grid), alpha, background, seen)
        return SlotOutput(slots, self.locate(decoded.masks), decoded, alpha)

    def _on_grid(self, pixels: Tensor) -> Tensor:
        """Means over the cells of the grid of tokens: (B, H, W) or (B, C, H, W) -> (B, h, w) or (B,
        C, h, w)."""
        return F.avg_pool2d(pixels, self.config.stride)

    def locate(self, masks: Tensor) -> Tensor:
        """Centroid, area and presence (B, K, 4) of masks (B, K, H, W); an empty mask lies at the
        centre."""
        pixels = masks.sum(dim=(2, 3))
        centroid = torch.einsum("bkhw,hwc->bkc", masks, self.places) / pixels.clamp(
            min=1.0
        ).unsqueeze(-1)
        area = pixels / self.sizes
        presence = torch.sigmoid((area - 0.3) / 0.05)
        return torch.cat([centroid, area.unsqueeze(-1), presence.unsqueeze(-1)], dim=-1)

    def encode_video(self, frames: Tensor, actions: Tensor | None = None) -> list[SlotOutput]:
        """See frames (T, B, H, W, 3) one after the other: all iterations on the first, one on each
        later frame. actions: (T, B, A), what was done in each."""
        sights: list[SlotOutput] = []
        for t, frame in enumerate(frames):
            sights.append(
                self(
                    frame,
                    sights[-1].slots if t else None,
                    action=actions[t - 1] if t and actions is not None else None,
                )
            )
        return sights

    def save(self, path: Path, card: Mapping[str, Any]) -> None:
        """Write the model with its config and `card` (task, frames, scores ...: JSON values) as one
        safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.config)),
            "card": json.dumps(dict(card)),
        }
        partial = path.with_suffix(".partial")
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()},
            partial,
            metadata,
        )
        partial.replace(path)

    @staticmethod
    def load(
        path: Path, frame_size: tuple[int, int] | None = None
    ) -> tuple[SlotModel, dict[str, Any]]:
        """The model of a file and its card; ValueError where the file is missing, broken, foreign,
        or for frames of another size."""
        if not path.is_file():
            raise ValueError(
                f"slot model {path} does not exist; make one with scripts/discover_objects.py"
            )
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
                f"{path} is no slot model of this project (format {metadata.get('format')!r}, "
                f"wanted {FORMAT!r})"
            )
        try:
            values = json.loads(metadata["config"])
            config = SlotConfig(**values | {"frame_size": tuple(values["frame_size"])})
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
