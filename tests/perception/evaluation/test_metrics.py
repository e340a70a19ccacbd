"""Metrics agree with the references they are defined by, and mean what they say."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from perception.evaluation.metrics import (
    adjusted_rand_index,
    best_overlaps,
    contingency,
    mask_centres,
    match_slots,
    matched_overlaps,
    overlaps,
    position_r2,
    switch_rate,
)


def tables(true: np.ndarray, guess: np.ndarray) -> np.ndarray:
    return contingency(true, guess, int(true.max()), max(1, int(guess.max())))


def boxes(*places: tuple[slice, slice], size: int = 16) -> np.ndarray:
    """A label map (1, size, size) of boxes in order; a later one covers an earlier one."""
    labels = np.zeros((1, size, size), int)
    for label, box in enumerate(places, start=1):
        labels[0][box] = label
    return labels


@pytest.mark.parametrize("seed", range(8))
def test_ari_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, guess = rng.integers(0, 4, (3, 20, 10)), rng.integers(0, 1 + seed, (3, 20, 10))
    guess[:, :10] = np.minimum(true, seed)[:, :10]
    table = tables(true, guess)
    expected = [adjusted_rand_score(t.ravel(), g.ravel()) for t, g in zip(true, guess, strict=True)]
    assert adjusted_rand_index(table) == pytest.approx(expected, abs=1e-12)
    shown = true > 0
    foreground = [
        adjusted_rand_score(t[s], g[s]) for t, g, s in zip(true, guess, shown, strict=True)
    ]
    assert adjusted_rand_index(table[:, 1:]) == pytest.approx(foreground, abs=1e-12)
    whole = adjusted_rand_score(true[shown], guess[shown])
    assert adjusted_rand_index(table[:, 1:].sum(axis=0)) == pytest.approx(whole, abs=1e-12), (
        "all images as one"
    )


def test_ari_of_one_cluster_by_one_cluster_is_one_and_of_no_points_nothing() -> None:
    assert adjusted_rand_index(np.array([[5]])) == adjusted_rand_index(np.array([[1]])) == 1.0
    assert np.isnan(adjusted_rand_index(np.array([[0]])))
    assert adjusted_rand_index(np.array([[1_228_800, 0]])) == 1.0, "an episode of one thing"


def test_fg_ari_forgives_the_background_and_the_full_one_does_not() -> None:
    true = boxes(np.s_[:2, :4], np.s_[5:, :4], size=8)
    guess = true.copy()
    guess[0, :, 4:] = 1
    table = tables(true, guess)
    assert adjusted_rand_index(table[:, 1:]) == 1.0 and adjusted_rand_index(table) < 0.6


def test_a_slot_that_changes_its_object_within_an_episode_is_seen_by_the_videos_ari_alone() -> None:
    true = np.concatenate([boxes(np.s_[:4, :4], np.s_[9:, 9:])] * 4)
    guess = true.copy()
    guess[2:] = np.array([0, 2, 1])[true[2:]]
    table = tables(true, guess)[:, 1:]
    assert (adjusted_rand_index(table) == 1.0).all() and adjusted_rand_index(
        table.sum(axis=0)
    ) < 0.1


def test_labels_beyond_what_was_said_are_refused() -> None:
    with pytest.raises(ValueError, match="labels up to 3 and 1"):
        contingency(np.full((1, 2, 2), 3), np.ones((1, 2, 2), int), 2, 4)


def test_intersection_over_union_of_boxes() -> None:
    true = boxes(np.s_[:4, :4], np.s_[8:10, 8:10])
    guess = boxes(np.s_[:4, 2:6], np.s_[8:10, 8:10], np.s_[15:, 15:])
    assert overlaps(contingency(true, guess, 3, 3), 3)[0] == pytest.approx(
        np.array([[8 / 24, 0, 0], [0, 1, 0], [np.nan] * 3]), nan_ok=True
    )


@pytest.mark.parametrize("slots", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_best_of_all_permutations(seed: int, slots: int) -> None:
    rng = np.random.default_rng(seed)
    iou = rng.random((1, 3, slots)) ** 3
    scores, chosen = matched_overlaps(iou)
    padded = np.concatenate([iou[0], np.zeros((3, 3))], axis=1)  # a thing may go without
    assert scores.sum() == pytest.approx(
        max(sum(padded[range(3), p]) for p in permutations(range(slots + 3), 3))
    )
    assert all(k == -1 or iou[0, n, k] == scores[0, n] for n, k in enumerate(chosen[0]))
    assert (best_overlaps(iou) >= scores - 1e-12).all()


def test_a_lost_cube_beside_a_large_arm_has_no_overlap() -> None:
    cube, arm = np.s_[7:9, 7:9], np.s_[:, 4:12]
    true = boxes(arm, cube)
    true = np.array([0, 2, 1])[true]  # the cube is the object of interest, the arm comes after it
    guess = (true > 0).astype(int)  # one slot has both
    iou = overlaps(contingency(true, guess, 2, 3), 2)
    scores, slots = matched_overlaps(iou)
    assert scores[0].tolist() == [0.0, pytest.approx(124 / 128)] and slots[0].tolist() == [-1, 0]
    assert best_overlaps(iou)[0, 0] == pytest.approx(4 / 128)


def test_an_object_out_of_sight_has_no_iou_and_takes_no_slot_from_others() -> None:
    true = np.where(boxes(np.s_[:4, :4]) == 1, 2, 0)
    iou = overlaps(contingency(true, (true > 0).astype(int), 2, 1), 2)
    scores, slots = matched_overlaps(iou)
    assert np.isnan(scores[0, 0]) and scores[0, 1] == 1.0 and slots[0].tolist() == [-1, 0]
    assert match_slots(iou).tolist() == [-1, 0]


def test_things_without_any_slot_are_lost() -> None:
    true = boxes(np.s_[:4, :4], np.s_[8:, 8:])
    scores, slots = matched_overlaps(overlaps(contingency(true, np.zeros_like(true), 2, 1), 2))
    assert scores.tolist() == [[0.0, 0.0]] and slots.tolist() == [[-1, -1]]


def test_switches_are_counted_where_a_thing_is_followed_in_both_frames() -> None:
    assert switch_rate(np.array([[[0, 1], [0, 1], [1, 0], [1, 0]]])) == pytest.approx(2 / 6)
    assert switch_rate(np.array([[[0], [-1], [1], [1]]])) == 0.0, "lost in between"
    assert switch_rate(np.array([[[0], [0]], [[1], [1]]])) == 0.0, "an episode's end is no switch"
    assert np.isnan(switch_rate(np.full((2, 3, 1), -1)))


def test_one_slot_is_matched_to_a_thing_for_the_whole_set() -> None:
    iou = np.zeros((10, 2, 3))
    iou[:6, 0, 2], iou[6:, 0, 0], iou[:, 1, 0] = 0.9, 0.9, 0.5
    assert match_slots(iou).tolist() == [2, 0]


def test_centres_of_masks_are_in_pixels_and_tiny_ones_have_none() -> None:
    true = boxes(np.s_[2:6, 10:13], np.s_[0:2, 0:3])
    centres = mask_centres(true, 3)
    assert centres[0, 0].tolist() == [11.0, 3.5] and np.isnan(centres[0, 1:]).all()


def wandering(episodes: int = 6, steps: int = 50) -> np.ndarray:
    """Centres (E, T, 2, 2) in pixels of two things."""
    return 32 + 10 * np.random.default_rng(0).normal(size=(episodes, steps, 2, 2))


def test_positions_are_read_by_any_linear_map() -> None:
    centres = wandering()
    assert position_r2(
        centres, centres @ np.array([[0.3, 0.1], [0.0, -0.4]]) + 0.7
    ) == pytest.approx(1.0)
    noise = np.random.default_rng(1).normal(size=centres.shape)
    assert position_r2(centres, centres + 5 * noise) == pytest.approx(0.8, abs=0.05), (
        "100 of 125 of the variance is signal"
    )
    assert (np.abs(position_r2(centres, noise)) < 0.05).all()


def test_a_map_that_differs_between_episodes_is_no_map() -> None:
    centres = wandering()
    centroids = centres.copy()
    centroids[1::2] *= -1
    assert (position_r2(centres, centroids) < 0).all()


def test_a_slot_that_swaps_objects_halfway_scores_low() -> None:
    centres = wandering()
    centroids = centres.copy()
    centroids[:, ::2] = centroids[:, ::2, ::-1]
    assert (position_r2(centres, centroids) < 0.6).all()


def test_what_never_moves_has_no_r2_and_what_is_out_of_sight_does_not_count() -> None:
    centres = wandering()
    centroids = centres.copy()
    centres[:, :, 0] = 32 + 0.4 * np.sign(centres[:, :, 0] - 32)  # within a pixel
    centres[:, ::3, 1], centroids[:, ::3, 1] = np.nan, 99
    assert position_r2(centres, centroids) == pytest.approx(np.array([np.nan, 1.0]), nan_ok=True)
    centres[1::2, :, 1] = np.nan
    assert np.isnan(position_r2(centres, centroids)).all(), (
        "never in sight in the episodes of the test"
    )
