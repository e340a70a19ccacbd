from __future__ import annotations

import numpy as np
import torch

from perception.evaluation.visualise import (
    draw_paths,
    enlarge,
    grid,
    overlay,
    reconstruction,
    sheet,
    slot_colour,
    spotlight,
)
from perception.slots.model import SlotConfig, SlotModel


def test_an_overlay_paints_each_slot_in_its_own_colour_and_leaves_the_rest_grey() -> None:
    frame = np.full((4, 4, 3), (90, 60, 30), np.uint8)
    masks = np.zeros((2, 4, 4))
    masks[0, 0], masks[1, 1] = 1, 1
    painted = overlay(frame, masks, opacity=1.0)
    assert (
        np.abs(painted[0, 0] - slot_colour(0)).max() <= 1
        and np.abs(painted[1, 0] - slot_colour(1)).max() <= 1
    )
    assert (painted[2:] == 60).all()


def test_a_spotlight_shows_one_mask_alone() -> None:
    frame = np.full((4, 4, 3), (90, 60, 30), np.uint8)
    page = spotlight(frame, np.eye(4, dtype=bool))
    assert (page[np.eye(4, dtype=bool)] == 255).all() and (page[~np.eye(4, dtype=bool)] == 30).all()


def test_colours_are_fixed_and_distinct() -> None:
    colours = np.stack([slot_colour(k) for k in range(8)])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(8)
    assert apart.min() > 40


def test_a_grid_holds_its_images_unchanged() -> None:
    images = [[np.full((2, 3, 3), 10 * i + j, np.uint8) for j in range(3)] for i in range(2)]
    page = grid(images, gap=1)
    assert page.shape == (7, 13, 3)
    assert (page[4:6, 5:8] == images[1][1]).all() and (page[0] == 255).all()


def test_enlarging_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (enlarge(image, 3)[::3, ::3] == image).all() and (
        enlarge(image, 3)[2::3, 2::3] == image
    ).all()


def test_a_sheet_shows_frames_masks_and_reconstruction() -> None:
    model = SlotModel(SlotConfig(slots=2, width=8, channels=8, frame_size=(16, 16)))
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    frames[:, 2:6, 2:6] = 255
    with torch.no_grad():
        sights = model.encode_video(torch.from_numpy(frames)[:, None])
    page = sheet(list(frames), sights, factor=1, gap=0)
    assert page.shape == (48, 48, 3)
    assert (page[:16, :16] == frames[0]).all() and (
        page[32:, :16] == reconstruction(sights[0])
    ).all()


def test_paths_are_drawn_where_a_present_slot_went_and_nowhere_else() -> None:
    coordinates = np.zeros((5, 2, 4))
    coordinates[:, 0, 0] = np.linspace(-0.5, 0.5, 5)
    coordinates[:, 0, 3] = 1.0
    coordinates[:, 1, 1] = np.linspace(-0.9, 0.9, 5)
    page = draw_paths(np.zeros((16, 16, 3), np.uint8), coordinates, factor=8)
    drawn = page.any(axis=-1)
    assert drawn[64, 40:90].all() and not drawn[:40].any() and not drawn[90:].any()
