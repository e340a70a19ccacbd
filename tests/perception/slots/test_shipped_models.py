"""The shipped slot models on fresh frames."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from perception.discovery.collect import Trajectories, collect_random_trajectories
from perception.encoding import frequencies_for
from perception.evaluation.diagnostics import diagnose_failures
from perception.evaluation.evaluate import encode_episodes, evaluate, resting_jitter
from perception.slots.model import SlotModel
from vis_rpg.envs.make import make_env
from vis_rpg.errors import UserError

FILE = Path(__file__).parents[3] / "assets" / "slots" / "block_push.safetensors"


@pytest.mark.parametrize(
    "path", sorted(FILE.parent.glob("*.safetensors")), ids=lambda path: path.stem
)
def test_every_shipped_model_can_be_loaded_and_has_its_card(path: Path) -> None:
    model, card = SlotModel.load(path, (64, 64))
    assert (
        card["task"] == path.stem
        and path.with_suffix(".json").is_file()
        and path.stat().st_size <= 1_000_000
    )
    assert model.sizes.min() > 4, "each slot has seen its thing"


@pytest.fixture(scope="module", params=[1, 2])
def trajectories(request: pytest.FixtureRequest) -> Trajectories:
    try:
        env = gymnasium.make(
            "vis_rpg/BlockPush-v0", obs="pixels", blocks=request.param, disable_env_checker=True
        )
    except UserError as error:
        pytest.skip(str(error))
    return collect_random_trajectories(
        env, count=4, steps=200, seed=7_000 + request.param, truth=True
    )


def test_the_shipped_model_keeps_its_promise(trajectories: Trajectories) -> None:
    assert FILE.stat().st_size <= 1_000_000
    model, card = SlotModel.load(FILE, (64, 64))
    assert card["task"] == "block_push" and card["frames"] > 0
    assert trajectories.segmentation is not None
    scores = evaluate(model, trajectories.frames, trajectories.segmentation, trajectories.objects)
    assert scores["fg_ari"] >= 0.97 and scores["ari"] >= 0.97 and scores["worst_iou"] >= 0.9
    # Three times as long as an episode; at the end blocks lie side by side in corners.
    assert (
        scores["video_fg_ari"] >= 0.95
        and scores["switch_rate"] <= 0.01
        and scores["worst_position_r2"] >= 0.98
    )
    assert min(scores["presence"]) > 0.95 and max(scores["spare_presence"], default=0.0) < 0.05


def test_the_shipped_model_has_no_known_failure(trajectories: Trajectories) -> None:
    model, _ = SlotModel.load(FILE)
    assert diagnose_failures(model, trajectories.frames[:, ::4]) == []


ALONE = ("maze", "ant_push", "cheetah_back")
"""Tasks that need no robotics packages and no Vulkan."""
OTHERS = (
    "metaworld_basketball",
    "metaworld_stick_pull",
    "adroit_door",
    "adroit_hammer",
    "cabinet_sparse",
    "cabinet_dense",
)


@pytest.mark.parametrize(
    "task", [*ALONE, *(pytest.param(task, marks=pytest.mark.slow) for task in OTHERS)]
)
def test_no_shipped_model_would_be_rejected(task: str) -> None:
    try:
        env = make_env({"name": task}, "pixels")
    except UserError as error:
        pytest.skip(str(error))
    known = env.has_wrapper_attr("segmentation")
    held_out = collect_random_trajectories(
        env,
        count=4 if task in ALONE else 20,
        steps=20,
        seed=10_000,
        truth=known,
        randomized_reset=True,
    )
    model, _ = SlotModel.load(FILE.with_stem(task))
    truth = held_out.segmentation if known else None
    assert diagnose_failures(model, held_out.frames, truth) == []


def test_the_encoding_of_a_resting_object_is_quiet(trajectories: Trajectories) -> None:
    model, _ = SlotModel.load(FILE)
    assert frequencies_for(resting_jitter(model, trajectories.frames)) >= model.config.frequencies


@pytest.mark.parametrize("sigma", [2, 5])
def test_under_noise_a_block_at_rest_turns_the_highest_frequency_by_less_than_the_limit(
    trajectories: Trajectories, sigma: int
) -> None:
    model, _ = SlotModel.load(FILE)
    clean, positions, truth = (
        of[:3, :40]
        for of in (trajectories.frames, trajectories.positions, trajectories.segmentation)
    )
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    frames = (clean + noise).round().clip(0, 255).astype(np.uint8)
    coordinates = np.stack(
        [sight.coordinates.numpy() for sight in encode_episodes(model, frames)], axis=1
    )
    owners = evaluate(model, clean, truth, trajectories.objects)["slots"][1 : trajectories.objects]
    moves = np.abs(np.diff(coordinates[:, :, owners, :2], axis=1)).max(axis=-1)
    resting = np.abs(np.diff(positions[:, :, 1:], axis=1)).max(axis=-1) < 1e-4
    jitter = max(np.quantile(moves[..., k][resting[..., k]], 0.99) for k in range(len(owners)))
    assert frequencies_for(resting_jitter(model, frames)) <= frequencies_for(jitter)


def test_random_actions_move_what_can_be_moved_and_repeat_by_seed(
    trajectories: Trajectories,
) -> None:
    assert trajectories.positions is not None
    assert (trajectories.positions[:, -1] != trajectories.positions[:, 0]).any(axis=(0, 2)).all()
    blocks = trajectories.positions.shape[2] - 1
    env = gymnasium.make(
        "vis_rpg/BlockPush-v0", obs="pixels", blocks=blocks, disable_env_checker=True
    )
    again = collect_random_trajectories(env, count=1, steps=20, seed=7_000 + blocks)
    assert again.segmentation is None
    assert (again.frames[0] == trajectories.frames[0, :20]).all()


def test_things_behind_a_hand_stay_where_they_are() -> None:
    try:
        env = make_env({"name": "adroit_door"}, "pixels")
    except UserError as error:
        pytest.skip(str(error))
    model, _ = SlotModel.load(FILE.with_name("adroit_door.safetensors"), (64, 64))
    held = collect_random_trajectories(env, count=6, steps=100, seed=3, truth=True)
    assert held.segmentation is not None
    scores = evaluate(model, held.frames, held.segmentation, held.objects, held.positions)
    seen, remembered = scores["moves_at_rest_seen"], scores["moves_at_rest"]
    assert isinstance(seen, float) and isinstance(remembered, float)
    assert seen > 0.02 and remembered < 0.3 * seen
