"""How well masks match true objects, and how well slots tell where they are.

True segmentations are integer maps (..., H, W) with 0 for background; predicted ones are integer maps of any labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Labels = NDArray[np.integer]


def adjusted_rand_index(true: Labels, predicted: Labels) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985) of two labelings of the same points; 1 where both are one single cluster."""
    table = contingency(true, predicted).astype(np.float64)
    total = table.sum()
    if total < 2:
        return 1.0
    pairs = (table * (table - 1)).sum() / 2
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    true_pairs, predicted_pairs = (rows * (rows - 1)).sum() / 2, (columns * (columns - 1)).sum() / 2
    expected = true_pairs * predicted_pairs / (total * (total - 1) / 2)
    most = (true_pairs + predicted_pairs) / 2
    return 1.0 if most == expected else float((pairs - expected) / (most - expected))


def contingency(true: Labels, predicted: Labels) -> NDArray[np.int64]:
    """How many points carry each pair of labels: (true labels, predicted labels)."""
    _, rows = np.unique(true.ravel(), return_inverse=True)
    _, columns = np.unique(predicted.ravel(), return_inverse=True)
    if rows.size == 0:
        return np.zeros((0, 0), dtype=np.int64)
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def mean_ari(true: Labels, predicted: Labels, with_background: bool) -> float:
    """Mean over images (B, H, W) of the ARI, over all pixels or over those of true objects only (FG-ARI)."""
    scores = []
    for truth, guess in zip(true, predicted, strict=True):
        chosen = np.ones_like(truth, dtype=bool) if with_background else truth > 0
        if chosen.any():
            scores.append(adjusted_rand_index(truth[chosen], guess[chosen]))
    return float(np.mean(scores))


def overlaps(true: Labels, masks: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """Intersection over union of each true object (labels 1 .. objects) with each mask: (H, W), (K, H, W) -> (objects, K).

    An object that is out of sight has NaN in its row.
    """
    truth = true[None] == np.arange(1, objects + 1)[:, None, None]
    flat_truth, flat_masks = truth.reshape(objects, -1).astype(np.float64), masks.reshape(len(masks), -1).astype(np.float64)
    both = flat_truth @ flat_masks.T
    either = flat_truth.sum(axis=1)[:, None] + flat_masks.sum(axis=1)[None] - both
    iou = both / np.maximum(either, 1)
    iou[flat_truth.sum(axis=1) == 0] = np.nan
    return iou


def best_overlaps(true: Labels, masks: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """IoU of each object with the mask that fits it best, however often a mask is taken (mBO is their mean): (B, objects)."""
    return np.stack([overlaps(t, m, objects).max(axis=1) for t, m in zip(true, masks, strict=True)])


def matched_overlaps(true: Labels, masks: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """IoU of each object under the best one-to-one matching in each image (Hungarian; mIoU is their mean): (B, objects)."""
    scores = np.full((len(true), objects), np.nan)
    for i, (t, m) in enumerate(zip(true, masks, strict=True)):
        iou = overlaps(t, m, objects)
        rows, columns = linear_sum_assignment(np.nan_to_num(iou), maximize=True)
        scores[i, rows] = iou[rows, columns]
    return scores


def match_slots(positions: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each object the slot that follows it through all frames: (B, N, 2), (B, K, 2) -> (N,).

    One Hungarian matching for the whole data set, on how much of the positions' variance a linear map of the centroid explains:
    a slot that swaps objects between episodes matches none of them well.
    """
    scores = np.array(
        [[_fitted_r2(centroids[:, k], positions[:, n]) for k in range(centroids.shape[1])] for n in range(positions.shape[1])]
    )
    return linear_sum_assignment(scores, maximize=True)[1]


def position_r2(
    positions: NDArray[np.float64], centroids: NDArray[np.float64], test_positions: NDArray[np.float64], test_centroids: NDArray[np.float64]
) -> NDArray[np.float64]:
    """R² of each object's position under a linear map of its slot's centroid: the map and the match of objects to slots come from
    positions (B, N, 2) and centroids (B, K, 2), the score from test data of other episodes -> (N,)."""
    scores = []
    for n, k in enumerate(match_slots(positions, centroids)):
        weights = _fit(centroids[:, k], positions[:, n])
        scores.append(_r2(test_positions[:, n], _augment(test_centroids[:, k]) @ weights))
    return np.array(scores)


def _augment(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.lstsq(_augment(x), y, rcond=None)[0].astype(np.float64)


def _fitted_r2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return _r2(y, _augment(x) @ _fit(x, y))


def _r2(y: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Explained share of the variance, both coordinates together; 0 where nothing moves."""
    variance = ((y - y.mean(axis=0)) ** 2).sum()
    return float(1 - ((y - predicted) ** 2).sum() / variance) if variance > 1e-12 else 0.0
