"""Objects are discovered without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perception.discovery.losses import pseudo_label_loss
from perception.discovery.train import (
    ClipSampler,
    DiscoveryConfig,
    VideoData,
    _shares,
    discover,
    initial_model,
    shuffle_slots,
)
from perception.evaluation.diagnostics import diagnose_failures
from perception.evaluation.evaluate import encode_episodes, evaluate, resting_jitter
from perception.images import as_images
from perception.slots.model import SlotConfig, SlotModel
from tests.perception.scene import SIDE, SIZE, empty_floor, roll_scene

SMALL = SlotConfig(slots=3, width=16, channels=8, frame_size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def model() -> SlotModel:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scenes = [roll_scene(12, 60, objects, seed=objects).frames for objects in (2, 3)]
    trained = discover(scenes, SMALL, DiscoveryConfig(steps=400, learning_rate=1e-3))
    torch.set_num_threads(threads)
    return trained


@pytest.mark.parametrize("objects", [2, 3])
def test_objects_are_found_without_labels(model: SlotModel, objects: int) -> None:
    held_out = roll_scene(6, 40, objects, seed=100)
    scores = evaluate(model, held_out.frames, held_out.segmentation, objects)
    assert scores["fg_ari"] > 0.95 and scores["ari"] > 0.95 and scores["miou"] > 0.9
    assert min(scores["position_r2"]) > 0.95, (
        "a slot is to stay with its object in all episodes, behind another one too"
    )


def test_presence_tells_what_is_there(model: SlotModel) -> None:
    held_out = roll_scene(4, 20, 2, seed=101)
    scores = evaluate(model, held_out.frames, held_out.segmentation, objects=2)
    assert min(scores["presence"]) > 0.9 and max(scores["spare_presence"]) < 0.1


def test_a_good_model_has_no_known_failure_and_rests_when_things_rest(model: SlotModel) -> None:
    held_out = roll_scene(4, 30, 3, seed=102)
    assert diagnose_failures(model, held_out.frames) == []
    assert resting_jitter(model, held_out.frames) < 0.05


def test_slots_stay_with_their_objects_over_an_episode(model: SlotModel) -> None:
    outputs = encode_episodes(model, roll_scene(4, 40, 3, seed=103).frames)
    centroids = torch.stack([s.coordinates[..., :2] for s in outputs])
    present = torch.stack([s.coordinates[..., 3] for s in outputs]) > 0.5
    jumps = centroids.diff(dim=0).norm(dim=-1)[present[1:] & present[:-1]]
    assert jumps.max() < 1.0


def test_clips_go_on_by_a_frame_and_turn_back_at_the_end_of_a_clip() -> None:
    episodes, steps = 3, 5
    number = np.arange(episodes * steps).reshape(episodes, steps)
    clips = np.broadcast_to(number[:, :, None, None, None], (episodes, steps, 2, 2, 3)).astype(
        np.uint8
    )
    shares = np.broadcast_to(number[:, :, None, None, None], (episodes, steps, 1, 2, 2)).astype(
        np.float16
    )
    sampler = ClipSampler([VideoData(clips, shares)], 4, 50, np.random.default_rng(0))
    seen, firsts = [], []
    for _ in range(600):
        batch = sampler.sample()
        assert torch.equal(batch.frames[:, 0, 0, 0].float(), batch.shares[:, 0, 0, 0]), (
            "what things have of another frame"
        )
        seen.append(batch.frames[:, 0, 0, 0].long())
        firsts.append(batch.is_first)
    place, first = torch.stack(seen), torch.stack(firsts)
    assert first[0].all() and first[:, ::2].all()
    moved, carried = place.diff(dim=0), ~first[1:]
    assert (moved[carried].abs() == 1).all() and (place[1:] // steps == place[:-1] // steps)[
        carried
    ].all()
    assert carried[:, 1::2].float().mean().item() == pytest.approx(1 - 1 / 50, abs=0.02), (
        "for longer than a clip lasts"
    )
    assert (moved[:, 1::2] == -1).any() and (moved[:, 1::2] == 1).any()


def test_each_of_twins_keeps_its_share_in_a_clip() -> None:
    """Two twins on floors of their own, that pass above each other again and again."""
    rng, time = np.random.default_rng(0), np.arange(20)
    clips, truth = np.zeros((20, 20, SIZE, SIZE, 3), np.uint8), np.zeros((20, 20, SIZE, SIZE), int)
    for frames, labels in zip(clips, truth, strict=True):
        for twin, top in enumerate((2, 18), 1):
            swing = 13 + 13 * np.sin(rng.uniform(0, 7) + rng.uniform(-0.3, 0.3) * time)
            for t, x in enumerate(swing.astype(int)):
                box = np.s_[t, top + t // 3 : top + t // 3 + SIDE, x : x + SIDE]
                frames[box], labels[box] = (70, 190, 90), twin
    model = initial_model([clips], SMALL, DiscoveryConfig(), np.random.default_rng(0))
    assert model.config.twins == (2,)
    shares = torch.from_numpy(_shares(model, clips)).float()
    own = torch.stack([torch.from_numpy(truth == twin) for twin in (1, 2)], dim=2).float()
    both = torch.einsum("etnhw,etkhw->etnk", shares, own) / own.sum(dim=(3, 4)).unsqueeze(2)
    assert ((both > 0.9).all(dim=1).sum(dim=(1, 2)) == 2).all(), "one of each in every frame"
    first = both[:, :, 0].argmax(dim=2)
    assert (first[:, 0] == 0).any() and (first[:, 0] == 1).any(), "from left to right at first"


def test_the_loss_prefers_each_slot_to_see_its_thing() -> None:
    scene = roll_scene(2, 3, 2, seed=0)
    frames, truth = torch.from_numpy(scene.frames[:, 0]), torch.from_numpy(scene.segmentation[:, 0])
    model = SlotModel(
        SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE)),
        torch.from_numpy(empty_floor())[None],
    )
    images, output = as_images(frames), model(frames)
    shares = torch.stack([truth == 1, truth == 2], dim=1).float()
    halves = torch.arange(SIZE).expand(SIZE, SIZE) % 2 == 0

    def loss(one: torch.Tensor, two: torch.Tensor) -> float:
        output.decoded.masks = torch.stack([one.float(), two.float()], dim=1)
        output.alpha = output.decoded.masks.sum(dim=1)
        return pseudo_label_loss(output, shares, images).item()

    one, two = truth == 1, truth == 2
    right = loss(one, two)
    assert right < loss(one | two, two & one), "two objects in one slot"
    assert right < loss(one & halves, two | (one & ~halves)), "an object in stripes"
    assert right < loss(two, one), "a slot is to stay with its thing"


def rows_of(slots: torch.Tensor) -> list[set[tuple[float, ...]]]:
    """The slots of each row, whatever their order."""
    return [{tuple(slot.tolist()) for slot in row} for row in slots]


def test_shuffled_rows_are_seen_from_the_slots_of_another_row() -> None:
    torch.manual_seed(0)
    slots = torch.rand(12, 4, 3)
    assert torch.equal(shuffle_slots(slots, 0.0), slots)
    kept = 0
    for _ in range(40):
        shuffled = shuffle_slots(slots, 1.0)
        assert all(row in rows_of(slots) for row in rows_of(shuffled)), "a row's slots go together"
        kept += sum(torch.equal(one, other) for one, other in zip(shuffled, slots, strict=True))
    assert kept < 0.02 * 40 * 12, "rows drawn for themselves in their own order are to be rare"


def test_as_many_rows_are_shuffled_as_asked() -> None:
    torch.manual_seed(0)
    slots = torch.rand(2000, 2, 3)
    kept = (shuffle_slots(slots, 0.25) == slots).all(dim=(1, 2))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.04)


def test_frames_in_which_nothing_moves_are_refused() -> None:
    still = np.repeat(empty_floor()[None, None], 4, axis=1).repeat(3, axis=0)
    with pytest.raises(ValueError, match="nothing differs"):
        discover([still], SMALL, DiscoveryConfig(steps=1))


def test_objects_of_colours_never_seen_are_told_apart(model: SlotModel) -> None:
    held_out = roll_scene(6, 40, 2, seed=104)
    frames = held_out.frames.copy()
    frames[held_out.segmentation == 1], frames[held_out.segmentation == 2] = (
        (240, 240, 90),
        (200, 60, 230),
    )
    assert evaluate(model, frames, held_out.segmentation, 2)["fg_ari"] > 0.75
