"""Logs: a line is one JSON object, and a resumed run has no line twice."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vis_rpg.errors import UserError
from vis_rpg.training.logger import Logger


def lines(folder: Path) -> list[dict[str, Any]]:
    def no_nan(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return [
        json.loads(line, parse_constant=no_nan)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_what_is_written_is_there_at_once_and_in_tensorboard(tmp_path: Path) -> None:
    logger = Logger(tmp_path, None, {}, None)
    logger.write({"step": 50, "coverage": 0.25, "updates": 3})
    assert lines(tmp_path) == [{"step": 50, "coverage": 0.25, "updates": 3}]
    logger.write({"step": 100, "coverage": 0.5, "updates": 6})
    logger.close()
    assert scalars(tmp_path, "coverage") == [(50, 0.25), (100, 0.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(tmp_path: Path, value: float) -> None:
    logger = Logger(tmp_path, None, {}, None)
    logger.write({"step": 50, "return": value})
    logger.close()
    assert lines(tmp_path) == [{"step": 50, "return": None}]


def test_a_new_run_begins_with_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    Logger(tmp_path, None, {}, None).close()
    assert lines(tmp_path) == []


def test_a_resumed_run_drops_what_came_after_its_checkpoint_and_lines_cut_short(
    tmp_path: Path,
) -> None:
    logger = Logger(tmp_path, None, {}, None)
    for step in (50, 100, 150, 200):
        logger.write({"step": step, "coverage": step / 1000})
    logger.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    logger = Logger(tmp_path, None, {}, 150)
    logger.write({"step": 200, "coverage": 0.9})
    logger.close()
    assert [line["step"] for line in lines(tmp_path)] == [50, 100, 150, 200]
    assert dict(scalars(tmp_path, "coverage"))[200] == pytest.approx(0.9)
    assert len(scalars(tmp_path, "coverage")) == 4


def test_a_resumed_run_whose_log_was_deleted_begins_one(tmp_path: Path) -> None:
    logger = Logger(tmp_path, None, {}, 100)
    logger.write({"step": 150})
    logger.close()
    assert lines(tmp_path) == [{"step": 150}]


class FakeWandb:
    """Stands for the package: notes what is asked of it, and gives each run without an id a new
    one."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def init(self, **settings: Any) -> SimpleNamespace:
        name = settings["id"] or f"run-{len(self.calls)}"
        self.calls.append((settings["project"], name, settings["resume"]))
        log = lambda metrics, step: self.calls.append((step, metrics))  # noqa: E731
        return SimpleNamespace(id=name, log=log, finish=lambda: self.calls.append("finished"))


def test_wandb_is_asked_only_where_a_project_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    quiet = Logger(tmp_path, None, {}, None)
    quiet.write({"step": 1})
    quiet.close()
    assert fake.calls == []
    logger = Logger(tmp_path, "mine", {"seed": 0}, None)
    logger.write({"step": 5, "x": 1.0})
    logger.close()
    assert fake.calls == [("mine", "run-0", "allow"), (5, {"step": 5, "x": 1.0}), "finished"]


def test_a_resumed_run_goes_on_in_its_wandb_run_and_a_new_one_begins_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume_step in (None, 50, 100, None):
        Logger(tmp_path, "mine", {}, resume_step).close()
    first, second, third, new = (call[1] for call in fake.calls[::2])
    assert first == second == third != new


def test_wandb_that_cannot_begin_is_one_line_and_leaves_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    monkeypatch.setitem(
        sys.modules, "wandb", None
    )  # importing it fails, as where it is not installed
    with pytest.raises(
        UserError, match="logger.wandb=mine needs the package wandb: pip install wandb"
    ):
        Logger(tmp_path, "mine", {}, None)

    def refuse(**settings: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(UserError, match="RuntimeError: no API key configured.*WANDB_MODE=offline"):
        Logger(tmp_path, "mine", {}, None)
    assert lines(tmp_path) == [{"step": 5}]
