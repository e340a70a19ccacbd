"""Says in words how object discovery failed, without knowing the truth.

A slot that stays empty is no failure by itself: a model may have a slot to spare. It is one where
another slot holds several things.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from perception.evaluation.evaluate import argmax_masks, encode_episodes
from perception.slots.model import SlotModel

EMPTY = 0.02
"""Share of the foreground below which a slot counts as unused, unless it is there in SELDOM of the
frames: a thing may be small."""
SELDOM = 0.1
SIZEABLE = 0.15
"""Share of a typical object's pixels from which a mask, or a part of one, counts as a thing."""
SECOND = 0.3
"""Size of a mask's second part beside its largest from which the two count as two things and not as
a thing and a speck."""
LEAK = 0.1
"""Share of a pixel up to which a slot's part in it is leakage: little, but far from the slot's
thing, it would pass for a smear."""
TOUCHING = 0.8
"""Distance of two slots' centroids below which they lie on one object, in twice the root of their
masks' summed spreads: the halves of a square are 0.55 of it apart, two squares that touch 0.87."""
SMEARED = 4.0
"""Mean squared distance from the centroid, in that of a disc of equal area, above which a mask is
no compact thing."""


def diagnose_failures(
    model: SlotModel,
    frames: NDArray[np.uint8],
    actions: NDArray[np.float32] | None = None,
    segmentation: NDArray[np.int64] | None = None,
) -> list[str]:
    """Find the known failures: nothing in the foreground; one slot that takes all, though there are
    several things; slots dead while another holds several things; stripes or a shapeless smear in
    place of compact objects; an object split in two.

    Args:
        model: The slot model.
        frames: (E, T, H, W, 3).
        actions: (E, T, A), what was done in each frame.
        segmentation: (E, T, H, W), true labels where they are known: slots of things that only lie
            within each other, as a nail in a board, are then no split object.

    Returns:
        A line for each kind of failure.
    """
    sights = encode_episodes(model, frames, actions)
    masks = torch.cat([s.decoded.masks for s in sights])  # (B, K, H, W)
    masks = torch.where(masks > LEAK, masks, 0.0)
    coordinates = model.locate(masks)
    pixels = masks.sum(dim=(2, 3))
    if pixels.sum() < 1.0 * len(masks):
        return ["no foreground: nothing differs from the background"]
    found = []
    slots, smallest = masks.shape[1], SIZEABLE * float(model.sizes.median())
    shares = pixels.mean(dim=0) / pixels.mean(dim=0).sum()
    labels = np.concatenate([argmax_masks(s) for s in sights])  # (T * E, H, W)
    parts = parts_apart(labels, slots, smallest)
    crowded = [k for k in range(slots) if shares[k] > EMPTY and parts[k] > 0.5]
    present = coordinates[..., 3] > 0.5
    dead = [k for k in range(slots) if shares[k] < EMPTY and present[:, k].float().mean() < SELDOM]
    if crowded and shares.max() > 0.9:
        found.append("one slot takes all of the foreground")
    elif crowded and dead:
        found.append(
            f"dead slots ({_listed(dead)}) while several things share a slot ({_listed(crowded)})"
        )
    offsets = (model.places - coordinates[:, :, None, None, :2]).square().sum(dim=-1)
    spread = (masks * offsets).sum(dim=(2, 3)) / pixels.clamp(
        min=1.0
    )  # mean squared distance from the centroid
    height, width = model.config.frame_size
    disc = pixels * (4 / (height * width)) / (2 * np.pi)  # the same for a disc of that area
    several = (
        (shares > EMPTY).sum() > 1
    )  # what one slot alone sees is of the foreground's own shape, and a thing may be long
    if several and present.any() and (spread / disc.clamp(min=1e-6))[present].median() > SMEARED:
        found.append("slots are stripes or smears, not compact things")
    things = np.full(slots, 0) if segmentation is None else main_labels(labels, segmentation, slots)
    split = []
    for i in range(slots):
        for j in range(i):
            if things[i] != things[j]:
                continue
            both = (pixels[:, i] > smallest) & (pixels[:, j] > smallest)
            if both.float().mean() < 0.1:
                continue
            apart = (coordinates[both, i, :2] - coordinates[both, j, :2]).square().sum(dim=1).sqrt()
            size = 2 * (spread[both, i] + spread[both, j]).sqrt()
            if (apart < TOUCHING * size).float().mean() > 0.8:
                split.append((j, i))
    if split:
        more = f", and likewise between {len(split) - 1} more pairs" if len(split) > 1 else ""
        found.append(f"an object is split between slots {split[0][0]} and {split[0][1]}{more}")
    return found


ADVICE = {
    "no foreground": "lower model.threshold, or check that something moves",
    "one slot takes all": "raise frames or model.slots",
    "dead slots": "raise frames, or try another seed",
    "slots are stripes": "raise frames or training.steps; raise model.threshold if noisy",
    "an object is split": "lower model.slots; raise model.threshold if the frames are noisy",
}
"""What to try, by how an alarm begins."""


def main_labels(
    labels: NDArray[np.int64], segmentation: NDArray[np.int64], slots: int
) -> NDArray[np.int64]:
    """The true label that most pixels of each slot have, (K,): label maps (T * E, H, W) against (E,
    T, H, W)."""
    truth = segmentation.swapaxes(0, 1).reshape(labels.shape)
    return np.array(
        [np.bincount(truth[labels == k + 1], minlength=1).argmax() for k in range(slots)]
    )


def parts_apart(labels: NDArray[np.int64], slots: int, smallest: float) -> NDArray[np.float64]:
    """For each slot the share of the label maps (B, H, W) in which its mask is of two parts or more
    that do not touch, each of at least `smallest` pixels, among those in which it has any part of
    that size."""
    several, sizeable = np.zeros(slots), np.zeros(slots)
    for image in labels:
        for k in range(slots):
            _, _, stats, _ = cv2.connectedComponentsWithStats((image == k + 1).astype(np.uint8))
            sizes = stats[1:, cv2.CC_STAT_AREA]
            largest = sizes.max(initial=0)
            sizeable[k] += largest >= smallest
            several[k] += (sizes >= max(smallest, SECOND * largest)).sum() > 1
    return several / np.maximum(sizeable, 1)


def _listed(slots: list[int]) -> str:
    return ", ".join(map(str, slots))
