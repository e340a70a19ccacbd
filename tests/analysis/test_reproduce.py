"""Reproduction: its data fits the settings; a budget, Ctrl-C or a failure costs nothing done."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.runs import comparable, differences, facts, run_script
from vis_rpg.analysis import reproduce, reproduction, reproduction_report
from vis_rpg.analysis.paper import CEM_PLANNER, FIGURES, Figure, Row, tasks
from vis_rpg.compose import compose
from vis_rpg.errors import UserError
from vis_rpg.training import checkpoint

MAZE = Row(
    "Maze", ("task=maze",), 160, {"rpg": ((150, 0.5),), "mbsac": ((150, 0.4),)}, key="coverage"
)
PUSH = Row(
    "BlockPush, 1 block",
    ("task=block_push", "task.blocks=1"),
    320,
    {"rpg": ((100, 0.1), (999, 1.0))},
    goals={"state": 0.9},
    note="Ours.",
)
TINY = Figure("Fig. 11: tiny", (MAZE, PUSH), ("rpg",))
NAMES = ("maze-state-rpg", "blockpush-1-block-state-rpg")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIGURES, 11, TINY)
    monkeypatch.setattr(reproduce, "MEASURED", 50)
    monkeypatch.setattr(reproduction, "EPISODES", 2)


def words(out: Path, **more: object) -> list[str]:
    given: dict[str, object] = {"fig": 11, "preset": "debug", "seeds": 1, "device": "cpu"}
    return [f"{key}={value}" for key, value in {**given, "out": out, **more}.items()]


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Let the clock pass any budget after so many updates; it stands still until then."""
    from vis_rpg.training.learner import Learner

    step, made = Learner.step, []

    def counted(self: Learner) -> None:
        made.append(1)
        step(self)

    with_time = lambda: 0.0 if len(made) < updates else 1e9  # noqa: E731
    monkeypatch.setattr(Learner, "step", counted)
    monkeypatch.setattr(reproduce, "monotonic", with_time)


@pytest.mark.parametrize("preset", ["cpu", "paper"])
@pytest.mark.parametrize(
    "figure",
    [*(pytest.param(each, id=f"fig{key}") for key, each in FIGURES.items())]
    + [pytest.param(tasks(obs), id=f"tasks-{obs}") for obs in ("state", "pixels")],
)
def test_every_row_has_settings_that_exist_and_go_together(
    figure: Figure, preset: str, tmp_path: Path
) -> None:
    config = compose(["fig=5", f"preset={preset}", f"out={tmp_path}", "seeds=2"], "reproduce")
    jobs = reproduction.make_jobs(figure, config)  # which checks them
    curves = len(figure.rows) * len(figure.agents)
    assert len({job.out for job in jobs}) == len(jobs) == 2 * curves
    assert [job.config.seed for job in jobs] == [0] * curves + [1] * curves
    for job in jobs:
        assert job.config.steps + job.frames == job.row.steps
        assert job.frames == (4000 if figure.obs == "pixels" else 0)
        assert job.config.obs.kind == figure.obs
        assert job.config.agent.batch_size == (128 if preset == "cpu" else 512)
        scale = 5 if preset == "cpu" else 1
        assert job.config.agent.reward_scale == scale
        assert set(job.row.paper) <= {"rpg", "mbsac"}
    dense = {"cabinet_dense", "ant_push", "half_cheetah", "humanoid"}
    without_bonus = {job.config.task.name for job in jobs if job.config.exploration.name == "none"}
    assert without_bonus == {job.config.task.name for job in jobs} & dense


def test_the_paper_has_its_six_sparse_and_two_dense_tasks() -> None:
    assert [len(FIGURES[number].rows) for number in (5, 6, 7, 13)] == [1, 2, 6, 1]
    assert {row.words[0] for row in FIGURES[7].rows} == {
        "task=adroit_hammer",
        "task=adroit_door",
        "task=metaworld_basketball",
        "task=block_push",
        "task=cabinet_sparse",
        "task=metaworld_stick_pull",
    }
    assert len(tasks("state").rows) == 11 and len(tasks("pixels").rows) == 9


def test_planning_in_figure_8_is_that_of_the_agent_cem() -> None:
    planner = compose(["task=maze", CEM_PLANNER]).agent.planner
    assert planner == compose(["task=maze", "agent=cem"]).agent.planner


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "give one of fig=4, 5, 6, 7, 8, 11, 12 or 13 and table=tasks"),
        (["fig=7", "table=tasks"], "give one of fig=4, 5, 6, 7, 8, 11, 12 or 13 and table=tasks"),
        (["fig=4", "table=tasks"], "give one of fig=4, 5, 6, 7, 8, 11, 12 or 13 and table=tasks"),
        (["fig=9"], "fig=9: choose one of 4, 5, 6, 7, 8, 11, 12, 13"),
        (["table=task"], "table=task: choose one of tasks"),
        (["fig=7", "obs=pixels"], "obs=pixels: fig=7 is from state; table=tasks takes obs="),
        (["fig=5", "preset=cpus"], "preset=cpus: no such option; did you mean cpu?"),
        (["fig=5", "preset=null"], "preset=null: expected text"),
        (["fig=5", "budget=2d"], "budget=2d: write a number and s, m or h, as in budget=150m"),
        (["fig=13", "steps=4000"], "steps=4000: the 4,000 frames that perception of BlockPush"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_script(monkeypatch, "reproduce", *given) == 2
    error = capfd.readouterr().err
    assert says in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("150m", 9000), ("1.5h", 5400)])
def test_a_budget_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert reproduce.seconds_of(text) == seconds
    assert reproduce.seconds_of(None) == float("inf")


def test_cut_off_by_the_budget_and_continued_it_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert run_script(monkeypatch, "reproduce", *words(tmp_path / "whole")) == 0
    listed = capfd.readouterr().out
    assert "0 of 2 runs are done; 2 not measured yet." in listed
    assert "\nmeasured:\n" in listed and "min for 2 more." in listed
    assert listed.count("2 of 2 runs are done.") == 1

    cut, out = words(tmp_path / "cut", budget="20m"), tmp_path / "cut" / "debug"
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert run_script(patch, "reproduce", *cut) == 0
    maze, push = (checkpoint.latest(out / name / "seed-0").name for name in NAMES)
    assert maze == "step-0000000140" and push == "step-0000000050"  # updates begin at 105
    table = (tmp_path / "cut" / "fig11-debug.md").read_text()
    assert "140 of 160, 1 of 1 seeds" in table and "50 of 320, 0 of 1 seeds" in table
    assert "Not all runs are done" in table and "vis-rpg reproduce fig=11 " in table
    capfd.readouterr()
    assert run_script(monkeypatch, "reproduce", *cut) == 0
    listed = capfd.readouterr().out
    assert "140 of 160" in listed and "50 of 320" in listed and "\nmeasured:\n" not in listed
    for name in NAMES:
        first, second = (tmp_path / each / "debug" / name / "seed-0" for each in ("whole", "cut"))
        assert differences(comparable(first), comparable(second)) == []
        assert facts(first) == facts(second)
    for end in ("csv", "png"):
        whole, continued = (tmp_path / each / f"fig11-debug.{end}" for each in ("whole", "cut"))
        assert whole.read_bytes() == continued.read_bytes()
    assert "Not all runs are done" not in (tmp_path / "cut" / "fig11-debug.md").read_text()


def test_the_files_hold_what_the_runs_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(monkeypatch, "reproduce", *words(tmp_path, seeds=2)) == 0
    rows = list(csv.DictReader((tmp_path / "fig11-debug.csv").read_text().splitlines()))
    assert tuple(rows[0]) == reproduction_report.CSV_FIELDS
    run = tmp_path / "debug" / NAMES[1] / "seed-1"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    evaluation = json.loads((run / "evaluation.json").read_text())
    shared = {"task": PUSH.name, "obs": "state", "agent": "RPG", "seed": "1"}
    row = {**shared, "interactions": "300", "metric": "success", "value": str(last["success"])}
    assert row in rows
    value = str(evaluation["eval_success"])
    assert {**shared, "interactions": "320", "metric": "eval_success", "value": value} in rows
    assert evaluation["episodes"] == 2
    assert not (tmp_path / "debug" / NAMES[0] / "seed-0" / "evaluation.json").exists()  # coverage
    maze, push = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "fig11-debug.md").read_text().splitlines()
        if line.startswith(("| Maze", "| BlockPush"))
    ]
    coverage = [
        json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["coverage"]
        for path in sorted((tmp_path / "debug" / NAMES[0]).iterdir())
    ]
    low, high = sorted(coverage)
    assert maze[2] == f"{sum(coverage) / 2:.2f} ({low:.2f} to {high:.2f})"
    assert maze[4:6] == ["-", "160 of 160, 2 of 2 seeds"]
    assert maze[8] == "0.5 at 0.00015 M; MBSAC(R) 0.4 at 0.00015 M"
    assert push[7] == "0.9 at 0.00032 M" and push[9] and push[10] == reproduction.commit()
    picture = cv2.imread(str(tmp_path / "fig11-debug.png"))
    assert picture is not None and picture.std() > 5


def test_what_is_done_is_skipped_and_more_interactions_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = words(tmp_path, steps=110)
    assert run_script(monkeypatch, "reproduce", *given) == 0
    with monkeypatch.context() as patch:
        patch.setattr(reproduction, "Trainer", None)  # nothing may be trained
        assert run_script(patch, "reproduce", *given) == 0
    assert "110 of 160, 1 of 1 seeds" in (tmp_path / "fig11-debug.md").read_text()
    assert run_script(monkeypatch, "reproduce", *words(tmp_path, steps=130)) == 0
    assert checkpoint.latest(tmp_path / "debug" / NAMES[0] / "seed-0").name == "step-0000000130"
    sessions = json.loads((tmp_path / "debug" / NAMES[0] / "seed-0" / "sessions.json").read_text())
    assert [own["step"] for own in sessions] == [0, 50, 110]


def test_a_run_with_other_settings_is_named_and_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setitem(FIGURES, 11, Figure("Fig. 11", (MAZE,), ("rpg",)))
    assert run_script(monkeypatch, "reproduce", *words(tmp_path, steps=60)) == 0
    faster = replace(MAZE, words=(*MAZE.words, "agent.lr=0.5"))
    monkeypatch.setitem(FIGURES, 11, Figure("Fig. 11", (faster,), ("rpg",)))
    capfd.readouterr()
    assert run_script(monkeypatch, "reproduce", *words(tmp_path, steps=60)) == 2
    run = tmp_path / "debug" / NAMES[0] / "seed-0"
    says = f"agent.lr=0.5, but the run in {run} was begun with agent.lr=0.0003: "
    assert f"{says}give the same settings, or another out" in capfd.readouterr().err
    assert "0 of 160, 0 of 1 seeds" in (tmp_path / "fig11-debug.md").read_text()


def test_without_time_it_lists_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(reproduction, "Trainer", None)
    assert run_script(monkeypatch, "reproduce", *words(tmp_path, budget="0m")) == 0
    assert "0 of 2 runs are done; 2 not measured yet." in capfd.readouterr().out
    assert "0 of 160, 0 of 1 seeds" in (tmp_path / "fig11-debug.md").read_text()


def test_a_run_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    class Fails(reproduction.Trainer):
        def __init__(self, config: Any) -> None:
            if config.task.name == "maze":
                raise UserError("no Vulkan device: install one")
            super().__init__(config)

    monkeypatch.setattr(reproduction, "Trainer", Fails)
    assert run_script(monkeypatch, "reproduce", *words(tmp_path)) == 2
    shown = capfd.readouterr()
    line = "Maze from state, RPG, seed 0: no Vulkan device: install one"
    assert shown.err.splitlines()[-1] == f"error: 1 of 2 runs failed: {line}"
    assert shown.err.count(line) == 2  # when it happens, and at the end
    assert "1 of 2 runs are done, 1 failed." in shown.out
    table = (tmp_path / "fig11-debug.md").read_text()
    assert "seed 0: no Vulkan device" in table and "320 of 320, 1 of 1 seeds" in table


def test_ctrl_c_stops_with_a_checkpoint_and_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    class Interrupted(reproduction.Trainer):
        def step(self) -> None:
            super().step()
            if self.step_count == 125:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(reproduction, "Trainer", Interrupted)
    assert run_script(monkeypatch, "reproduce", *words(tmp_path)) == 130
    assert "Ctrl-C: stopping with a checkpoint; again to stop at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.latest(tmp_path / "debug" / NAMES[0] / "seed-0").name == "step-0000000125"
    assert (tmp_path / "fig11-debug.md").exists()


def test_frames_that_perception_was_trained_on_count(tmp_path: Path) -> None:
    config = compose(["fig=13", "preset=debug", f"out={tmp_path}", "seeds=1"], "reproduce")
    [rpg, mbsac] = reproduction.make_jobs(FIGURES[13], config)
    assert rpg.config.steps == 246_000 and rpg.config.exploration.rnd_input == "moving_slots"
    folder = rpg.out / "checkpoints" / "step-0000000100"
    folder.mkdir(parents=True)
    (folder / "state.json").touch()
    (rpg.out / "metrics.jsonl").write_text('{"step": 100, "success": 0.25, "wall_s": 6.0}\n')
    assert rpg.points("success").tolist() == [[4100.0], [0.25]]
    assert "4,100 of 250,000, 1 of 1 seeds" in reproduction_report.table([rpg, mbsac], "x", "y")
    assert "4,100 of 250,000" in reproduction.listing([rpg, mbsac], 60.0)


def test_the_listing_says_how_many_runs_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["fig=11", "preset=debug", f"out={tmp_path}", "device=cpu"], "reproduce")
    jobs = reproduction.make_jobs(TINY, config)
    for job in jobs[:2]:  # measured: 10 interactions a second
        monkeypatch.setattr(reproduction, "hardware", lambda _: "a processor")
        folder = job.out / "checkpoints" / "step-0000000050"
        folder.mkdir(parents=True)
        (folder / "state.json").touch()
        rates = ((10, 90.0), (30, 10.0), (40, 10.0), (50, 2.0))
        (job.out / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": step, "steps_per_s": rate}) + "\n" for step, rate in rates)
        )
        begun = [{"step": step, "processor": "a processor"} for step in (0, 50)]  # nothing since 50
        (job.out / "sessions.json").write_text(json.dumps(begun))
    assert [round(60 * minutes) for minutes in reproduction.minutes_left(jobs) if minutes] == [
        *(11, 27),
        *(16, 32),
        *(16, 32),
    ]
    assert (
        "0 of 6 runs are done; 2.2 min for 6 more; 3 of them fit into the 1.1 min left."
        in reproduction.listing(jobs, 65.0)
    )
    (jobs[0].out / "sessions.json").write_text('[{"step": 0, "processor": "another one"}]')
    assert reproduction.minutes_left(jobs)[::2] == [None] * 3


def test_the_bandit_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def draw(config: Any) -> None:
        made.append(list(config.seeds))
        Path(config.out).mkdir(parents=True, exist_ok=True)
        (Path(config.out) / "fig4.png").touch()
        lines = "".join(f"{seed}\n" for seed in config.seeds)
        (Path(config.out) / "bandit.csv").write_text(f"seed\n{lines}")

    monkeypatch.setattr(reproduce.bandit, "main", draw)
    for _ in range(2):
        assert run_script(monkeypatch, "reproduce", *words(tmp_path, fig=4, seeds=2)) == 0
    assert made == [[0, 1]]
    assert run_script(monkeypatch, "reproduce", *words(tmp_path, fig=4, seeds=3)) == 0
    assert made == [[0, 1], [0, 1, 2]]
