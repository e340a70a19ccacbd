"""Encoders from timm, in place of the four convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import perception.encoders.torchvision_compat  # noqa: F401  (before timm, which imports torchvision)

HUB = "hub"
"""In place of a file: the weights that timm downloads and caches."""


def make_timm(name: str, weights: str | None, **settings: Any) -> nn.Module:
    """Make a timm model in evaluation mode.

    Args:
        name: As timm knows it.
        weights: A safetensors file, "hub", or None for random ones.
        **settings: For `timm.create_model`.

    Raises:
        ValueError: timm does not know the name, the file does not fit, or the hub cannot be
            reached.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(
            f"backbone=timm:{name} is unknown to timm {timm.__version__}; timm.list_models() "
            "names them"
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=weights == HUB, **settings).eval()
    except (OSError, RuntimeError) as error:  # no network, no such weights
        raise ValueError(
            f"weights={weights}: timm's weights of {name} cannot be had: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if weights not in (None, HUB):
        try:
            model.load_state_dict(load_file(Path(weights)))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"weights={weights} do not fit timm:{name} with {settings}: {reason}"
            ) from error
    return model


class TimmEncoder(nn.Module):
    """Pooled features of a timm model: (B, C, H, W) -> (B, D).

    Batch normalisation keeps its stored statistics: those of a batch would let the frames of one
    row change another's features.

    Args:
        name: As of `make_timm`.
        in_channels: C.
        weights: As of `make_timm`.

    Raises:
        ValueError: As of `make_timm`.
    """

    def __init__(self, name: str, in_channels: int, weights: str | None = None) -> None:
        super().__init__()
        self.model = make_timm(name, weights, in_chans=in_channels, num_classes=0)

    def train(self, mode: bool = True) -> TimmEncoder:
        """Stay in evaluation mode, which fixes statistics; parameters still learn."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) as pooled features (B, D) float32."""
        features: Tensor = self.model(images)
        return features.to(torch.float32)
