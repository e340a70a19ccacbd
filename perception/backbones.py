"""timm models as encoders, in place of the four convolutions."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import perception.torchvision_compat  # noqa: F401  (before timm, which imports torchvision)


class TimmEncoder(nn.Module):
    """Pooled features of a timm model: (B, C, H, W) -> (B, D).

    name: a timm model; weights: a safetensors file of its parameters with C input channels, or None for random ones.
    Batch normalisation keeps its stored statistics: those of a batch would let the frames of one row change another's features.
    ValueError where timm does not know the name or the file does not fit.
    """

    def __init__(self, name: str, in_channels: int, weights: str | None = None) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise ValueError(f"backbone=timm:{name} is unknown to timm {timm.__version__}; timm.list_models() names them")
        self.model = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0).eval()
        if weights is not None:
            try:
                self.model.load_state_dict(load_file(Path(weights)))
            except (OSError, SafetensorError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"weights={weights} do not fit timm:{name} with {in_channels} channels: {reason}") from error

    def train(self, mode: bool = True) -> TimmEncoder:
        """Stays in evaluation mode, which fixes statistics and nothing else; parameters are trained all the same."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features.to(torch.float32)
