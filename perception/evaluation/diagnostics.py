"""Names the known failures of object discovery without knowing the truth.

An empty slot alone is no failure: a model may have a slot to spare. It is one if another slot holds
several objects.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from perception.evaluation.evaluate import argmax_masks, encode_episodes
from perception.slots.model import SEEN, SlotModel

UNUSED_SHARE = 0.02
"""Share of the foreground below which a slot counts as unused, unless it is present in
RARE_PRESENCE of the frames: an object may be small."""
RARE_PRESENCE = 0.1
MIN_SIZE = 0.15
"""Share of a typical object's pixels from which a mask, or a part of one, counts as an object."""
SECOND_PART = 0.3
"""Size of a mask's second part, relative to its largest, from which the two are two objects and not
an object and a speck."""
LEAKAGE = 0.1
"""Mask value up to which a pixel is leakage: little, but far from the slot's object, it would pass
for a smear."""
SPLIT_DISTANCE = 0.8
"""Distance of two slots' centroids below which they lie on one object, in twice the root of their
masks' summed spreads: 0.55 for the halves of a square, 0.87 for two squares that touch."""
SMEAR_SPREAD = 4.0
"""Mean squared distance from the centroid, relative to a disc of equal area, above which a mask is
not compact."""
ADVICE = {
    "no foreground": "lower model.threshold, or check that something moves",
    "one slot takes all": "raise frames or model.slots",
    "dead slots": "raise frames, or try another seed",
    "slots are stripes": "raise frames or training.steps; raise model.threshold if noisy",
    "an object is split": "lower model.slots; raise model.threshold if the frames are noisy",
}
"""What to try, by how a failure's line begins."""


def diagnose_failures(
    model: SlotModel, frames: NDArray[np.uint8], segmentation: NDArray[np.int64] | None = None
) -> list[str]:
    """Find the known failures.

    They are: nothing in the foreground; one slot that takes all, though there are several objects;
    dead slots while another holds several objects; stripes or a shapeless smear in place of compact
    objects; an object split in two.

    Args:
        model: The slot model.
        frames: (E, T, H, W, 3).
        segmentation: (E, T, H, W), true labels if they are known: slots of objects within each
            other, as a nail in a board, are then no split object.

    Returns:
        A line for each kind of failure.
    """
    outputs = encode_episodes(model, frames)
    masks = torch.cat([output.decoded.masks for output in outputs])  # (B, K, H, W)
    masks = torch.where(masks > LEAKAGE, masks, 0.0)
    coordinates = model.locate(masks)
    pixels = masks.sum(dim=(2, 3))
    if pixels.sum() < 1.0 * len(masks):
        return ["no foreground: nothing differs from the background"]
    found = []
    slots, smallest = masks.shape[1], MIN_SIZE * float(model.sizes.median())
    shares = pixels.mean(dim=0) / pixels.mean(dim=0).sum()
    used, present = shares > UNUSED_SHARE, coordinates[..., 3] > SEEN
    labels = np.concatenate([argmax_masks(output) for output in outputs])  # (T * E, H, W)
    several = several_parts(labels, slots, smallest)
    crowded = [k for k in range(slots) if used[k] and several[k] > 0.5]
    rare = (shares < UNUSED_SHARE) & (present.float().mean(dim=0) < RARE_PRESENCE)
    dead = rare.nonzero().flatten().tolist()
    if crowded and shares.max() > 0.9:
        found.append("one slot takes all of the foreground")
    elif crowded and dead:
        unused, shared = (", ".join(map(str, some)) for some in (dead, crowded))
        found.append(f"dead slots ({unused}) while several things share a slot ({shared})")
    offsets = (model.places - coordinates[:, :, None, None, :2]).square().sum(dim=-1)
    spread = (masks * offsets).sum(dim=(2, 3)) / pixels.clamp(min=1.0)  # mean squared distance
    height, width = model.config.frame_size
    disc = pixels * (4 / (height * width)) / (2 * np.pi)  # the same for a disc of that area
    # A single slot has the foreground's shape, and an object may be long.
    smeared = used.sum() > 1 and present.any()
    if smeared and (spread / disc.clamp(min=1e-6))[present].median() > SMEAR_SPREAD:
        found.append("slots are stripes or smears, not compact things")
    owners = np.zeros(slots) if segmentation is None else main_labels(labels, segmentation, slots)
    split = []
    for i in range(slots):
        for j in range(i):
            both = (pixels[:, i] > smallest) & (pixels[:, j] > smallest)
            apart = (coordinates[both, i, :2] - coordinates[both, j, :2]).square().sum(dim=1).sqrt()
            size = 2 * (spread[both, i] + spread[both, j]).sqrt()
            near = (apart < SPLIT_DISTANCE * size).float()
            if owners[i] == owners[j] and both.float().mean() >= 0.1 and near.mean() > 0.8:
                split.append((j, i))
    if split:
        more = f", and likewise between {len(split) - 1} more pairs" if len(split) > 1 else ""
        found.append(f"an object is split between slots {split[0][0]} and {split[0][1]}{more}")
    return found


def main_labels(
    labels: NDArray[np.int64], segmentation: NDArray[np.int64], slots: int
) -> NDArray[np.int64]:
    """The true label of most pixels of each slot (K,).

    Args:
        labels: (T * E, H, W) predicted labels.
        segmentation: (E, T, H, W) true labels.
        slots: K.
    """
    truth = segmentation.swapaxes(0, 1).reshape(labels.shape)
    return np.array(
        [np.bincount(truth[labels == k + 1], minlength=1).argmax() for k in range(slots)]
    )


def several_parts(labels: NDArray[np.int64], slots: int, smallest: float) -> NDArray[np.float64]:
    """Share of the frames with a part of a slot's mask in which it has two or more apart.

    Args:
        labels: (B, H, W) predicted labels.
        slots: K.
        smallest: Pixels from which a part counts.

    Returns:
        (K,).
    """
    several, sizeable = np.zeros(slots), np.zeros(slots)
    for image in labels:
        for k in range(slots):
            _, _, stats, _ = cv2.connectedComponentsWithStats((image == k + 1).astype(np.uint8))
            sizes = stats[1:, cv2.CC_STAT_AREA]
            largest = sizes.max(initial=0)
            sizeable[k] += largest >= smallest
            several[k] += (sizes >= max(smallest, SECOND_PART * largest)).sum() > 1
    return several / np.maximum(sizeable, 1)
