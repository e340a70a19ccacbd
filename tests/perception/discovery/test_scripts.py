"""discover_objects and visualise_slots from end to end, in seconds: what they write and what they
refuse."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from perception.discovery.train import DiscoveryConfig
from perception.slots.model import SlotModel
from perception.slots.segments import SegmentConfig
from tests.runs import run_script
from vis_rpg.analysis import discovery_ablation, discovery_benchmark, discovery_conditions
from vis_rpg.compose import checked, compose
from vis_rpg.config import AblateConfig

SMALL = [
    "task=maze",
    "frames=100",
    "held_out=100",
    "trajectory_length=25",
    "training.steps=2",
    "model.width=8",
]


def discover(out: Path, *words: str, raised: Iterable[list[str]] = ([],)) -> int:
    """Run discover_objects with these words, into model.safetensors of the folder `out`; its exit
    code.

    raised: the failures of each model; two updates make none without.
    """
    answers = itertools.cycle(raised)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vis_rpg.analysis.discovery_benchmark.diagnose_failures", lambda *of: next(answers)
        )
        return run_script(
            patch, "discover_objects", *SMALL, f"out={out / 'model.safetensors'}", *words
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the one model of seed 1."""
    folder = tmp_path_factory.mktemp("alone")
    assert discover(folder, "seed=1") == 0
    return folder


def test_one_seed_makes_one_model_and_its_card(alone: Path) -> None:
    assert sorted(path.name for path in alone.iterdir()) == ["model.json", "model.safetensors"]
    card = json.loads((alone / "model.json").read_text())
    model, inside = SlotModel.load(alone / "model.safetensors", (64, 64))
    assert (model.config.slots, model.config.width) == (1, 8)
    assert (card["seed"], card["frames"], card["updates"], inside["scores"]) == (
        1,
        100,
        2,
        card["scores"],
    )
    assert "training.steps=2" in card["command"] and len(card["scores"]["all"]["iou"]) == 1


def test_a_model_with_a_known_failure_is_written_aside_with_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discover(tmp_path, raised=[["an object is split between slots 0 and 1"]]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.rejected.json",
        "model.rejected.safetensors",
    ]
    card = json.loads((tmp_path / "model.rejected.json").read_text())
    assert card["failures"] == ["an object is split between slots 0 and 1"]
    assert (
        SlotModel.load(tmp_path / "model.rejected.safetensors")[1]["failures"] == card["failures"]
    )
    printed = capsys.readouterr()
    assert (
        "failure: an object is split between slots 0 and 1; try: lower model.slots" in printed.out
    )
    assert f"model: {tmp_path / 'model.rejected.safetensors'} (slots: 1; " in printed.out
    last = printed.err.splitlines()[-1]
    assert (
        last.startswith("error: known failures on held-out frames")
        and str(tmp_path / "model.rejected.safetensors") in last
    )


def test_the_card_says_how_trajectories_began(alone: Path) -> None:
    assert "from randomized resets" in json.loads((alone / "model.json").read_text())["data"]
    assert "from plain resets" in discovery_benchmark.described(
        compose(["task=gym"], "discover"), False
    )


def test_block_push_is_scored_in_looks_that_it_was_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discover(tmp_path, "task=block_push", "trajectory_length=6") == 0
    scores = json.loads((tmp_path / "model.json").read_text())["scores"]
    assert list(scores) == [
        "blocks=1",
        "blocks=2",
        "blocks=1, other looks",
        "blocks=2, other looks",
    ]
    assert [values["mean_position_r2"] is None for values in scores.values()] == [
        False,
        False,
        True,
        True,
    ]
    rows = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "FG-ARI" in line and "video" not in line
    ]
    assert [row.split("│")[-3].strip() for row in rows] == ["0.97", "0.97", "0.9", "0.9"]


def test_several_seeds_make_a_model_each_and_one_file_that_judges_them(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = "an object is split between slots 0 and 1"
    assert discover(tmp_path, "seeds=2", raised=[[split], []]) == 3, (
        "one that is rejected does not stop the others"
    )
    names = ["model-seed-0.rejected.safetensors", "model-seed-1.safetensors", "model-seeds.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    results = json.loads((tmp_path / "model-seeds.json").read_text())
    first, second = results["seeds"]
    assert (results["task"], results["frames"], first["seed"], second["seed"]) == (
        "maze",
        100,
        0,
        1,
    )
    assert (first["failures"], second["failures"]) == ([split], [])
    row = results["summary"]["all"]["ari"]
    assert row["bar"] == 0.9 and row["each"] == {
        "0": first["scores"]["all"]["ari"],
        "1": second["scores"]["all"]["ari"],
    }
    files = [(tmp_path / name).read_bytes() for name in names[:2]]
    assert files[0] != files[1], "frames and weights of its own"
    shown = capsys.readouterr().out
    assert all(
        words in shown
        for words in ("ARI with background", "position R²", "IoU: agent", "seed 1", " of 2")
    )
    card = json.loads((alone / "model.json").read_text())
    assert (card["scores"], card["jitter"]) == (second["scores"], second["jitter"]), (
        "a seed is the same alone and among others"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["frames=50"], "frames=50: must be at least 100"),
        (["seeds=0"], "seeds=0: must be above 0"),
        (["model.slot=3"], "did you mean model.slots?"),
        (["+training.pace=1"], "training.pace: no such setting; there are "),
        (["task=bandit"], "it has no picture"),
        (["runtime=graph"], "runtime=graph: choose one of eager, compile"),
        (["precision=float16"], "precision=float16: choose one of float32, bfloat16"),
        (["device=tpu"], "device=tpu: choose auto"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, words: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert discover(tmp_path, *words) == 2
    assert says in capfd.readouterr().err


def test_a_slot_model_shown_on_another_task_is_told(
    alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={alone / 'model.safetensors'}", f"out={tmp_path}", "columns=2"]
    for task, told in (("task=block_push", True), ("task=maze", False)):
        assert run_script(monkeypatch, "visualise_slots", task, *words) == 0
        said = "was trained on task=maze and is shown on task=block_push" in capfd.readouterr().err
        assert said == told


def test_pictures_of_a_slot_model(
    alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [
        "task=maze",
        f"model={alone / 'model.safetensors'}",
        f"out={tmp_path / 'pictures'}",
        "columns=3",
    ]
    assert run_script(monkeypatch, "visualise_slots", *words) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "slot_failures.png",
        "slot_paths.png",
        "slots.png",
    ]
    assert cv2.imread(str(tmp_path / "pictures" / "slot_failures.png")).std() > 10


def test_each_ablation_overrides_settings_that_exist() -> None:
    usual = compose(["task=adroit_hammer"], "ablate")
    for ablations in discovery_ablation.KINDS.values():
        assert [name for name, words in ablations.items() if not words] == ["everything"]
        for word in itertools.chain(*ablations.values()):
            key, _ = word.split("=")
            without = OmegaConf.merge(usual, OmegaConf.from_dotlist([word]))
            assert OmegaConf.select(without, key) != OmegaConf.select(
                usual, key, throw_on_missing=True
            )
            assert OmegaConf.select(usual, key) is not None, key
            discovery_benchmark.check(checked(without, AblateConfig))


def test_the_configs_defaults_are_those_of_the_code() -> None:
    config = compose(["task=maze"], "discover")
    assert discovery_benchmark.discovery_config(config, 0) == DiscoveryConfig()
    frames = np.zeros((1, 1, 64, 64, 3))
    assert discovery_benchmark.slot_config(config, frames).segments == SegmentConfig()


@pytest.mark.slow
def test_an_ablation_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_script(monkeypatch, "ablate_discovery", *SMALL, f"out={tmp_path / 'ablation.json'}")
        == 0
    )
    results = json.loads((tmp_path / "ablation.json").read_text())["results"]
    assert set(results) == {"proposals", "slots"}
    assert "no splits" not in results["proposals"], "the maze has none"
    for ablations in results.values():
        assert all(set(seeds) == {"0"} for seeds in ablations.values()) and len(ablations) > 5
    assert results["proposals"]["everything"]["0"]["all"]["ari"] > 0.5, (
        "nobody need learn to see them"
    )
    assert "most common colour as background" in capsys.readouterr().out


def test_conditions_are_tested_once_and_a_repeated_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> dict[str, dict[str, dict[str, Any]]]:
        out = f"out={tmp_path / 'conditions.json'}"
        assert run_script(monkeypatch, "test_conditions", *SMALL, out, *words) == 0
        return json.loads((tmp_path / "conditions.json").read_text())["results"]

    learned = discovery_conditions.learn
    seen: list[np.ndarray] = []
    monkeypatch.setattr(
        discovery_conditions,
        "learn",
        lambda config, seed, frames: seen.append(frames[0]) or learned(config, seed, frames),
    )
    found = run("conditions=[clean,noise:40]")
    assert {name: list(protocols) for name, protocols in found.items()} == {
        "clean": ["clean"],
        "noise:40": ["clean", "L"],
    }
    clean, noisy = seen  # one model for all conditions, and one of its own
    assert (noisy.astype(float) - clean).std() == pytest.approx(40, rel=0.3)
    ari = {name: found[name]["clean"]["0"]["all"]["ari"] for name in found}
    assert ari["clean"] > ari["noise:40"]
    assert run("conditions=[noise:40]") == found
    assert len(seen) == 2
    assert run_script(monkeypatch, "test_conditions", *SMALL, "conditions=[fog]") == 2
    out = f"out={tmp_path / 'conditions.json'}"
    for words in (
        [out, "training.steps=3"],
        ["corrupt=[noise]"],
        ["task=gym", "task.id=tests.fake_envs:vis_rpg_tests/Blank-v0"],
    ):
        assert run_script(monkeypatch, "test_conditions", *SMALL, *words) == 2
