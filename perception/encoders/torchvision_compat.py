"""Import torchvision even where its native operators do not load. Import this before timm.

A torchvision built for CUDA cannot load its library with a CPU-only torch, and then fails at import
while it registers shape rules for missing operators ("operator torchvision::nms does not exist").
Nothing here calls these operators, so their schemas are enough. Where the native ones load, this
does nothing.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

library: torch.library.Library | None = None
"""Kept for the life of the process: its schemas vanish with it. None where the native operators
load."""

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # the failed import left halves behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    importlib.import_module("torchvision")
