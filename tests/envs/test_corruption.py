"""Conditions change what is seen and nothing else, by as much as they say, and a run resumes with
them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runs import comparable, differences, trained
from tests.small import config
from vis_rpg.checks import check
from vis_rpg.envs.corruption import CHECK, CONDITIONS
from vis_rpg.envs.make import make_env, observed_task
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.errors import UserError
from vis_rpg.training.trainer import Trainer

FLOOR = (slice(30, 60), slice(2, 10))
"""Rows and columns of BlockPush's floor that nothing reaches in the films below."""


def film(
    *corrupt: str, seed: int = 1, steps: int = 6, **task: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (T, 64, 64, 3), labels (T, 64, 64) and positions (T, 3, 2) of the pusher's way up."""
    env = make_env({"name": "block_push", "corrupt": list(corrupt), **task}, "pixels", seed=0)
    obs, info = env.reset(seed=seed)
    frames, labels, positions = [], [], []
    for _ in range(steps):
        frames.append(obs[-1])
        labels.append(env.get_wrapper_attr("segmentation")(whole=True))
        positions.append(info["objects"])
        obs, _, _, _, info = env.step(np.array([0.1, 1.0], np.float32))
        assert np.array_equal(obs[0], frames[-1])  # what was seen is not seen anew
    return np.stack(frames), np.stack(labels), np.stack(positions)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_changes_frames_alone_and_follows_from_the_seed(name: str) -> None:
    (clean, labels, positions), (seen, seen_labels, seen_positions) = film(), film(name)
    assert np.array_equal(positions, seen_positions)
    assert (clean != seen).any((1, 2, 3)).mean() > 0.5  # a gain may be near 1
    assert name == "shake" or np.array_equal(labels, seen_labels)
    assert np.array_equal(seen, film(name)[0])
    drawn = name in ("noise", "light", "shake")
    assert np.array_equal(seen, film(name, seed=2)[0]) != drawn


def test_noise_light_and_grey_are_as_strong_as_they_say() -> None:
    floor = (slice(None), *FLOOR)
    clean, noisy = film()[0].astype(float), film("noise:8")[0].astype(float)
    assert (noisy - clean)[floor].std() == pytest.approx(8, rel=0.05)
    assert abs((noisy - clean)[floor].mean()) < 0.3
    bright = film("light:0.3", steps=40)[0].astype(float)[floor].mean((1, 2, 3))
    gains = bright / clean[floor].mean()
    assert 0.69 < gains.min() < 0.8 < 1.2 < gains.max() < 1.31
    grey = film("grey")[0]
    assert (grey == grey[..., :1]).all()
    half = film("grey:0.5")[0].astype(float)
    np.testing.assert_allclose(half, (clean + grey) / 2, atol=1.01)


def test_masks_follow_a_shaking_camera() -> None:
    clean, labels, _ = film()
    frames, moved, _ = film("shake:3")
    red, shaken = ((of[..., 0] > 130) & (of[..., 1] < 100) for of in (clean, frames))
    assert np.array_equal(red, labels == 1)
    overlap = (shaken & (moved == 1)).sum((1, 2)) / (shaken | (moved == 1)).sum((1, 2))
    still = (shaken & (labels == 1)).sum((1, 2)) / (shaken | (labels == 1)).sum((1, 2))
    assert overlap.min() > 0.6 > still.min()
    corners = [np.argwhere(of == 1)[0] for of in (*moved, *labels)]
    assert len({tuple(corners[t] - corners[t + len(moved)]) for t in range(len(moved))}) > 2


def test_texture_strip_and_shadow_lie_on_the_background() -> None:
    clean, labels, _ = film(steps=10)
    for condition in ("texture", "strip:40", "shadow"):
        seen = film(condition, steps=10)[0]
        assert np.array_equal(seen[labels > 0], clean[labels > 0])
    still = film("texture", steps=10)[0][(slice(None), *FLOOR)]
    assert (still == still[:1]).all()
    assert (still[0, ::, 0] != still[0, ::, CHECK]).any()
    strip = film("strip:3", steps=3)[0][:, 0]
    assert np.array_equal(strip[1, :-1], strip[0, 1:])
    dark = film("shadow:0.5")[0].astype(float) / clean[:6].clip(1)
    assert dark.min() < 0.55
    assert (dark[labels[:6] == 0] <= 1).all()


def test_jpeg_is_worse_where_quality_is_lower() -> None:
    clean = film()[0].astype(float)
    errors = [np.abs(film(f"jpeg:{quality}")[0] - clean).mean() for quality in (95, 50, 10)]
    assert errors == sorted(errors)
    assert 0 < 1.3 * errors[0] < errors[2]


def test_twins_are_of_one_colour_and_stripes_are_on_the_blocks() -> None:
    clean, labels, _ = film()
    twins, striped = (film(looks=looks)[0] for looks in ("twins", "striped"))
    green, blue = labels == 2, labels == 3
    assert np.array_equal(twins[green], clean[green])
    assert (twins[blue] == twins[green][0]).all()
    assert np.array_equal(striped[labels < 2], clean[labels < 2])
    assert len(np.unique(striped[green], axis=0)) > 1 == len(np.unique(clean[green], axis=0))
    with pytest.raises(UserError, match="looks=twin "):
        film(looks="twin")


def test_what_cannot_be_is_told() -> None:
    for word, told in {
        "fog": "choose from texture:0.15, shadow:0.4, ",
        "noise:loud": "between 0 and 255, as in noise:5",
        "strip:0.4": "between 1 and 64",
        "jpeg:101": "between 1 and 100",
    }.items():
        with pytest.raises(UserError, match=f"^condition {word}: .*{told}"):
            film(word)
    with pytest.raises(UserError, match="each condition once"):
        film("noise", "noise:20")
    gym = {"name": "gym", "id": "tests.fake_envs:vis_rpg_tests/Blank-v0"}
    assert make_env({**gym, "corrupt": ["noise"]}, "pixels").reset(seed=0)[0].std() > 0
    with pytest.raises(UserError, match="does not tell what its pixels show"):
        make_env({**gym, "corrupt": ["shadow"]}, "pixels")
    with pytest.raises(UserError, match="use obs=pixels"):
        check(config("obs=state", "obs.corrupt=[noise:5]"))
    for own in ({"corrupt": ["noise"]}, {"looks": "striped"}):
        with pytest.raises(UserError, match=r"use render\.backend=egl"):
            make_vector_envs({"name": "block_push", **own}, "pixels", 1, [0], "warp")


def test_environments_in_workers_see_the_same() -> None:
    task = observed_task(config("task=adroit_door", "obs=pixels", "obs.corrupt=[shake,noise]"))
    [envs] = make_vector_envs(task, "pixels", 2, [0])
    try:
        first, then = envs.reset(), envs.step(np.ones((2, 28), np.float32)).obs
    finally:
        envs.close()
    for index in range(2):
        env = make_env(task, "pixels")
        assert np.array_equal(env.reset(seed=index)[0], first[index])
        assert np.array_equal(env.step(np.ones(28, np.float32))[0], then[index])


def test_a_run_with_conditions_resumes_to_the_last_bit(tmp_path: Path) -> None:
    words = ("task=maze", "obs=pixels", "obs.corrupt=[strip,light:0.2,shake,noise:5]")
    Trainer(config(f"out={tmp_path}", *words, "steps=150")).run()
    Trainer(config(f"out={tmp_path}", *words, "resume=true")).run()
    assert differences(comparable(tmp_path), comparable(trained(*words))) == []
