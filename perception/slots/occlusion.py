"""Objects behind others: what another object hides is still where it was.

B frames, K objects, H and W of the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_EXPLAINED = 1.0
"""Pixels that others must have covered or uncovered before an object is taken to be at rest."""
MAX_UNEXPLAINED = 0.25
"""Other changes of its mask that an object at rest may show, as a share of the explained ones."""


def remember_hidden(masks: Tensor, before: Tensor, kept: Tensor, parts: Tensor) -> Tensor:
    """Complete the masks of objects that others hide, from what was seen of them before.

    A pixel that an object loses where another is now, or gains where another was a step earlier,
    is explained by that other one. An object whose mask changes almost nowhere else is at rest: it
    keeps its mask, and gains what was uncovered. Any other object has moved: its mask is what is
    seen of it now. What reappears where it was hidden explains nothing that is lost there: it lies
    behind, so that a hand which moves before a door is not taken to be hidden by it.

    Args:
        masks: (B, K, H, W) in [0, 1], as seen.
        before: Those of the step before, as seen.
        kept: What this function returned a step before; at an episode's first step `masks`.
        parts: (K,) long, equal for the parts of one body, which do not hide each other.

    Returns:
        (B, K, H, W), the masks whole.
    """
    same = (parts.unsqueeze(0) == parts.unsqueeze(1)).to(masks)

    def others(of: Tensor) -> Tensor:
        """Which pixels of (B, K, H, W) belong to other bodies."""
        return of.sum(dim=1, keepdim=True) - torch.einsum("kj,bjhw->bkhw", same, of) > 0.5

    def around(pixels: Tensor) -> Tensor:
        return F.max_pool2d(pixels.to(masks), 3, stride=1, padding=1) > 0

    uncovered = others(before)
    gained, lost = (masks - kept).clamp(min=0), (kept - masks).clamp(min=0)
    reappeared = others((kept - before > 0.5).to(masks) * masks)
    explained = gained * around(uncovered) + lost * (around(others(masks)) & ~reappeared)
    amount = explained.sum(dim=(2, 3))
    other = (gained + lost - explained).sum(dim=(2, 3))
    at_rest = (amount > MIN_EXPLAINED) & (other < MAX_UNEXPLAINED * amount)
    whole = torch.where(uncovered, torch.maximum(kept, masks), kept)
    return torch.where(at_rest[..., None, None], whole, masks)
