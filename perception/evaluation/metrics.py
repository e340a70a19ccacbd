"""How well predicted masks match true ones, how steadily slots follow their objects, and how well
they tell where these are.

B images (or episodes), N true things, K slots. Segmentations are integer maps: a true one has 0 for
background and labels from 1 on, a predicted one 0 for background and 1 .. K for slots. What is said
of masks is read off their contingency tables alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]

LOST = 0.1
"""IoU up to which a slot that was assigned to a thing does not count as following it."""
TINY = 8
"""Pixels below which the centre of what is left in sight of an object says little of where it is.
"""
MOVED = 1.0
"""Pixels by which an object has to move for its position to be worth predicting."""


def contingency(true: Labels, predicted: Labels, things: int, slots: int) -> NDArray[np.int64]:
    """How many pixels carry each pair of labels: (B, ...), (B, ...) -> (B, things + 1, slots + 1),
    labels from 0 on."""
    rows, columns = things + 1, slots + 1
    if true.max(initial=0) >= rows or predicted.max(initial=0) >= columns:
        raise ValueError(
            f"labels up to {true.max()} and {predicted.max()}, but {things} things and {slots} "
            "slots"
        )
    cells = (true.astype(np.int64) * columns + predicted).reshape(len(true), -1) + np.arange(
        len(true)
    )[:, None] * (rows * columns)
    return np.bincount(cells.ravel(), minlength=len(true) * rows * columns).reshape(
        -1, rows, columns
    )


def adjusted_rand_index(table: NDArray[np.integer]) -> Floats:
    """Adjusted Rand index (Hubert and Arabie 1985) of contingency tables (..., L, P) -> (...).

    1 where both labelings are one single cluster; NaN where there are no points. The foreground's
    alone (FG-ARI) comes from the rows of the true foreground labels, video FG-ARI from the sum of
    an episode's tables.
    """
    counts = table.astype(np.float64)
    points = counts.sum(axis=(-2, -1))
    pairs = _pairs(counts).sum(axis=(-2, -1))
    true_pairs, predicted_pairs = (
        _pairs(counts.sum(axis=-1)).sum(axis=-1),
        _pairs(counts.sum(axis=-2)).sum(axis=-1),
    )
    expected = true_pairs * predicted_pairs / np.maximum(_pairs(points), 1)
    most = (true_pairs + predicted_pairs) / 2
    alike = most == expected
    score = np.where(alike, 1.0, (pairs - expected) / np.where(alike, 1.0, most - expected))
    return np.where(points > 0, score, np.nan)


def _pairs(counts: Floats) -> Floats:
    return counts * (counts - 1) / 2


def overlaps(table: NDArray[np.integer], things: int) -> Floats:
    """Intersection over union of the true labels 1 .. things with each slot, from contingency
    tables (B, L, K + 1) -> (B, things, K).

    A thing that is out of sight has NaN in its row.
    """
    both = table[:, 1 : things + 1, 1:].astype(np.float64)
    sizes, covered = (
        table[:, 1 : things + 1].sum(axis=2)[:, :, None],
        table[:, :, 1:].sum(axis=1)[:, None],
    )
    iou = both / np.maximum(sizes + covered - both, 1)
    return np.where(sizes > 0, iou, np.nan)


def best_overlaps(iou: Floats) -> Floats:
    """IoU of each thing with the slot that fits it best, however often a slot is taken (mBO is
    their mean): (B, N, K) -> (B, N)."""
    return iou.max(axis=2)


def matched_overlaps(iou: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The best one-to-one matching of things and slots in each image (Hungarian; mIoU is the mean):
    (B, N, K) -> IoU and slot (B, N).

    A thing in sight without a slot of its own has IoU 0, one out of sight NaN. The slot is -1 where
    the thing is lost or out of sight.
    """
    scores, slots = np.where(np.isnan(iou[:, :, 0]), np.nan, 0.0), np.full(iou.shape[:2], -1)
    for i, table in enumerate(iou):
        seen = np.flatnonzero(~np.isnan(table[:, 0]))
        rows, columns = linear_sum_assignment(table[seen], maximize=True)
        scores[i, seen[rows]], slots[i, seen[rows]] = table[seen[rows], columns], columns
    return scores, np.where(np.nan_to_num(scores) > LOST, slots, -1)


def switch_rate(slots: NDArray[np.integer]) -> float:
    """Share of consecutive frames, a thing being matched in both, in which its slot changes: slots
    (E, T, N) as of `matched_overlaps`.

    NaN where nothing is matched in two consecutive frames.
    """
    before, now = slots[:, :-1], slots[:, 1:]
    followed = (before >= 0) & (now >= 0)
    return float((before != now)[followed].mean()) if followed.any() else np.nan


def match_slots(iou: Floats) -> NDArray[np.int64]:
    """For each thing the slot that covers it best over all images, one slot a thing (Hungarian):
    (B, N, K) -> (N,).

    -1 for a thing that is never in sight, or for which no slot is left. A slot that swaps things
    between images covers none of them well.
    """
    slots = np.full(iou.shape[1], -1)
    seen = np.flatnonzero(~np.isnan(iou[:, :, 0]).all(axis=0))
    rows, columns = linear_sum_assignment(np.nanmean(iou[:, seen], axis=0), maximize=True)
    slots[seen[rows]] = columns
    return slots


def mask_centres(true: Labels, things: int) -> Floats:
    """Centre (x, y) in pixels of each true mask: (..., H, W) -> (..., things, 2); NaN where fewer
    than TINY pixels are in sight."""
    height, width = true.shape[-2:]
    masks = [true == n for n in range(1, things + 1)]
    sizes = np.stack([mask.sum(axis=(-2, -1)) for mask in masks], axis=-1)
    x = np.stack([mask.sum(axis=-2) @ np.arange(width) for mask in masks], axis=-1)
    y = np.stack([mask.sum(axis=-1) @ np.arange(height) for mask in masks], axis=-1)
    return np.where(
        sizes[..., None] >= TINY,
        np.stack([x, y], axis=-1) / np.maximum(sizes, 1)[..., None],
        np.nan,
    )


def position_r2(centres: Floats, centroids: Floats) -> Floats:
    """R² of each object's position under a linear map of its slot's centroid, fitted on the
    episodes of even index and tested on the others: centres (E, T, N, 2) in pixels, NaN where out
    of sight, centroids (E, T, N, 2) in any unit -> (N,).

    NaN for an object that moves by no more than MOVED pixels in either of the two halves: there is
    nothing to fit or to explain.
    """
    return np.array(
        [_tested_r2(centres[:, :, n], centroids[:, :, n]) for n in range(centres.shape[2])]
    )


def _tested_r2(centres: Floats, centroids: Floats) -> float:
    seen = np.isfinite(centres[..., 0])
    fit, test = (
        (centroids[half][seen[half]], centres[half][seen[half]])
        for half in (np.s_[::2], np.s_[1::2])
    )
    if any(len(y) == 0 or np.ptp(y, axis=0).max() <= MOVED for _, y in (fit, test)):
        return np.nan
    weights = np.linalg.lstsq(_augment(fit[0]), fit[1], rcond=None)[0]
    errors = test[1] - _augment(test[0]) @ weights
    return float(1 - np.square(errors).sum() / np.square(test[1] - test[1].mean(axis=0)).sum())


def _augment(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
