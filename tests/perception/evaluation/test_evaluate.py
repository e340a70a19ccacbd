"""Scores of models that see what they are told to see: each failure costs its own figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perception.encoding import frequencies_for
from perception.evaluation.evaluate import (
    encode_episodes,
    evaluate,
    memory_errors,
    resting_jitter,
    worst_frames,
)
from perception.slots.decoder import Decoded
from perception.slots.model import SlotOutput
from tests.perception.painted import Painted, frames_for

SIZE, SIDE = 32, 5
OBJECTS = 2


def scene(robot: bool = True, episodes: int = 4, steps: int = 12) -> np.ndarray:
    """True labels (E, T, H, W): two squares that jump about in the upper half, the robot (3) a
    large box that never moves below."""
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
    return evaluate(Painted(seen, slots), frames_for(truth), truth, OBJECTS)


@pytest.mark.parametrize("robot", [True, False])
def test_a_perfect_model_has_perfect_scores_whatever_the_order_of_its_slots(robot: bool) -> None:
    truth = scene(robot)
    scores = scored(truth, np.array([0, 4, 2, 1])[truth])
    perfect = [
        "fg_ari",
        "ari",
        "video_fg_ari",
        "mbo",
        "miou",
        "worst_iou",
        "mean_position_r2",
        "worst_position_r2",
    ]
    assert [scores[name] for name in perfect] == pytest.approx([1.0] * len(perfect))
    assert scores["switch_rate"] == 0.0 and scores["robot_iou"] == (1.0 if robot else None)
    assert scores["iou"] == [1.0, 1.0] and scores["slots"] == [3, 1, 0 if robot else -1]
    assert min(scores["presence"]) > 0.9 and max(scores["spare_presence"]) < 0.1


def test_twins_bear_the_names_by_which_they_fit_their_slots_in_each_episode_but_not_within() -> (
    None
):
    truth = scene()
    seen = truth.copy()
    swap = np.array([0, 2, 1, 3])
    seen[1] = swap[truth[1]]

    def of(labels: np.ndarray, twins: tuple[int, ...]) -> dict:
        model = Painted(labels, 5)
        return evaluate(model, frames_for(truth), truth, OBJECTS, np.zeros((4, 12, 2, 2)), twins)

    assert of(seen, (0, 1))["worst_position_r2"] == pytest.approx(1.0)
    assert of(seen, ())["worst_position_r2"] < 0.9
    seen[2, 6:] = swap[truth[2, 6:]]
    assert of(seen, (0, 1))["worst_position_r2"] < 0.9


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
    assert (
        scores["position_r2"] == [None, None]
        and scores["mean_position_r2"] is scores["worst_position_r2"] is None
    )


def test_fg_ari_of_a_single_thing_says_nothing() -> None:
    truth = (scene(robot=False) == 1).astype(int)
    scores = evaluate(Painted(truth, 2), frames_for(truth), truth, 1)
    assert scores["fg_ari"] is scores["video_fg_ari"] is None
    assert scores["ari"] == scores["worst_iou"] == 1.0


def test_worst_frames_are_the_worst_first_and_not_neighbours() -> None:
    matched = np.ones((30, 2))
    matched[[4, 5, 20], 0] = 0.2, 0.1, 0.3
    matched[5, 1], matched[6, 1] = 0.25, np.nan
    assert worst_frames(matched, 3) == [(5, 0), (5, 1), (20, 0)]
    assert worst_frames(matched, 9) == [(5, 0), (5, 1), (20, 0)], (
        "the rest is perfect, or out of sight"
    )


class Bright(Painted):
    """One slot, which sees what is bright, pixel by pixel: noise in a frame is noise in its
    centroid."""

    def __init__(self) -> None:
        super().__init__(np.zeros((1, 1, SIZE, SIZE), int), 1)

    def encode_video(self, frames: torch.Tensor) -> list[SlotOutput]:
        return [self.looked_at(frame) for frame in frames]

    def looked_at(self, frame: torch.Tensor) -> SlotOutput:
        masks = ((frame[..., :1].float() - 50) / 200).clamp(0, 1).permute(0, 3, 1, 2)
        decoded = Decoded(
            masks, torch.zeros(len(frame), 1, 3), torch.zeros(len(frame), 3, SIZE, SIZE)
        )
        return SlotOutput(
            torch.zeros(len(frame), 1, 4),
            self.locate(masks),
            decoded,
            masks.sum(dim=1),
        )


def square(steps: int, pace: int) -> np.ndarray:
    """Frames (1, T, H, W, 3) of a bright square on a dark floor that goes on by `pace` pixels from
    frame to frame, back and forth."""
    frames = np.full((1, steps, SIZE, SIZE, 3), 40, np.uint8)
    for t in range(steps):
        x = 4 + abs((pace * t) % 32 - 16)
        frames[0, t, 10:18, x : x + 8] = 200
    return frames


@pytest.mark.parametrize("pace", [0, 1], ids=["at rest", "always moving"])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 2.0, 5.0])
def test_the_jitter_of_a_thing_is_measured_under_noise_and_where_nothing_rests(
    sigma: float, pace: int
) -> None:
    model, clean = Bright(), square(120, pace)
    noise = np.random.default_rng(1).normal(0, sigma, clean.shape) if sigma else 0.0
    frames = (clean + noise).round().clip(0, 255).astype(np.uint8)
    path, seen = (
        np.concatenate([s.coordinates[0, :, :2].numpy() for s in encode_episodes(model, f)])
        for f in (clean, frames)
    )
    wrong = seen - path
    true = float(np.quantile(np.abs(np.diff(wrong, axis=0)).max(axis=1), 0.99))
    measured = resting_jitter(model, frames)
    assert frequencies_for(measured) <= frequencies_for(true)
    assert 0.7 * true - 1e-3 <= measured <= (5 if pace else 1.3) * true + 1e-3


def test_slots_that_move_while_their_objects_rest_are_counted_with_and_without_memory() -> None:
    """A square rests and another passes before it, which hides up to all of it."""
    truth = np.zeros((1, 9, SIZE, SIZE), np.int64)
    truth[:, :, 20:26, 20:26] = 1
    positions = np.zeros((1, 9, 2, 2))
    for t in range(9):
        truth[0, t, 18:28, 8 + 3 * t : 18 + 3 * t] = 2
        positions[0, t, 1] = t
    scores = evaluate(Painted(truth, 3), frames_for(truth), truth, 2, positions)
    assert scores["moves_at_rest"] == 0.0
    assert 0.3 < scores["moves_at_rest_seen"] < 0.9
    assert scores["misses_motion"] == 0.0
    nowhere = np.zeros((1, 9, 3, 4))
    nobody = memory_errors(positions, nowhere, nowhere, np.array([-1, -1]))
    assert len(nobody) == 3 and np.isnan(list(nobody.values())).all()


def test_a_motion_that_the_memory_misses_is_counted() -> None:
    """One object moves in four of eight steps, as seen, and in one of them as remembered."""
    positions, seen = np.zeros((1, 9, 1, 2)), np.ones((1, 9, 1, 4))
    positions[0, :5, 0, 0] = seen[0, :5, 0, 0] = 0.1 * np.arange(5)
    positions[0, 5:, 0, 0] = seen[0, 5:, 0, 0] = 0.4
    whole = seen.copy()
    whole[0, 1:4, 0, 0], whole[0, 4:, 0, 0] = 0.0, 0.4
    errors = memory_errors(positions, seen, whole, np.array([0]))
    assert errors == {"moves_at_rest_seen": 0.0, "moves_at_rest": 0.0, "misses_motion": 0.75}
