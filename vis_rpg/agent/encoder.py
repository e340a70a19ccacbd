"""The encoder f: features of an observation to the latent state s."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vis_rpg.agent.networks import ELU, Linear, mlp


class FlatEncoder(nn.Module):
    """The paper's f: an MLP over flattened features.

    Args:
        feature_shape: Shape of the features of one observation.
        state_dim: S.
        hidden: Width of hidden layers.
    """

    def __init__(self, feature_shape: tuple[int, ...], state_dim: int, hidden: int) -> None:
        super().__init__()
        self.dims = len(feature_shape)
        self.net = mlp(math.prod(feature_shape), state_dim, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Encode features: (..., *feature_shape) -> (..., S)."""
        return self.net(features.flatten(-self.dims))


class SlotTransformer(nn.Module):
    """One attention layer over the slots of both frames, read by a read-out token.

    Slots keep their order, so each slot's token holds a learned embedding of its frame and index.
    Only the read-out token attends; its query does not depend on the input, so query times keys is
    one linear map per head. Values are wide enough to carry every object's position.

    Args:
        feature_shape: (2, K, D).
        state_dim: S.
        hidden: Width of the values, a multiple of HEADS.
    """

    WIDTH, HEADS = 64, 8

    def __init__(self, feature_shape: tuple[int, ...], state_dim: int, hidden: int) -> None:
        super().__init__()
        frames, slots, inputs = feature_shape
        self.token = Linear(inputs, self.WIDTH)
        self.place = nn.Parameter(0.1 * torch.randn(frames * slots, self.WIDTH))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.query_key = Linear(self.WIDTH, self.HEADS)
        self.value = Linear(self.WIDTH, hidden)
        self.out = nn.Sequential(ELU(), Linear(hidden, hidden), ELU(), Linear(hidden, state_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Encode slots: (..., 2, K, D) -> (..., S)."""
        x = self.norm(self.token(features.flatten(-3, -2)) + self.place)  # (..., 2K, W)
        attention = self.query_key(x).softmax(-2).unsqueeze(-1)  # (..., 2K, heads, 1)
        values = self.value(x).unflatten(-1, (self.HEADS, -1))  # (..., 2K, heads, hidden / heads)
        return self.out((attention * values).sum(-3).flatten(-2))


def make_encoder(
    kind: str, feature_shape: tuple[int, ...], state_dim: int, hidden: int
) -> nn.Module:
    """Make an encoder.

    Args:
        kind: "transformer" for slots (2, K, D), "mlp" for any features.
        feature_shape: Shape of the features of one observation.
        state_dim: S.
        hidden: Width of hidden layers.

    Raises:
        ValueError: A transformer is asked for features that are not slots, or for a width that is
            no multiple of its heads.
    """
    if kind == "transformer":
        if len(feature_shape) != 3:
            raise ValueError(
                "perception.encoder=transformer reads slots (2, K, D), but the features have "
                f"shape {feature_shape}: use perception.encoder=mlp"
            )
        if hidden % SlotTransformer.HEADS:
            raise ValueError(
                f"agent.hidden_dim={hidden}: perception.encoder=transformer needs a multiple "
                f"of {SlotTransformer.HEADS}"
            )
        return SlotTransformer(feature_shape, state_dim, hidden)
    return FlatEncoder(feature_shape, state_dim, hidden)
