"""Says in words how object discovery failed, without knowing the truth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from perception.scores import see_episodes
from perception.slot_model import SlotModel

EMPTY = 0.02
"""Share of the foreground below which a slot counts as unused."""
TOUCHING = 0.8
"""Half a pair's shared spread, in pixels: two slots that stay this close lie on one object."""


def alarms(model: SlotModel, frames: NDArray[np.uint8]) -> list[str]:
    """The known failures that show on episodes (E, T, H, W, 3): nothing in the foreground, all slots but one dead, one that takes all,
    stripes or a shapeless smear in place of compact objects, an object split in two."""
    sights = see_episodes(model, frames)
    masks = torch.cat([s.decoded.masks for s in sights])  # (B, K, H, W)
    coordinates = torch.cat([s.coordinates for s in sights])
    found = []
    pixels = masks.sum(dim=(2, 3))
    if pixels.sum() < 1.0 * len(masks):
        return ["no foreground: nothing differs from the background"]
    shares = pixels.mean(dim=0) / pixels.mean(dim=0).sum()
    if shares.max() > 0.9:
        found.append("one slot takes all of the foreground")
    elif (shares > EMPTY).sum() == 1:
        found.append("all slots but one are dead")
    offsets = (model.places - coordinates[:, :, None, None, :2]).square().sum(dim=-1)
    spread = (masks * offsets).sum(dim=(2, 3)) / pixels.clamp(min=1.0)  # mean squared distance from the centroid
    height, width = model.config.frame_size
    disc = pixels * (4 / (height * width)) / (2 * np.pi)  # the same for a disc of that area
    present = coordinates[..., 3] > 0.5
    if present.any() and (spread / disc.clamp(min=1e-6))[present].median() > 4:
        found.append("slots are stripes or smears, not compact things")
    for i in range(model.config.slots):
        for j in range(i):
            both = (pixels[:, i] > 0.15 * model.config.object_pixels) & (pixels[:, j] > 0.15 * model.config.object_pixels)
            if both.float().mean() < 0.1:
                continue
            apart = (coordinates[both, i, :2] - coordinates[both, j, :2]).square().sum(dim=1).sqrt()
            size = (spread[both, i] + spread[both, j]).sqrt()
            if (apart < TOUCHING * size * 2).float().mean() > 0.8:
                found.append(f"an object is split between slots {j} and {i}")
    return found
