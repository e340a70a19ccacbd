"""The background is what lies behind all that moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from perception.images import as_images
from perception.slots.background import (
    estimate_background,
    flickering,
    foreground_alpha,
    nearest_background,
    never_uncovered,
)
from tests.perception.scene import empty_floor, roll_scene


def still(steps: int, clips: int = 1) -> NDArray[np.uint8]:
    """Clips (E, T, 32, 32, 3) of the empty floor."""
    return np.broadcast_to(empty_floor(), (clips, steps, *empty_floor().shape)).copy()


def test_background_is_found_behind_things_that_rest_at_their_start_for_most_of_the_time() -> None:
    clips = roll_scene(12, 60, 3, seed=0).frames
    assert (np.median(clips, axis=(0, 1)) != empty_floor()).any(), "else the scene is too easy"
    assert (estimate_background(clips) == empty_floor()).all()


def test_a_thing_that_comes_to_rest_for_good_is_no_background() -> None:
    clips = still(40, clips=3)
    for episode, start in enumerate((2, 10, 20)):
        clips[episode, start : start + 3, 5:8, 5:8] = 200
    clips[0, 12:, 5:8, 5:8] = 200
    assert (estimate_background(clips) == empty_floor()).all()


def test_what_is_covered_most_of_the_time_continues_its_neighbours() -> None:
    clips = still(200)
    for column, share in enumerate(
        (0.74, 0.68, 0.6, 0.5, 0.3, 0.1)
    ):  # a door: the nearer to its hinge, the longer it covers the floor
        clips[0, : int(200 * share), 14:24, 6 + column] = (180, 140, 60)
    assert (np.median(clips, axis=(0, 1)) != empty_floor()).any(), "else the scene is too easy"
    assert (estimate_background(clips) == empty_floor()).all()


@pytest.mark.parametrize(
    ("mark", "cover", "share"),
    [((200, 30, 30), 100, 0.2), ((48, 40, 40), 40, 0.3)],
    ids=["bright", "dim"],
)
def test_a_mark_on_the_floor_that_is_covered_now_and_then_stays(
    mark: tuple[int, int, int], cover: int, share: float
) -> None:
    clips = still(100)
    clips[:, :, 20, 20] = mark  # unlike all of its neighbours
    with_mark = clips[0, 0].copy()
    clips[0, : int(100 * share), 16:24, 16:24] = cover
    assert (estimate_background(clips) == with_mark).all()


def test_what_lies_in_one_place_in_all_clips_is_background() -> None:
    clips = still(40, clips=3)
    clips[:, :, 5:8, 5:8] = 200
    assert (estimate_background(clips) == clips[0, 0]).all()


def sliding(rows: slice) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames (90, 32, 32, 3) of a brown block of ten rows that slides by eight, and the floor on
    which `rows` are as brown as the block."""
    brown = (100, 40, 0)
    background = empty_floor().copy()
    background[rows, 8:14] = brown
    frames = np.broadcast_to(background, (90, *background.shape)).copy()
    for time, frame in enumerate(frames):
        frame[10 + time % 9 : 20 + time % 9, 8:14] = brown
    return frames, background


def test_what_slides_by_less_than_its_length_never_uncovered_its_middle() -> None:
    frames, background = sliding(slice(18, 20))  # where the block always is
    expected = np.zeros((32, 32), bool)
    expected[18:20, 8:14] = True
    assert (never_uncovered(frames, background) == expected).all()


def test_what_looks_like_a_thing_that_comes_near_now_and_then_is_background() -> None:
    frames, background = sliding(slice(27, 30))  # the block comes near in two positions of nine
    assert not never_uncovered(frames, background).any()


def test_a_strip_that_always_moves_is_background_and_a_thing_before_it_is_not() -> None:
    scene = roll_scene(8, 40, 3, seed=0)
    assert len(flickering(scene.frames, empty_floor())) == 0, "nothing moves all the time"
    clips, free = scene.frames, scene.segmentation == 0
    wave = 100 + 60 * np.sin(np.pi / 4 * (np.arange(32) + np.arange(40)[:, None]))
    strip = np.broadcast_to(wave[:, None, :, None], (40, 6, 32, 3)).astype(np.uint8)
    clips[:, :, 26:] = np.where(free[:, :, 26:, :, None], strip, clips[:, :, 26:])
    background = estimate_background(clips)
    others = flickering(clips, background)
    backgrounds = as_images(torch.from_numpy(np.concatenate([background[None], others])))
    frames = as_images(torch.from_numpy(clips.reshape(-1, 32, 32, 3)))
    truth = torch.from_numpy(scene.segmentation.reshape(-1, 32, 32) > 0)

    def right(empty: torch.Tensor) -> float:
        alpha = foreground_alpha(frames, nearest_background(frames, empty), 0.025, 0.0025)
        return ((alpha > 0.5) == truth).float().mean().item()

    assert right(backgrounds) > 0.998
    assert right(backgrounds[:1]) < 0.9, "else there is nothing to mend"


@pytest.mark.parametrize("floor", [40, 44], ids=["amid a level", "at the edge of a level"])
def test_noise_changes_nothing_but_itself(floor: int) -> None:
    clips = roll_scene(6, 40, 3, seed=0).frames
    clips[clips == 40] = floor
    noise = np.random.default_rng(0).integers(-3, 4, clips.shape)
    noisy = (clips + noise).astype(np.uint8)
    apart = estimate_background(noisy).astype(int) - estimate_background(clips)
    assert np.abs(apart).max() < 4


def test_each_pixel_is_compared_with_the_nearest_of_the_empty_scenes() -> None:
    backgrounds = torch.rand(2, 3, 4, 4)
    mixed = backgrounds[0].clone()
    mixed[:, :2] = backgrounds[1][:, :2]
    chosen = nearest_background(mixed[None], backgrounds)
    assert torch.equal(chosen[0], mixed)
    assert foreground_alpha(mixed[None], chosen, 0.15, 0.02).max() < 0.01


def test_alpha_is_half_at_the_threshold_and_grows_with_the_distance() -> None:
    frames = torch.zeros(1, 3, 1, 3)
    frames[0, 0, 0] = torch.tensor([0.05, 0.1, 0.15])
    alpha = foreground_alpha(frames, torch.zeros_like(frames), threshold=0.1, softness=0.01)[0, 0]
    assert alpha[0] < 0.01 and alpha[1].item() == pytest.approx(0.5, abs=1e-3) and alpha[2] > 0.99
