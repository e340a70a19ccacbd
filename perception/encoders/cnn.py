"""Perception by a convolutional encoder: features of the two newest frames, no objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception import ops
from perception.base import ObsSequence, Perception, StorageSpec, StoredObs

STACK = 2
"""Frames of one observation, as in the paper's vision setting."""


class Conv4(nn.Sequential):
    """The paper's vision encoder: (B, C, H, W) -> (B, 32 * H/16 * W/16).

    Four convolutions each halve the image.

    Args:
        in_channels: C.
        channels: Output channels of each convolution.
    """

    def __init__(self, in_channels: int, channels: int = 32) -> None:
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [
                nn.Conv2d(in_channels if i == 0 else channels, channels, 3, stride=2, padding=1),
                nn.ReLU(),
            ]
        super().__init__(*layers[:-1], nn.Flatten())


class FrozenCnn(Conv4):
    """A random network that never learns: frames that look alike get similar embeddings.

    Args:
        seed: Determines its weights.
    """

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(3 * STACK)
        self.requires_grad_(False)

    def width(self, frame_size: tuple[int, int]) -> int:
        """Return the width of its embedding of frames (H, W)."""
        return int(self(torch.zeros(1, 3 * STACK, *frame_size)).shape[-1])

    def embed(self, frames: Tensor) -> Tensor:
        """Embed frame pairs with zero mean and unit variance, the scale that an RND expects.

        Args:
            frames: (1 + T, B, H, W, 3) uint8.

        Returns:
            (T, B, M), normalised over its entries.
        """
        embedding = encode_pairs(self, frames)
        return F.layer_norm(embedding, embedding.shape[-1:])


def encode_pairs(encoder: nn.Module, frames: Tensor) -> Tensor:
    """Encode each frame together with the one before it.

    Args:
        encoder: (B, 6, H, W) -> (B, D).
        frames: (1 + T, B, H, W, 3) uint8.

    Returns:
        (T, B, D).
    """
    if isinstance(encoder, Conv4):
        layers = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return ops.conv_pairs(frames, [layer.weight for layer in layers], biases)
    pairs = ops.frame_pairs(frames)
    return encoder(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])


def build_encoder(backbone: str, frame_size: tuple[int, int], weights: str | None) -> nn.Module:
    """Make an encoder (B, 6, H, W) -> (B, D).

    Args:
        backbone: "conv4" or "timm:<model>".
        frame_size: (H, W).
        weights: A safetensors file for a timm backbone, "hub", or None for random ones.

    Raises:
        ValueError: The backbone is unknown, or the weights do not belong to it.
    """
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
    """Features of frame pairs (t - 1, t) by an encoder that is trained with the agent.

    The RND reads their embedding by a frozen, random CNN. Observations are (B, 2, H, W, 3) uint8
    stacks, of which replay stores the newest frame.

    Args:
        frame_size: (H, W).
        backbone: "conv4" or "timm:<model>".
        weights: A safetensors file for a timm backbone, "hub", or None for random ones.
        seed: Draws the frozen CNN.

    Raises:
        ValueError: The backbone is unknown, or the weights do not belong to it.
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
        self.storage = {"frame": StorageSpec((*frame_size, 3), torch.uint8)}
        with torch.no_grad():
            probe = torch.zeros(1, 3 * STACK, *frame_size)
            self.feature_shape = (self.encoder(probe).shape[-1],)
        self.rnd_input_dim = self.frozen.width(frame_size)

    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        """Store the newest frame (B, H, W, 3) uint8; carry nothing."""
        return {"frame": obs[:, -1]}, {}

    def features(self, obs_sequence: ObsSequence) -> Tensor:
        """Encode each frame together with the one before it: (T, B, D)."""
        return encode_pairs(self.encoder, obs_sequence["frame"])

    @torch.no_grad()
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Embed frame pairs by the frozen CNN: (T, B, M)."""
        return self.frozen.embed(obs_sequence["frame"])
