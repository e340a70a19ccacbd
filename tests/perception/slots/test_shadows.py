"""Shadows are background, dark things are not, and where nothing is shaded nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from perception.discovery.collect import collect_random_trajectories
from perception.images import as_images
from perception.slots.background import View, view
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.shadows import darkest_shadow, shades
from vis_rpg.envs.make import make_env
from vis_rpg.resources import ASSETS

THRESHOLD, SOFTNESS = SlotConfig().threshold, SlotConfig().softness
BROWN, GREY = (150, 110, 80), (160, 160, 160)


def floor(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A floor (32, 32, 3) in stripes of these colours."""
    stripes = np.empty((32, 32, 3), np.uint8)
    for part, colour in zip(np.array_split(np.arange(32), len(colours)), colours, strict=True):
        stripes[part] = colour
    return stripes


def film(
    empty: NDArray[np.uint8], colour: tuple[int, int, int], shaded: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Clips (4, 50, 32, 32, 3) of a block anywhere, darker beside it, and where it is."""
    rng = np.random.default_rng(0)
    clips = np.broadcast_to(empty, (4, 50, *empty.shape)).copy()
    truth = np.zeros(clips.shape[:-1], bool)
    for frame, mask in zip(clips.reshape(-1, *empty.shape), truth.reshape(-1, 32, 32), strict=True):
        y, x = rng.integers(0, 24, 2)
        beside = np.s_[y + 2 : y + 8, x + 2 : x + 8]
        frame[beside] = np.round(frame[beside] * (1 - shaded))
        frame[y : y + 6, x : x + 6], mask[y : y + 6, x : x + 6] = colour, True
    return clips, truth


def measured(clips: NDArray[np.uint8], empty: NDArray[np.uint8]) -> float:
    return darkest_shadow(clips, empty, THRESHOLD, 0.1)


def seen(clips: NDArray[np.uint8], empty: NDArray[np.uint8], darkest: float) -> View:
    images = as_images(torch.from_numpy(clips.reshape(-1, 32, 32, 3)))
    backgrounds = as_images(torch.from_numpy(empty[None]))
    return view(images, backgrounds, THRESHOLD, SOFTNESS, darkest=darkest)


@pytest.mark.parametrize("shaded", [0.15, 0.4, 0.7])
def test_a_shadow_is_measured_and_is_background(shaded: float) -> None:
    empty = floor(BROWN, GREY)
    clips, truth = film(empty, (200, 30, 30), shaded)
    darkest = measured(clips, empty)
    assert darkest == pytest.approx(1 - shaded, abs=0.02)
    alpha = seen(clips, empty, darkest).alpha > 0.5
    assert torch.equal(alpha, torch.from_numpy(truth.reshape(-1, 32, 32)))
    plain = seen(clips, empty, 1.0).alpha > 0.5
    assert (plain & ~alpha).sum() > 0.3 * alpha.sum(), "else there is nothing to mend"


@pytest.mark.parametrize("colours", [(BROWN, GREY), (GREY,)], ids=["two colours", "grey alone"])
def test_a_dark_grey_thing_is_no_shadow(colours: tuple[tuple[int, int, int], ...]) -> None:
    empty = floor(*colours)
    clips, _ = film(empty, (90, 90, 90))
    assert measured(clips, empty) == 1
    plain, same = seen(clips, empty, 1.0), seen(clips, empty, measured(clips, empty))
    assert torch.equal(plain.alpha, same.alpha)


def test_what_is_darker_than_shadows_is_a_thing_before_what_it_is_a_shade_of_too() -> None:
    empty = floor(BROWN, GREY)
    shaded, _ = film(empty, (200, 30, 30), 0.3)
    black, truth = film(empty, (40, 40, 40), 0.3)
    alpha = seen(black, empty, measured(shaded, empty)).alpha > 0.5
    assert torch.equal(alpha, torch.from_numpy(truth.reshape(-1, 32, 32)))


def test_shades_are_of_the_background_that_is_darkened_least() -> None:
    backgrounds = torch.tensor([[0.8, 0.4, 0.2], [0.2, 0.4, 0.8]]).view(2, 3, 1, 1)
    pixels = torch.stack(
        [backgrounds[0] * 0.5, backgrounds[1] * 0.75, backgrounds[0] * 1.2, backgrounds[0].flip(0)]
    )
    kept = shades(pixels, torch.cat([backgrounds, backgrounds[:1] * 0.8]))
    torch.testing.assert_close(kept.flatten()[:3], torch.tensor([0.625, 0.75, 1.0]))


@pytest.mark.parametrize("name", ["block_push", "metaworld_stick_pull"])
def test_clean_scenes_are_seen_as_before_to_the_last_bit(name: str) -> None:
    model, _ = SlotModel.load(ASSETS / f"slots/{name}.safetensors")
    empty = model.backgrounds[-1].numpy()
    measured_of = {}
    for conditions in ([], ["shadow"]):
        env = make_env({"name": name, "corrupt": conditions}, "pixels")
        clips = collect_random_trajectories(env, 6, 20, 0, False, True).frames
        measured_of[len(conditions)] = measured(clips, empty)
    assert measured_of[0] == 1, "so that `view` looks for no shadows"
    assert measured_of[1] == pytest.approx(0.6, abs=0.03)
