"""Metrics agree with the references they are defined by, and mean what they say."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from perception.metrics import adjusted_rand_index, best_overlaps, match_slots, matched_overlaps, mean_ari, overlaps, position_r2


@pytest.mark.parametrize("seed", range(8))
def test_ari_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, guess = rng.integers(0, 4, 200), rng.integers(0, 1 + seed, 200)
    guess[:100] = true[:100]
    assert adjusted_rand_index(true, guess) == pytest.approx(adjusted_rand_score(true, guess), abs=1e-12)


@pytest.mark.parametrize("points", [0, 1, 5])
def test_ari_of_one_cluster_by_one_cluster_is_one(points: int) -> None:
    assert adjusted_rand_index(np.zeros(points, int), np.full(points, 3)) == 1.0


def test_fg_ari_forgives_the_background_and_the_full_one_does_not() -> None:
    true = np.zeros((1, 8, 8), int)
    true[0, :2, :4], true[0, 5:, :4] = 1, 2
    guess = true.copy()
    guess[0, :, 4:] = 1
    assert mean_ari(true, guess, with_background=False) == 1.0
    assert mean_ari(true, guess, with_background=True) < 0.6


def test_images_without_objects_do_not_count_for_fg_ari() -> None:
    true = np.zeros((2, 4, 4), int)
    true[0, :2, :2], true[0, 2:, 2:] = 1, 2
    assert mean_ari(true, true, with_background=False) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_best_of_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, (1, 6, 6))
    masks = rng.random((1, 4, 6, 6)) > 0.5
    iou = overlaps(true[0], masks[0], 3)
    best = max(sum(iou[n, k] for n, k in enumerate(chosen)) for chosen in permutations(range(4), 3))
    assert matched_overlaps(true, masks, 3).sum() == pytest.approx(best)
    assert (best_overlaps(true, masks, 3) >= matched_overlaps(true, masks, 3) - 1e-12).all()


def test_an_object_out_of_sight_has_no_iou() -> None:
    true = np.zeros((1, 4, 4), int)
    true[0, :2] = 1
    scores = matched_overlaps(true, np.stack([true == 1, true == 0], axis=1), 2)
    assert scores[0, 0] == 1.0 and np.isnan(scores[0, 1])


def test_positions_are_read_by_any_linear_map_from_slots_in_any_order() -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(400, 3, 2))
    mixing = np.array([[0.3, 0.1], [0.0, -0.4]])
    centroids = rng.normal(size=(400, 4, 2))
    centroids[:, [2, 0, 3]] = positions @ mixing + 0.7
    assert match_slots(positions, centroids).tolist() == [2, 0, 3]
    assert position_r2(positions[:200], centroids[:200], positions[200:], centroids[200:]) == pytest.approx(1.0)


def test_a_slot_that_swaps_objects_halfway_scores_low() -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(400, 2, 2))
    centroids = positions.copy()
    centroids[::2] = centroids[::2, ::-1]
    assert (position_r2(positions[:200], centroids[:200], positions[200:], centroids[200:]) < 0.6).all()


def test_a_thing_that_never_moves_explains_nothing() -> None:
    still, seen = np.ones((50, 1, 2)), np.random.default_rng(0).normal(size=(50, 1, 2))
    assert position_r2(still, seen, still, seen).tolist() == [0.0]
