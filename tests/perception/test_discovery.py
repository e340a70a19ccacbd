"""Objects are found without labels, and what fails is named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from perception.alarms import alarms
from perception.background import estimate_background, foreground_alpha, nearest_background
from perception.discovery import DiscoveryConfig, discover, loss_weights, mixture_loss
from perception.scores import resting_jitter, score, see_episodes
from perception.slot_model import SlotConfig, SlotModel
from tests.perception.scene import SIZE, empty_floor, roll_scene

SMALL = SlotConfig(slots=4, width=16, channels=8, frame_size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def model() -> SlotModel:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scenes = [roll_scene(12, 60, objects, seed=objects).frames for objects in (2, 3)]
    trained = discover(scenes, SMALL, DiscoveryConfig(steps=400, batch=16))
    torch.set_num_threads(threads)
    return trained


@pytest.mark.parametrize("objects", [2, 3])
def test_objects_are_found_without_labels(model: SlotModel, objects: int) -> None:
    held_out = roll_scene(6, 40, objects, seed=100)
    scores = score(model, held_out.frames, held_out.segmentation, objects)
    assert scores["fg_ari"] > 0.95 and scores["ari"] > 0.95 and scores["miou"] > 0.9
    assert min(scores["position_r2"]) > 0.95, "a slot is to stay with its object in all episodes, behind another one too"


def test_presence_tells_what_is_there(model: SlotModel) -> None:
    held_out = roll_scene(4, 20, 2, seed=101)
    scores = score(model, held_out.frames, held_out.segmentation, objects=2)
    assert min(scores["presence"]) > 0.9 and max(scores["spare_presence"]) < 0.1


def test_a_good_model_raises_no_alarm_and_rests_when_things_rest(model: SlotModel) -> None:
    held_out = roll_scene(4, 30, 3, seed=102)
    assert alarms(model, held_out.frames) == []
    assert resting_jitter(model, held_out.frames) < 0.05


def test_slots_stay_with_their_objects_over_an_episode(model: SlotModel) -> None:
    sights = see_episodes(model, roll_scene(4, 40, 3, seed=103).frames)
    centroids = torch.stack([s.coordinates[..., :2] for s in sights])
    present = torch.stack([s.coordinates[..., 3] for s in sights]) > 0.5
    jumps = centroids.diff(dim=0).norm(dim=-1)[present[1:] & present[:-1]]
    assert jumps.max() < 1.0


def test_background_is_found_behind_things_that_rest_at_their_start_for_most_of_the_time() -> None:
    clips = roll_scene(12, 60, 3, seed=0).frames
    assert (np.median(clips, axis=(0, 1)) != empty_floor()).any(), "else the scene is too easy"
    assert (estimate_background(clips) == empty_floor()).all()


def test_a_thing_that_comes_to_rest_for_good_is_no_background() -> None:
    clips = np.repeat(empty_floor()[None, None], 40, axis=1).repeat(3, axis=0)
    for episode, start in enumerate((2, 10, 20)):
        clips[episode, start : start + 3, 5:8, 5:8] = 200
    clips[0, 12:, 5:8, 5:8] = 200
    assert (estimate_background(clips) == empty_floor()).all()


def test_each_pixel_is_compared_with_the_nearest_of_the_empty_scenes() -> None:
    backgrounds = torch.rand(2, 3, 4, 4)
    mixed = backgrounds[0].clone()
    mixed[:, :2] = backgrounds[1][:, :2]
    chosen = nearest_background(mixed[None], backgrounds)
    assert torch.equal(chosen[0], mixed)
    assert foreground_alpha(mixed[None], chosen, 0.15, 0.02).max() < 0.01


def test_the_loss_prefers_one_slot_an_object() -> None:
    scene = roll_scene(2, 3, 2, seed=0)
    frames = torch.from_numpy(scene.frames[:, 0])
    truth = torch.from_numpy(scene.segmentation[:, 0])
    model = SlotModel(SMALL, torch.from_numpy(empty_floor())[None])
    sight = model(frames)
    halves = torch.arange(SIZE).expand(SIZE, SIZE) % 2 == 0

    def loss(*masks: torch.Tensor) -> float:
        sight.decoded.masks = torch.stack([m.float() for m in masks], dim=1)
        sight.alpha = sight.decoded.masks.sum(dim=1)
        sight.coordinates = model.locate(sight.decoded.masks)
        paint = torch.einsum("bkhw,bhwc->bkc", sight.decoded.masks, frames / 255)
        sight.decoded.colours = paint / sight.decoded.masks.sum(dim=(2, 3)).clamp(min=1e-3)[..., None]
        return mixture_loss(sight, frames, model.places, *loss_weights(1.0, DiscoveryConfig())).item()

    one, two, none = truth == 1, truth == 2, truth == 9
    right = loss(one, two, none, none)
    assert right < loss(one | two, none, none, none), "two objects in one slot"
    assert right < loss(one & halves, two, one & ~halves, none), "an object in stripes"
    swapped = [torch.stack([one[0], two[1]]), torch.stack([two[0], one[1]])]
    assert right < loss(swapped[0], swapped[1], none, none), "slots that swap objects between scenes"


def test_balance_gives_way_to_the_price_of_slots() -> None:
    config = DiscoveryConfig()
    balance, size = zip(*(loss_weights(i / 100, config)[1:] for i in range(101)), strict=True)
    assert balance[0] > 0 and size[0] == 0 and balance[-1] == 0 and size[-1] > 0
    assert all(a >= b for a, b in itertools.pairwise(balance)) and all(a <= b for a, b in itertools.pairwise(size))
