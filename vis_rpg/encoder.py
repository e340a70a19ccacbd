"""The encoder f: what turns the features of a percept, whichever they are, into the latent state s."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_rpg.networks import ELU, linear, mlp


class FlatEncoder(nn.Module):
    """An MLP over the features in their given order: the paper's f, and the plain MLP over ordered slots."""

    def __init__(self, feature_shape: tuple[int, ...], state_dim: int, hidden: int) -> None:
        super().__init__()
        self.dims = len(feature_shape)
        self.net = mlp(math.prod(feature_shape), state_dim, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(..., *feature_shape) -> (..., S)."""
        return self.net(features.flatten(-self.dims))


class SlotTransformer(nn.Module):
    """A small transformer over the slots of both frames, read by a read-out token.

    One pre-norm layer lets slots attend to each other; in the last layer only the read-out token asks, so only its queries are
    computed, with wide values, so that one token can carry every object's place. Each slot's token holds a learned embedding of its
    frame and index, since the order of slots is stable.
    """

    WIDTH, HEADS = 64, 8

    def __init__(self, feature_shape: tuple[int, ...], state_dim: int, hidden: int) -> None:
        super().__init__()
        frames, slots, inputs = feature_shape
        width = self.WIDTH
        self.token = linear(inputs, width)
        self.place = nn.Parameter(0.1 * torch.randn(frames * slots, width))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.query_key_value = linear(width, 3 * width)
        self.project = linear(width, width)
        self.feed_forward = nn.Sequential(linear(width, 2 * width), ELU(), linear(2 * width, width))
        self.readout_query = nn.Parameter(torch.randn(self.HEADS, width // self.HEADS))
        self.readout_key = linear(width, width)
        self.readout_value = linear(width, hidden)
        self.out = nn.Sequential(ELU(), linear(hidden, hidden), ELU(), linear(hidden, state_dim))

    def forward(self, features: Tensor) -> Tensor:
        """(..., 2, K, D) -> (..., S)."""
        lead = features.shape[:-3]
        x = self.token(features.flatten(0, -4).flatten(-3, -2)) + self.place  # (B, 2K, W)
        query, key, value = (self._heads(part) for part in self.query_key_value(self.norm[0](x)).chunk(3, -1))
        x = x + self.project(self._attend(query, key, value).transpose(1, 2).flatten(2))
        x = x + self.feed_forward(self.norm[1](x))
        seen = self.norm[2](x)
        query = self.readout_query.unsqueeze(1)  # (heads, 1, W / heads), the same for all
        read = self._attend(query, self._heads(self.readout_key(seen)), self._heads(self.readout_value(seen)))
        return self.out(read.flatten(1)).view(*lead, -1)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, 2K, X) -> (B, heads, 2K, X / heads)."""
        return x.unflatten(-1, (self.HEADS, -1)).transpose(1, 2)

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1) / math.sqrt(key.shape[-1])
        return F.softmax(scores, -1) @ value


def make_encoder(kind: str, feature_shape: tuple[int, ...], state_dim: int, hidden: int) -> nn.Module:
    """`transformer` for features that are slots (2, K, D); `mlp` for any features."""
    if kind == "transformer":
        if len(feature_shape) != 3:
            raise ValueError(
                f"perception.encoder=transformer reads slots (2, K, D), but the features have shape {feature_shape}: "
                "use perception.encoder=mlp"
            )
        return SlotTransformer(feature_shape, state_dim, hidden)
    return FlatEncoder(feature_shape, state_dim, hidden)
