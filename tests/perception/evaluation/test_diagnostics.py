"""Each known failure is named, and what merely looks like one is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perception.evaluation.diagnostics import ADVICE, diagnose_failures, frame_measures
from tests.perception.painted import Painted, frames_for
from tests.perception.scene import SIZE, roll_scene

SLOTS = 4


def raised(labels: np.ndarray, slots: int = SLOTS, leak: float = 0.0) -> list[str]:
    return diagnose_failures(Painted(labels, slots, leak), frames_for(labels))


def scene(objects: int) -> np.ndarray:
    """Label maps (E, T, H, W) that are right: one slot a thing, the others to spare."""
    return roll_scene(4, 10, objects, seed=0).segmentation


def halves(labels: np.ndarray, vertical: bool) -> np.ndarray:
    """The left or upper half of each thing of label 1 goes to slot 4."""
    out = labels.copy()
    for image in out.reshape(-1, SIZE, SIZE):
        axis = int(vertical)
        part = (np.indices(image.shape)[axis] < np.median(np.nonzero(image == 1)[axis])) & (
            image == 1
        )
        image[part] = 4
    return out


def test_spare_slots_are_no_failure() -> None:
    for objects in (1, 2, 3):
        assert raised(scene(objects)) == []
    assert raised(scene(2), slots=9) == []


def test_a_little_of_each_thing_in_other_slots_is_no_failure_and_sharing_them_is() -> None:
    assert raised(scene(3), leak=0.3) == []
    assert any("split" in failure for failure in raised(scene(1), slots=2, leak=0.8))


def test_a_thing_cut_in_two_by_another_now_and_then_is_no_failure() -> None:
    labels = np.zeros((1, 10, SIZE, SIZE), int)
    labels[:, :, 10:14, 4:24] = 1
    labels[:, :4, 8:16, 12:15] = 2
    labels[:, 4:, 20:26, 12:18] = 2
    assert raised(labels) == []


def test_one_slot_that_takes_all_of_several_things_is_named() -> None:
    assert "one slot takes all of the foreground" in raised((scene(2) > 0).astype(int))
    assert raised((scene(1) > 0).astype(int)) == [], "all of a single thing"


def test_slots_that_are_dead_while_another_holds_two_things_are_named() -> None:
    merged = np.array([0, 1, 1, 2])[scene(3)]
    assert "dead slots (2, 3) while several things share a slot (0)" in raised(merged)
    assert not any("dead" in failure for failure in raised(merged, slots=2))


def test_a_small_thing_in_a_slot_of_its_own_is_not_dead_beside_one_of_two_parts() -> None:
    labels = np.zeros((1, 4, SIZE, SIZE), int)
    labels[..., :8, :8] = labels[..., :8, 10:18] = 1
    labels[..., 18:, 8:] = 3
    labels[..., -3:, :3] = 2
    assert raised(labels, slots=3) == []
    labels[:, 1:, -3:, :3] = 0
    assert raised(labels, slots=3) == [], "seen in a quarter of the frames"
    assert raised(np.where(labels == 2, 0, labels), slots=3) == [
        "dead slots (1) while several things share a slot (0)"
    ]


def test_stripes_and_smears_are_named() -> None:
    foreground = np.ones((2, 3, SIZE, SIZE), int)
    foreground[..., SIZE // 2 :, :] = 0
    stripes = foreground * (1 + np.arange(SIZE) // 2 % 4)
    assert any("stripes" in failure for failure in raised(stripes))
    blocks = foreground * (1 + np.arange(SIZE) // 8)
    assert not any("stripes" in failure for failure in raised(blocks))


def test_slots_of_things_within_each_other_are_no_split_object_where_the_truth_is_known() -> None:
    seen = halves(scene(1), vertical=True)
    assert diagnose_failures(Painted(seen, SLOTS), frames_for(seen), segmentation=seen) == []
    assert (
        len(diagnose_failures(Painted(seen, SLOTS), frames_for(seen), segmentation=scene(1))) == 1
    )


def test_one_long_thing_is_no_smear() -> None:
    labels = np.zeros((2, 3, SIZE, SIZE), int)
    labels[..., 10:12, 1:31] = 1
    assert raised(labels, slots=1) == [] == raised(labels, slots=3)


def test_many_pairs_that_share_an_object_are_one_line_and_every_failure_has_advice() -> None:
    [failure] = [failure for failure in raised(scene(1), slots=3, leak=0.8) if "split" in failure]
    assert failure == "an object is split between slots 0 and 1, and likewise between 2 more pairs"
    merged = np.array([0, 1, 1, 2])[scene(3)]
    nothing, striped = (
        np.zeros((1, 3, SIZE, SIZE), int),
        np.broadcast_to(1 + np.arange(SIZE) // 2 % 4, (2, 3, SIZE, SIZE)),
    )
    cases = [
        raised(labels)
        for labels in (nothing, striped, merged, (scene(2) > 0).astype(int), halves(scene(2), True))
    ]
    assert all(
        found
        and all(sum(failure.startswith(begins) for begins in ADVICE) == 1 for failure in found)
        for found in cases
    )


def test_an_object_split_in_two_is_named_and_two_that_touch_are_not() -> None:
    assert raised(halves(scene(2), vertical=True)) == ["an object is split between slots 0 and 3"]
    assert raised(halves(scene(2), vertical=False)) == ["an object is split between slots 0 and 3"]
    labels = np.zeros((1, 3, SIZE, SIZE), int)
    labels[:, :, 5:10, 5:10], labels[:, :, 5:10, 10:15] = 1, 2
    assert raised(labels) == []


def test_an_empty_scene_is_a_failure() -> None:
    labels = np.zeros((1, 3, SIZE, SIZE), int)
    assert raised(labels) == ["no foreground: nothing differs from the background"]


def measured(*labels: np.ndarray, frame: int = 0) -> dict[str, np.ndarray]:
    """What is measured of the last of these label maps (H, W), after the ones before it."""
    maps = np.stack(labels)[None]
    model = Painted(maps, SLOTS)
    outputs = model.encode_video(torch.from_numpy(frames_for(maps)[0]))
    frames = np.full((1, SIZE, SIZE, 3), frame, np.uint8)
    before = outputs[-2] if len(outputs) > 1 else None
    return {
        name: own[0] for name, own in frame_measures(model, frames, outputs[-1], before).items()
    }


def square(label: int, x: int, y: int, side: int = 6) -> np.ndarray:
    painted = np.zeros((SIZE, SIZE), int)
    painted[y : y + side, x : x + side] = label
    return painted


def test_a_slots_jump_is_how_far_it_moved_in_sides_of_the_frame() -> None:
    jump = measured(square(1, 2, 3), square(1, 2 + 8, 3))["jump"]
    assert jump[0] == pytest.approx(8 / SIZE) and not jump[1:].any()
    assert not measured(square(1, 2, 3))["jump"].any(), "nothing is before the first frame"
    assert not measured(square(1, 2, 3), square(2, 20, 3))["jump"].any(), "one came, one went"


def test_presence_and_the_error_of_the_reconstruction_are_of_each_slot() -> None:
    found = measured(square(2, 4, 4), frame=51)
    assert found["presence"].round(2).tolist() == [0, 1, 0, 0]
    assert found["error"] == pytest.approx([0, 0.2, 0, 0])


def test_two_slots_overlap_on_one_object_and_not_on_two_that_touch() -> None:
    both = np.where(square(1, 8, 8, 12) > 0, 1 + np.indices((SIZE, SIZE)).sum(0) % 2, 0)
    shared = measured(both)["overlap"]
    assert shared[0, 1] == pytest.approx(1, abs=0.05) and (shared > 0).sum() == 1
    assert not measured(square(1, 8, 8) + square(2, 14, 8))["overlap"].any()
    speck = square(1, 8, 8, 12) + square(1, 13, 13, 1)
    assert (speck == 2).sum() == 1 and not measured(speck)["overlap"].any()
