"""`vis-rpg pathwise` writes its curves, runs and pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.runs import run_script
from vis_rpg.pathwise.figure import updates_to


def test_it_writes_a_row_for_each_run_and_a_picture_for_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("tasks=[peaks]", "seeds=[3,4]", "updates=3", "log_every=2", f"out={tmp_path}")
    assert run_script(monkeypatch, "pathwise", *words) == 0
    with (tmp_path / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert [int(row["update"]) for row in curves[::2]] == [0, 2, 3] * 3
    with (tmp_path / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(row["agent"], row["seed"]) for row in runs] == [
        (agent, seed) for agent in ("rpg", "pathwise", "reinforce") for seed in ("3", "4")
    ]
    for run in runs:
        own = [row for row in curves if (row["agent"], row["seed"]) == (run["agent"], run["seed"])]
        assert run["return"] == own[-1]["return"]
        assert int(run["updates_to_0.9"]) in (0, 2, 3)
    assert (tmp_path / "peaks.png").stat().st_size > 10_000


def test_updates_until_nine_tenths_of_the_rise() -> None:
    rows = [[0, 1.0, 0.0], [10, 2.0, 0.0], [20, 10.5, 0.0], [25, 11.0, 1.0], [30, 5.0, 0.0]]
    assert updates_to(rows) == 20
    assert updates_to(rows, 1.0) == 25


def test_an_unknown_task_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, "pathwise", "tasks=[maze]") == 2
    assert "tasks=['maze']: choose from peaks" in capsys.readouterr().err
