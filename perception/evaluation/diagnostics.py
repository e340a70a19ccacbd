"""Names the known failures of object discovery without knowing the truth.

An empty slot alone is no failure: a model may have a slot to spare. It is one if another slot holds
several objects.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.evaluation.evaluate import argmax_masks, encode_episodes
from perception.images import as_images
from perception.slots.model import SEEN, SlotModel, SlotOutput

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
    pixels, coordinates, spread = _shapes(model, masks)
    if pixels.sum() < 1.0 * len(masks):
        return ["no foreground: nothing differs from the background"]
    found = []
    slots, smallest = masks.shape[1], _smallest(model)
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
    height, width = model.config.frame_size
    disc = pixels * (4 / (height * width)) / (2 * np.pi)  # the same for a disc of that area
    # A single slot has the foreground's shape, and an object may be long.
    smeared = used.sum() > 1 and present.any()
    if smeared and (spread / disc.clamp(min=1e-6))[present].median() > SMEAR_SPREAD:
        found.append("slots are stripes or smears, not compact things")
    owners = np.zeros(slots) if segmentation is None else main_labels(labels, segmentation, slots)
    split, apart = [], _relative_distances(coordinates, spread)
    for i in range(slots):
        for j in range(i):
            both = (pixels[:, i] > smallest) & (pixels[:, j] > smallest)
            near = (apart[both, i, j] < SPLIT_DISTANCE).float()
            if owners[i] == owners[j] and both.float().mean() >= 0.1 and near.mean() > 0.8:
                split.append((j, i))
    if split:
        more = f", and likewise between {len(split) - 1} more pairs" if len(split) > 1 else ""
        found.append(f"an object is split between slots {split[0][0]} and {split[0][1]}{more}")
    return found


@torch.no_grad()
def frame_measures(
    model: SlotModel,
    frames: NDArray[np.uint8],
    output: SlotOutput,
    before: SlotOutput | None,
) -> dict[str, NDArray[np.float32]]:
    """Measure how far slots are to be trusted in single frames, without labels.

    Args:
        model: The slot model.
        frames: (B, H, W, 3).
        output: Their slots.
        before: The slots of the frames before; None where these are the first ones.

    Returns:
        `presence`, (B, K). Where a slot is present, else 0: `jump`, how far its centroid moved
        since the frame before, in sides of the frame, (B, K); `error`, the mean absolute difference
        of the reconstruction under its mask, of 1, (B, K). `overlap`, (B, K, K): 1 for two slots of
        an object's size whose centroids are one place, 0 from where they lie on two objects; above
        the diagonal alone.
    """
    masks, presence = output.decoded.masks, output.coordinates[..., 3]
    there = (presence > SEEN).float()
    images = model.view(as_images(torch.as_tensor(frames, device=masks.device))).images
    differences = (images - output.decoded.image).abs().mean(dim=1)  # (B, H, W)
    jump = torch.zeros_like(presence)
    if before is not None:
        moved = (output.coordinates - before.coordinates)[..., :2].norm(dim=-1) / 2
        jump = moved * there * (before.coordinates[..., 3] > SEEN)
    pixels, coordinates, spread = _shapes(model, masks)
    sizeable = (pixels > _smallest(model)).float()
    near = (1 - _relative_distances(coordinates, spread) / SPLIT_DISTANCE).clamp(min=0)
    found = {
        "presence": presence,
        "jump": jump,
        "error": torch.einsum("bkhw,bhw->bk", masks, differences)
        / masks.sum(dim=(2, 3)).clamp(min=1.0)
        * there,
        "overlap": (near * sizeable[:, :, None] * sizeable[:, None]).triu(diagonal=1),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def _smallest(model: SlotModel) -> float:
    """Pixels from which a mask counts as an object."""
    return MIN_SIZE * float(model.sizes.median())


def _shapes(model: SlotModel, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (B, K), coordinates (B, K, 4) and spread (B, K) of masks (B, K, H, W) but for leakage.

    The spread is the mean squared distance from the centroid.
    """
    masks = torch.where(masks > LEAKAGE, masks, 0.0)
    coordinates, pixels = model.locate(masks), masks.sum(dim=(2, 3))
    offsets = (model.places - coordinates[:, :, None, None, :2]).square().sum(dim=-1)
    return pixels, coordinates, (masks * offsets).sum(dim=(2, 3)) / pixels.clamp(min=1.0)


def _relative_distances(coordinates: Tensor, spread: Tensor) -> Tensor:
    """Distances (B, K, K) of slots' centroids, in twice the root of their summed spreads."""
    centroids = coordinates[..., :2]
    apart = (centroids[:, :, None] - centroids[:, None]).norm(dim=-1)
    size = 2 * (spread[:, :, None] + spread[:, None]).sqrt()
    return apart / size.clamp(min=1e-6)


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
