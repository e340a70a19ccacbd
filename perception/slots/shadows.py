"""Shadows: pixels that show the background darkened, as bright as they may be, are background.

A dark thing is like a shadow where it lies before what it is a darker shade of, grey before grey.
So shadows are looked for only where the background is seen darkened in two colours at least, which
no thing is a darker shade of both. B frames, V backgrounds, H and W of the frame.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.images import as_images

TINT = 1.5 / 255
"""Distance of a colour from the nearest shade of its background's, in the RGB cube of side 1, above
which it is another: what rounding of both leaves."""
BLACK = 0.15
"""Length of a background's colour below which its shades cannot be told."""
HUE, SEEN = 0.06, 100
"""Side of the bins in which directions of background colours are counted, and the observations of
foreground from which such a bin counts."""
PROBED = 1000
"""About how many frames are looked at."""


def shades(images: Tensor, backgrounds: Tensor) -> Tensor:
    """Find pixels whose colour is a darker shade of a background's.

    Args:
        images: (B, 3, H, W) in [0, 1].
        backgrounds: (V, 3, H, W) in [0, 1].

    Returns:
        (B, H, W) share of its brightness that the background has kept, of several the one that has
        kept most; 1 where the colour is a darker shade of none.
    """
    kept = torch.zeros_like(images[:, 0])
    for empty in backgrounds:
        squared = empty.square().sum(0)
        shade = (images * empty).sum(1) / squared.clamp(min=1e-6)
        tint = (images - shade.unsqueeze(1) * empty).square().sum(1).sqrt()
        dark = (tint < TINT) & (shade < 1) & (squared > BLACK**2)
        kept = torch.maximum(kept, torch.where(dark, shade, 0))
    return torch.where(kept > 0, kept, 1)


@torch.no_grad()
def darkest_shadow(
    clips: NDArray[np.uint8], background: NDArray[np.uint8], threshold: float, least_share: float
) -> float:
    """Measure how dark shadows are.

    Args:
        clips: (E, T, H, W, 3) of a camera that is exact.
        background: (H, W, 3).
        threshold: Distance from the background from which a pixel is foreground.
        least_share: Share of what is seen before a colour of the background that must be this
            colour darkened, for two such colours, if there are shadows.

    Returns:
        Share of its brightness that a background keeps at least, 1 where there are no shadows.
    """
    frames = clips.reshape(-1, *clips.shape[2:])
    images = as_images(torch.from_numpy(frames[:: max(1, len(frames) // PROBED)]))
    empty = as_images(torch.from_numpy(background)[None])
    foreground = (images - empty).square().sum(1).sqrt() > threshold
    kept = shades(images, empty)
    dark = foreground & (kept < 1)
    direction = empty[0] / empty[0].norm(dim=0).clamp(min=BLACK)
    bins = (direction.flatten(1).T / HUE).round()
    _, index = bins.unique(dim=0, return_inverse=True)
    seen, shaded = (torch.bincount(index, of.sum(0).flatten()).float() for of in (foreground, dark))
    shares = (shaded / seen.clamp(min=1))[seen >= SEEN]
    if (shares >= least_share).sum() < 2:
        return 1.0
    return float(np.quantile(kept[dark].numpy(), 0.01)) - TINT
