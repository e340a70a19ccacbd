"""A camera's brightness, shaking and noise are measured, and on exact frames nothing changes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from perception.discovery.camera import (
    Camera,
    changed,
    has_coarse_chroma,
    measure_camera,
    steadied,
)
from perception.discovery.common_fate import ProposalConfig
from perception.discovery.train import DiscoveryConfig, discover
from perception.images import as_images
from perception.slots.alignment import Alignment, shifted
from perception.slots.background import foreground_alpha, view
from perception.slots.model import SlotConfig, SlotModel
from vis_rpg.resources import ASSETS

THRESHOLD, SOFTNESS = SlotConfig().threshold, SlotConfig().softness


@pytest.fixture(scope="module")
def backgrounds() -> Tensor:
    """StickPull's empty scene, (1, 3, 64, 64)."""
    model, _ = SlotModel.load(ASSETS / "slots/metaworld_stick_pull.safetensors")
    return as_images(model.backgrounds)


def frames_of(background: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """Frames (B, 3, H, W) with a red block of 8 x 8 pixels somewhere, and where (B, H, W)."""
    generator = torch.Generator().manual_seed(0)
    frames, masks = background.repeat(count, 1, 1, 1), torch.zeros(count, 64, 64, dtype=torch.bool)
    for frame, mask in zip(frames, masks, strict=True):
        y, x = torch.randint(4, 52, (2,), generator=generator).tolist()
        frame[:, y : y + 8, x : x + 8] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
        mask[y : y + 8, x : x + 8] = True
    return frames, masks


def test_gain_and_shift_are_found_whatever_stands_before_the_background(
    backgrounds: Tensor,
) -> None:
    frames, _ = frames_of(backgrounds)
    generator = torch.Generator().manual_seed(1)
    shift = torch.rand(len(frames), 2, generator=generator) * 4 - 2
    gain = 0.9 + 0.2 * torch.rand(len(frames), generator=generator)
    seen = shifted(frames, shift) * gain.view(-1, 1, 1, 1)
    seen = seen + 0.01 * torch.randn(seen.shape, generator=generator)
    found_gain, found_shift = Alignment(backgrounds)(seen)
    assert (found_shift - shift).abs().max() < 0.15
    assert (found_shift - shift).abs().mean() < 0.04
    assert (found_gain / gain - 1).abs().max() < 0.01


def test_exact_frames_are_left_as_they_are_to_the_last_bit(backgrounds: Tensor) -> None:
    frames, masks = frames_of(backgrounds)
    gain, shift = Alignment(backgrounds)(frames)
    assert (gain == 1).all()
    assert (shift == 0).all()
    plain = view(frames, backgrounds, THRESHOLD, SOFTNESS)
    adaptive = view(frames, backgrounds, THRESHOLD, SOFTNESS, Alignment(backgrounds))
    assert torch.equal(plain.alpha, adaptive.alpha)
    assert torch.equal(plain.images, adaptive.images)
    assert torch.equal(plain.background, adaptive.background)
    assert torch.equal(plain.alpha > 0.5, masks)


@pytest.mark.parametrize("sigma", [2, 5, 10])
def test_noise_is_not_foreground_and_objects_are(backgrounds: Tensor, sigma: int) -> None:
    frames, masks = frames_of(backgrounds, 32)
    generator = torch.Generator().manual_seed(2)
    noisy = (frames + sigma / 255 * torch.randn(frames.shape, generator=generator)).clamp(0, 1)
    found = view(noisy, backgrounds, THRESHOLD, SOFTNESS, Alignment(backgrounds)).alpha > 0.5
    overlap = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
    assert overlap.mean() > 0.97
    plain = view(noisy, backgrounds, THRESHOLD, SOFTNESS).alpha > 0.5
    assert (plain & ~masks).sum() > 30 * (found & ~masks).sum()


def test_without_noise_thresholds_are_what_they_were(backgrounds: Tensor) -> None:
    frames, _ = frames_of(backgrounds)
    frames = frames + torch.linspace(0, 0.1, 64)  # distances of all kinds
    none = torch.zeros(len(frames), 64, 64)
    plain, measured = (
        foreground_alpha(frames, backgrounds.expand_as(frames), THRESHOLD, SOFTNESS, noise)
        for noise in (None, none)
    )
    assert torch.equal(plain, measured)


def test_the_rim_of_an_object_between_two_pixels_is_not_all_foreground(
    backgrounds: Tensor,
) -> None:
    frames, masks = frames_of(backgrounds)
    alignment = Alignment(backgrounds)
    alignment.spread.fill_(1e-3)
    for part in (0.3, 0.7):  # a column is mixed on either side
        seen = shifted(frames, torch.tensor([[part, 0.0]]).expand(len(frames), 2))
        alpha = view(seen, backgrounds, THRESHOLD, SOFTNESS, alignment).alpha > 0.5
        moved = torch.roll(masks, round(part), 2)
        overlap = (alpha & moved).sum((1, 2)) / (alpha | moved).sum((1, 2))
        assert overlap.min() > 0.85
        plain = view(seen, backgrounds, THRESHOLD, SOFTNESS).alpha > 0.5
        assert (plain & ~moved).sum() > (alpha & ~moved).sum()


def clips(kind: str, count: int = 12, steps: int = 20) -> np.ndarray:
    """Clips (E, T, 32, 32, 3) of two blocks that walk over a chequered floor."""
    rng = np.random.default_rng(0)
    floor = np.full((32, 32, 3), 90, np.uint8)
    floor[np.indices((32, 32)).sum(0) // 6 % 2 == 1] = 60
    films = np.empty((count, steps, 32, 32, 3), np.uint8)
    for film in films:
        places = rng.integers(2, 24, (2, 2))
        for t in range(steps):
            places = (places + rng.integers(-2, 3, (2, 2))).clip(0, 26)
            film[t] = floor
            for (y, x), colour in zip(places, ((220, 30, 30), (40, 60, 230)), strict=True):
                film[t, y : y + 6, x : x + 6] = colour
    if kind == "noise":
        films = (films + rng.normal(0, 5, films.shape)).round().clip(0, 255).astype(np.uint8)
    if kind == "light":
        gains = rng.uniform(0.9, 1.1, (count, steps, 1, 1, 1))
        films = (films * gains).round().clip(0, 255).astype(np.uint8)
    if kind == "shake":
        flat = torch.from_numpy(films.reshape(-1, 32, 32, 3))
        moves = torch.from_numpy(rng.uniform(-1, 1, (len(flat), 2))).float()
        moved = shifted(as_images(flat), moves) * 255
        films = moved.round().byte().permute(0, 2, 3, 1).numpy().reshape(films.shape)
    return films


def test_a_camera_is_measured() -> None:
    exact, noisy, bright, shaken = map(
        measure_camera, map(clips, ("exact", "noise", "light", "shake"))
    )
    assert exact.exact
    assert (exact.noise, exact.shift, exact.flicker) == (0, 0, 0)
    assert noisy.noise * 255 == pytest.approx(5, rel=0.15)
    assert bright.flicker > 0.02
    assert shaken.shift > 0.3
    assert not any(camera.exact for camera in (noisy, bright, shaken))


def test_steadied_clips_rest_where_nothing_moves() -> None:
    def unrest(films: np.ndarray) -> float:
        """Mean over pixels of the median absolute deviation: passing blocks are nothing to it."""
        frames = films.reshape(-1, 32 * 32 * 3).astype(float)
        return float(np.median(np.abs(frames - np.median(frames, 0)), 0).mean())

    for kind, left in (("light", 0.1), ("shake", 0.5)):
        before = clips(kind)
        assert unrest(steadied(before)) < left * unrest(before)


def test_changes_are_more_than_noise() -> None:
    film = clips("noise")[0]
    still = np.random.default_rng(1).normal(90, 5, (2, 32, 32, 3)).astype(np.uint8)
    noisy, exact = Camera(5 / 255, 0.0, 0.0, False), Camera(0.0, 0.0, 0.0, False)
    assert changed(still[:1], still[1:], noisy).mean() < 0.001
    assert changed(film[1:], film[:-1], noisy).any((1, 2)).mean() > 0.8
    assert np.array_equal(changed(film[1:], film[:-1], exact), (film[1:] != film[:-1]).any(-1))
    for kind in ("light", "shake"):
        steady, camera = steadied(clips(kind)), measure_camera(clips(kind))
        after, before = (part.reshape(-1, 32, 32, 3) for part in (steady[:, 1:], steady[:, :-1]))
        moved, raw = changed(after, before, camera), clips("exact")
        truly = (raw[:, 1:] != raw[:, :-1]).any(-1).reshape(-1, 32, 32)
        assert moved[truly].mean() > 5 * moved[~truly].mean()


@pytest.mark.parametrize("kind", ["exact", "noise", "shake"])
def test_discovery_adapts_to_the_camera_that_it_learns_from(tmp_path: Path, kind: str) -> None:
    config = SlotConfig(slots=2, width=16, channels=8, frame_size=(32, 32))
    training = DiscoveryConfig(steps=2, batch=4, proposals=ProposalConfig(clusters=4))
    model = discover([clips(kind)], config, training)
    assert model.config.adapt == (kind != "exact")
    assert model.config.slots == 2
    if model.alignment is None:
        return
    assert kind != "shake" or model.alignment.spread.max() > 0.01
    model.save(tmp_path / "model.safetensors", {})
    loaded, _ = SlotModel.load(tmp_path / "model.safetensors")
    film = torch.from_numpy(clips(kind)[0])
    ours, theirs = model(film), loaded(film)
    assert torch.equal(ours.coordinates, theirs.coordinates)
    assert torch.equal(ours.alpha, theirs.alpha)


def test_objects_rest_for_a_camera_that_shakes(backgrounds: Tensor) -> None:
    empty = (backgrounds * 255).round().byte().permute(0, 2, 3, 1)
    model = SlotModel(SlotConfig(slots=1, adapt=True), empty)  # its mask is the foreground
    frame, _ = frames_of(as_images(empty), 1)
    moves = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-1.5, 1.0]])
    seen = (shifted(frame.expand(3, -1, -1, -1), moves) * 255).round().byte().permute(0, 2, 3, 1)
    with torch.no_grad():
        output = model(seen)
    found = output.coordinates[:, 0, :2] * 32  # pixels
    np.testing.assert_allclose(found, found[:1].expand(3, 2), atol=0.25)
    picture = model.locate(output.decoded.masks)[:, 0, :2] * 32
    np.testing.assert_allclose(picture - picture[:1], moves, atol=0.3)


def test_a_pattern_that_moves_before_a_camera_at_rest_is_no_shaking() -> None:
    films = clips("exact")
    wave = np.sin((np.arange(32) + np.arange(20)[:, None]) * 2 * np.pi / 8)
    films[:, :, :6] = (128 + 64 * wave).astype(np.uint8)[None, :, None, :, None]
    assert measure_camera(films).exact


def test_a_black_or_white_frame_shows_nothing_that_cannot_be(backgrounds: Tensor) -> None:
    model = SlotModel(
        SlotConfig(slots=2, adapt=True), (backgrounds * 255).byte().permute(0, 2, 3, 1)
    )
    for level in (0, 255):
        with torch.no_grad():
            output = model(torch.full((1, 64, 64, 3), level, dtype=torch.uint8))
        assert output.coordinates.isfinite().all()


def test_compression_is_seen_by_its_coarse_colours(backgrounds: Tensor) -> None:
    frames, masks = frames_of(backgrounds)
    pictures = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    coded = [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for frame in pictures]
    decoded = np.stack([cv2.imdecode(code, cv2.IMREAD_COLOR) for code in coded])
    assert has_coarse_chroma(decoded)
    rng = np.random.default_rng(0)
    noisy = (pictures + rng.normal(0, 5, pictures.shape)).round().clip(0, 255).astype(np.uint8)
    for others in (pictures, noisy):
        assert not has_coarse_chroma(others)
    grey = decoded.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    assert not has_coarse_chroma(grey)
    images, alignment = as_images(torch.from_numpy(decoded)), Alignment(backgrounds)
    found = view(images, backgrounds, THRESHOLD, SOFTNESS, alignment, compressed=True).alpha > 0.5
    plain = view(images, backgrounds, THRESHOLD, SOFTNESS).alpha > 0.5
    overlaps = [((of & masks).sum() / (of | masks).sum()).item() for of in (found, plain)]
    assert overlaps[0] > 0.9 > 0.6 > overlaps[1]
