"""Seeing with a convolutional encoder: no objects, only features of the two newest frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.base import Memory, Perception, Window
from perception.images import as_images
from perception.ops import fused

STACK = 2
"""Frames in one observation, as in the paper's vision setting."""


class Conv4(nn.Sequential):
    """The paper's vision encoder: four convolutions of 32 channels, each halving the image; (B, C,
    H, W) -> (B, 32 * H/16 * W/16)."""

    fused = False
    """Whether `encode_pairs` runs it by the kernels of `perception.fused` where they take its
    input."""

    def __init__(self, in_channels: int, channels: int = 32) -> None:
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [
                nn.Conv2d(in_channels if i == 0 else channels, channels, 3, stride=2, padding=1),
                nn.ReLU(),
            ]
        super().__init__(*layers[:-1], nn.Flatten())


class FrozenCnn(Conv4):
    """A random network that never learns, the same for the same seed: what looks alike to it is
    alike."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(3 * STACK)
        self.requires_grad_(False)

    def width(self, frame_size: tuple[int, int]) -> int:
        """Of its embedding of frames (H, W)."""
        return int(self(torch.zeros(1, 3 * STACK, *frame_size)).shape[-1])

    def embed(self, frames: Tensor) -> Tensor:
        """Frames (1 + T, B, H, W, 3) uint8 -> of pairs (T, B, M), zero mean and unit variance over
        its entries, the scale that an RND expects."""
        embedding = encode_pairs(self, frames)
        return F.layer_norm(embedding, embedding.shape[-1:])


class GlobalToken(nn.Module):
    """What a small CNN makes of a whole frame, as one more token beside slots: (..., H, W, 3) uint8
    -> (..., width), of zero mean and unit variance. Random, and the same for the same seed; whether
    it is trained is up to its owner."""

    def __init__(self, width: int, frame_size: tuple[int, int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Conv4(3)
            self.project = nn.Linear(self.encoder(torch.zeros(1, 3, *frame_size)).shape[-1], width)

    def forward(self, frames: Tensor) -> Tensor:
        images = as_images(frames.flatten(0, -4)) - 0.5
        told = self.project(self.encoder(images))
        return F.layer_norm(told, told.shape[-1:]).unflatten(0, frames.shape[:-3])


def pairs_of(frames: Tensor) -> Tensor:
    """(1 + T, B, H, W, 3) uint8 -> (T, B, 6, H, W), about [-0.5, 0.5]; channels stay last in
    memory, which convolutions like best."""
    pairs = torch.cat([frames[:-1], frames[1:]], dim=-1)
    return pairs.float().div_(255).sub_(0.5).movedim(-1, 2)


def encode_pairs(encoder: nn.Module, frames: Tensor) -> Tensor:
    """What an encoder (B, 6, H, W) -> (B, D) makes of each frame beside the one before it: (1 + T,
    B, H, W, 3) uint8 -> (T, B, D)."""
    if isinstance(encoder, Conv4) and encoder.fused:
        layers = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
        weights = [layer.weight for layer in layers]
        if fused.encodable(frames, weights):
            return fused.encode(
                frames, weights, [layer.bias for layer in layers if layer.bias is not None]
            )
    pairs = pairs_of(frames)
    return encoder(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])


def build_encoder(backbone: str, frame_size: tuple[int, int], weights: str | None) -> nn.Module:
    """An encoder (B, 6, H, W) -> (B, D) by name: "conv4", or "timm:<model>" with random `weights`,
    those of a file or "hub"."""
    if backbone == "conv4":
        if weights is not None:
            raise ValueError(
                f"weights={weights} belong to a timm backbone; conv4 is trained from nothing: "
                "leave weights empty"
            )
        return Conv4(3 * STACK)
    if backbone.startswith("timm:"):
        from perception.encoders.timm import (
            TimmEncoder,
        )  # timm is slow to import and few runs need it

        return TimmEncoder(backbone.removeprefix("timm:"), 3 * STACK, weights)
    raise ValueError(f"backbone={backbone} is unknown: conv4, or timm:<name of a timm model>")


class CnnPerception(Perception):
    """Features of frame pairs (t - 1, t), trained with the agent; novelty is the embedding of a
    frozen, random CNN.

    frame_size: (H, W); backbone: "conv4" or "timm:<name>"; weights: a safetensors file for a timm
    backbone; seed: of the frozen CNN. Observations are (B, 2, H, W, 3) uint8 stacks, of which only
    the newest frame is stored.
    """

    history = STACK

    def __init__(
        self,
        frame_size: tuple[int, int] = (64, 64),
        backbone: str = "conv4",
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(backbone, frame_size, weights)
        self.frozen = FrozenCnn(seed)
        self.stored = {"frame": ((*frame_size, 3), torch.uint8)}
        with torch.no_grad():
            probe = torch.zeros(1, 3 * STACK, *frame_size)
            self.feature_shape = (self.encoder(probe).shape[-1],)
        self.novelty_dim = self.frozen.width(frame_size)

    def observe(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, memory: Memory
    ) -> tuple[Window, Memory]:
        return {"frame": obs[:, -1]}, {}

    def features(self, window: Window) -> Tensor:
        return encode_pairs(self.encoder, window["frame"])

    def objects(self, window: Window) -> tuple[Tensor, Tensor]:
        steps, batch = window["frame"].shape[0] - 1, window["frame"].shape[1]
        nothing = torch.zeros(steps, batch, 0, device=window["frame"].device)
        return nothing.unsqueeze(-1), nothing

    @torch.no_grad()
    def novelty(self, window: Window) -> Tensor:
        return self.frozen.embed(window["frame"])
