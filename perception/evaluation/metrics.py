"""Metrics of predicted masks, of identity over time, and of positions.

B images (or episodes), N true objects, K slots. Segmentations are integer maps: a true one has 0
for background and labels from 1 on, a predicted one 0 for background and 1 .. K for slots. Metrics
of masks are read off contingency tables alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]

MIN_IOU = 0.1
"""IoU up to which a slot that was assigned to a thing does not count as following it."""
MIN_PIXELS = 8
"""Pixels below which the centre of what is left in sight of an object says little of where it is.
"""
MIN_MOTION = 1.0
"""Pixels by which an object has to move for its position to be worth predicting."""


def contingency(true: Labels, predicted: Labels, things: int, slots: int) -> NDArray[np.int64]:
    """Count the pixels of each pair of labels.

    Args:
        true: (B, ...) from 0 to `things`.
        predicted: (B, ...) from 0 to `slots`.
        things: Largest true label.
        slots: K.

    Returns:
        (B, things + 1, slots + 1).

    Raises:
        ValueError: If a label is larger.
    """
    rows, columns = things + 1, slots + 1
    if true.max(initial=0) >= rows or predicted.max(initial=0) >= columns:
        raise ValueError(
            f"labels up to {true.max()} and {predicted.max()}, but {things} things and {slots} "
            "slots"
        )
    first = np.arange(len(true))[:, None] * (rows * columns)
    cells = (true.astype(np.int64) * columns + predicted).reshape(len(true), -1) + first
    counts = np.bincount(cells.ravel(), minlength=len(true) * rows * columns)
    return counts.reshape(-1, rows, columns)


def adjusted_rand_index(table: NDArray[np.integer]) -> Floats:
    """Adjusted Rand index (Hubert and Arabie 1985).

    FG-ARI comes from the rows of the true foreground labels, video FG-ARI from the sum of an
    episode's tables.

    Args:
        table: (..., L, P) contingency tables.

    Returns:
        (...), 1 where both labelings are one single cluster, NaN where there are no points.
    """
    counts = table.astype(np.float64)
    points = counts.sum(axis=(-2, -1))
    pairs = _pairs(counts).sum(axis=(-2, -1))
    true_pairs = _pairs(counts.sum(axis=-1)).sum(axis=-1)
    predicted_pairs = _pairs(counts.sum(axis=-2)).sum(axis=-1)
    expected = true_pairs * predicted_pairs / np.maximum(_pairs(points), 1)
    most = (true_pairs + predicted_pairs) / 2
    alike = most == expected
    score = np.where(alike, 1.0, (pairs - expected) / np.where(alike, 1.0, most - expected))
    return np.where(points > 0, score, np.nan)


def _pairs(counts: Floats) -> Floats:
    return counts * (counts - 1) / 2


def overlaps(table: NDArray[np.integer], things: int) -> Floats:
    """Intersection over union of the true labels 1 .. things with each slot.

    Args:
        table: (B, L, K + 1) contingency tables.
        things: N.

    Returns:
        (B, N, K), NaN in the rows of objects out of sight.
    """
    both = table[:, 1 : things + 1, 1:].astype(np.float64)
    sizes = table[:, 1 : things + 1].sum(axis=2)[:, :, None]
    union = sizes + table[:, :, 1:].sum(axis=1)[:, None] - both
    return np.where(sizes > 0, both / np.maximum(union, 1), np.nan)


def best_overlaps(iou: Floats) -> Floats:
    """Best IoU (B, N) of each object, from IoU (B, N, K); mBO is their mean.

    A slot may be taken several times.
    """
    return iou.max(axis=2)


def matched_overlaps(iou: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Match objects and slots one to one in each image (Hungarian; mIoU is the mean).

    Args:
        iou: (B, N, K).

    Returns:
        IoU (B, N), 0 for an object in sight without a slot, NaN for one out of sight; and the slot
        (B, N), -1 where the object is lost or out of sight.
    """
    scores, slots = np.where(np.isnan(iou[:, :, 0]), np.nan, 0.0), np.full(iou.shape[:2], -1)
    for i, table in enumerate(iou):
        seen = np.flatnonzero(~np.isnan(table[:, 0]))
        rows, columns = linear_sum_assignment(table[seen], maximize=True)
        scores[i, seen[rows]], slots[i, seen[rows]] = table[seen[rows], columns], columns
    return scores, np.where(np.nan_to_num(scores) > MIN_IOU, slots, -1)


def switch_rate(slots: NDArray[np.integer]) -> float:
    """Share of steps, of objects matched before and after, in which the slot changes.

    Args:
        slots: (E, T, N) as of `matched_overlaps`.

    Returns:
        The share, NaN if there is no such step.
    """
    before, now = slots[:, :-1], slots[:, 1:]
    followed = (before >= 0) & (now >= 0)
    return float((before != now)[followed].mean()) if followed.any() else np.nan


def match_slots(iou: Floats) -> NDArray[np.int64]:
    """Match each object with the slot that covers it best over all images, one to one (Hungarian).

    A slot that swaps objects between images covers none of them well.

    Args:
        iou: (B, N, K).

    Returns:
        (N,), -1 for an object that is never in sight, or for which no slot is left.
    """
    slots = np.full(iou.shape[1], -1)
    seen = np.flatnonzero(~np.isnan(iou[:, :, 0]).all(axis=0))
    rows, columns = linear_sum_assignment(np.nanmean(iou[:, seen], axis=0), maximize=True)
    slots[seen[rows]] = columns
    return slots


def mask_centres(true: Labels, things: int) -> Floats:
    """Centre (x, y) in pixels of each true mask.

    Args:
        true: (..., H, W).
        things: N.

    Returns:
        (..., N, 2), NaN where fewer than MIN_PIXELS pixels are in sight.
    """
    height, width = true.shape[-2:]
    masks = np.stack([true == n for n in range(1, things + 1)], axis=-3)
    sizes = masks.sum(axis=(-2, -1))
    x, y = masks.sum(axis=-2) @ np.arange(width), masks.sum(axis=-1) @ np.arange(height)
    centres = np.stack([x, y], axis=-1) / np.maximum(sizes, 1)[..., None]
    return np.where(sizes[..., None] >= MIN_PIXELS, centres, np.nan)


def position_r2(centres: Floats, centroids: Floats) -> Floats:
    """R² of each object's position under a linear map of its slot's centroid.

    The map is fitted on episodes of even index and tested on the others.

    Args:
        centres: (E, T, N, 2) in pixels, NaN where out of sight.
        centroids: (E, T, N, 2) in any unit.

    Returns:
        (N,), NaN for an object that moves by no more than MIN_MOTION pixels in either half: there
        is nothing to fit or to explain.
    """
    return np.array(
        [_tested_r2(centres[:, :, n], centroids[:, :, n]) for n in range(centres.shape[2])]
    )


def _tested_r2(centres: Floats, centroids: Floats) -> float:
    seen = np.isfinite(centres[..., 0])
    inputs = np.concatenate([centroids, np.ones_like(centroids[..., :1])], axis=-1)
    (x, y), (test_x, test_y) = (
        (inputs[half][seen[half]], centres[half][seen[half]]) for half in (np.s_[::2], np.s_[1::2])
    )
    if any(len(of) == 0 or np.ptp(of, axis=0).max() <= MIN_MOTION for of in (y, test_y)):
        return np.nan
    errors = test_y - test_x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - np.square(errors).sum() / np.square(test_y - test_y.mean(axis=0)).sum())
