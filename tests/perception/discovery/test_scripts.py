"""discover_objects and visualise_slots from end to end, in seconds: what they write and what they
refuse."""

from __future__ import annotations

import itertools
import json
import runpy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from perception.discovery.train import DiscoveryConfig
from perception.slots.model import SlotConfig, SlotModel
from tests.runs import ROOT, run_script
from vis_rpg.compose import compose

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

    raised: the alarms of each model; two updates make none that would not raise one.
    """
    answers = itertools.cycle(raised)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "perception.evaluation.diagnostics.diagnose_failures", lambda *of: next(answers)
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


def test_a_model_that_raises_an_alarm_is_written_aside_with_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discover(tmp_path, raised=[["an object is split between slots 0 and 1"]]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.rejected.json",
        "model.rejected.safetensors",
    ]
    card = json.loads((tmp_path / "model.rejected.json").read_text())
    assert card["alarms"] == ["an object is split between slots 0 and 1"]
    assert SlotModel.load(tmp_path / "model.rejected.safetensors")[1]["alarms"] == card["alarms"]
    printed = capsys.readouterr()
    assert "alarm: an object is split between slots 0 and 1; try: lower model.slots" in printed.out
    last = printed.err.splitlines()[-1]
    assert (
        last.startswith("error: held-out frames raise alarms")
        and str(tmp_path / "model.rejected.safetensors") in last
    )


def test_the_card_says_how_walks_began(alone: Path) -> None:
    assert "movable things anywhere" in json.loads((alone / "model.json").read_text())["data"]
    described = runpy.run_path(str(ROOT / "scripts" / "discover_objects.py"))["described"]
    assert "begin with everything where episodes start" in described(
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
    assert (first["alarms"], second["alarms"]) == ([split], [])
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
        (["frames=50"], "frames=50: at least 100"),
        (["seeds=0"], "seeds=0: at least 1"),
        (["model.slot=3"], "did you mean model.slots?"),
        (["+training.pace=1"], "training.pace: no such setting; there are "),
        (["task=bandit"], "it has no picture"),
        (["runtime=graph"], "runtime=graph: choose one of eager, compile"),
        (["precision=float16"], "precision=float16: choose one of float32, bfloat16"),
        (["device=tpu"], "device=tpu: choose auto"),
        (["training.features=1", "training.backbone=no_such"], "no_such is unknown to timm"),
        (["training.backbone=resnet18"], "give training.backbone and training.features together"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, words: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert discover(tmp_path, *words) == 2
    assert says in capfd.readouterr().err


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


def test_each_ablation_leaves_out_something_that_exists_and_puts_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = runpy.run_path(str(ROOT / "scripts" / "ablate_discovery.py"))
    usual = SlotConfig(joints=1, fine=16), DiscoveryConfig()
    for name, without in (
        ablation for ablations in script["KINDS"].values() for ablation in ablations.items()
    ):
        assert (
            (replace(usual[0], **without.model), replace(usual[1], **without.training)) != usual
            or without.constants
            or without.predict
            or name == "everything"
        )
        places = {
            key: (script["MODULES"][key.split(".")[0]], key.split(".")[1])
            for key in without.constants
        }
        before = {key: getattr(*place) for key, place in places.items()}
        with script["constants"](without.constants):
            assert all(
                getattr(*places[key]) == value != before[key]
                for key, value in without.constants.items()
            )
        assert all(getattr(*place) is before[key] for key, place in places.items())


@pytest.mark.slow
def test_an_ablation_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    assert (
        run_script(monkeypatch, "ablate_discovery", *SMALL, f"out={tmp_path / 'ablation.json'}")
        == 0
    )
    results = json.loads((tmp_path / "ablation.json").read_text())["results"]
    assert set(results) == {"things", "slots", "others"}
    assert "no limbs" not in results["things"], "the maze has none"
    for ablations in results.values():
        assert all(set(seeds) == {"0"} for seeds in ablations.values()) and len(ablations) > 5
    assert results["things"]["everything"]["0"]["all"]["ari"] > 0.5, "nobody need learn to see them"
    assert "median as background" in capsys.readouterr().out
