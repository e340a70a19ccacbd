"""Scores of models that see what they are told to see: each failure costs its own figure."""

from __future__ import annotations

import numpy as np
import pytest

from perception.scores import score, worst_frames
from tests.perception.painted import Painted, frames_for

SIZE, SIDE = 32, 5
OBJECTS = 2


def scene(robot: bool = True, episodes: int = 4, steps: int = 12) -> np.ndarray:
    """True labels (E, T, H, W): two squares that jump about in the upper half, the robot (3) a large box that never moves below."""
    rng = np.random.default_rng(0)
    labels = np.zeros((episodes, steps, SIZE, SIZE), int)
    if robot:
        labels[:, :, 18:30, 2:30] = 3
    for e in range(episodes):
        for t in range(steps):
            for n in range(OBJECTS):
                y, x = rng.integers(0, 10), rng.integers(0, SIZE // 2 - SIDE) + SIZE // 2 * n
                labels[e, t, y : y + SIDE, x : x + SIDE] = n + 1
    return labels


def scored(truth: np.ndarray, seen: np.ndarray, slots: int = 5) -> dict:
    return score(Painted(seen, slots), frames_for(truth), truth, OBJECTS)


@pytest.mark.parametrize("robot", [True, False])
def test_a_perfect_model_has_perfect_scores_whatever_the_order_of_its_slots(robot: bool) -> None:
    truth = scene(robot)
    scores = scored(truth, np.array([0, 4, 2, 1])[truth])
    perfect = ["fg_ari", "ari", "video_fg_ari", "mbo", "miou", "worst_iou", "mean_position_r2", "worst_position_r2"]
    assert [scores[name] for name in perfect] == pytest.approx([1.0] * len(perfect))
    assert scores["switch_rate"] == 0.0 and scores["robot_iou"] == (1.0 if robot else None)
    assert scores["iou"] == [1.0, 1.0] and scores["slots"] == [3, 1, 0 if robot else -1]
    assert min(scores["presence"]) > 0.9 and max(scores["spare_presence"]) < 0.1


def test_a_large_robot_does_not_hide_a_lost_object() -> None:
    truth = scene()
    seen = np.array([0, 1, 3, 3])[truth]  # the second square is the robot's
    scores = scored(truth, seen)
    assert scores["robot_iou"] > 0.9 and scores["iou"] == [1.0, 0.0] and scores["worst_iou"] == 0.0
    assert scores["worst_position_r2"] < 0.1 and scores["position_r2"][0] == pytest.approx(1.0)


def test_what_is_lost_in_the_background_costs_the_ari_with_background() -> None:
    truth = scene()
    robot_unseen = scored(truth, np.where(truth == 3, 0, truth))
    assert robot_unseen["fg_ari"] == 1.0 and robot_unseen["robot_iou"] == 0.0
    assert robot_unseen["ari"] < 0.6


def test_other_things_count_for_the_ari_with_background_alone() -> None:
    truth = scene()
    truth[:, :, 15:17, :] = 4  # a goal marker, say
    seen = np.where(truth == 4, 0, truth)
    without = scored(truth, seen)
    assert without["fg_ari"] == without["miou"] == 1.0 and without["ari"] < 0.98
    assert scored(truth, truth)["ari"] == 1.0


def test_a_slot_that_changes_its_object_costs_only_what_looks_over_time() -> None:
    truth = scene(robot=False)
    seen = truth.copy()
    seen[:, 6:] = np.array([0, 2, 1])[truth[:, 6:]]
    scores = scored(truth, seen)
    assert scores["fg_ari"] == scores["ari"] == scores["miou"] == 1.0
    assert scores["video_fg_ari"] < 0.1 and scores["mean_position_r2"] < 0.7
    assert scores["switch_rate"] == pytest.approx(1 / 11), "once in eleven steps"


def test_what_is_never_in_sight_and_what_never_moves_has_no_figures() -> None:
    truth = scene()
    truth[truth == 2] = 0
    scores = scored(truth, truth)
    assert scores["iou"] == [1.0, None] and scores["worst_iou"] == 1.0 and scores["slots"][1] == -1
    still = np.repeat(scene()[:1, :1], 4, axis=0).repeat(12, axis=1)
    scores = scored(still, still)
    assert scores["position_r2"] == [None, None] and scores["mean_position_r2"] is scores["worst_position_r2"] is None


def test_fg_ari_of_a_single_thing_says_nothing() -> None:
    truth = (scene(robot=False) == 1).astype(int)
    scores = score(Painted(truth, 2), frames_for(truth), truth, 1)
    assert scores["fg_ari"] is scores["video_fg_ari"] is None
    assert scores["ari"] == scores["worst_iou"] == 1.0


def test_worst_frames_are_the_worst_first_and_not_neighbours() -> None:
    matched = np.ones((30, 2))
    matched[[4, 5, 20], 0] = 0.2, 0.1, 0.3
    matched[5, 1], matched[6, 1] = 0.25, np.nan
    assert worst_frames(matched, 3) == [(5, 0), (5, 1), (20, 0)]
    assert worst_frames(matched, 9) == [(5, 0), (5, 1), (20, 0)], "the rest is perfect, or out of sight"
