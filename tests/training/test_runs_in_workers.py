"""Runs whose environments live in worker processes: the same as in one process; deaths are counted,
survived, and never learned from."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import final
from tests.small import config
from tests.training.test_seeds import unequal
from vis_rpg.envs.tasks import block_push
from vis_rpg.envs.vector.subprocess import SubprocVectorEnv
from vis_rpg.errors import RunStopped
from vis_rpg.training import checkpoint
from vis_rpg.training.trainer import Trainer

WORDS = ("task=gym", "task.id=tests.fake_envs:vis_rpg_tests/Faulty-v0", "task.processes=true")


def trainer(out: Path, *words: str) -> Trainer:
    return Trainer(config(*WORDS, f"out={out}", *words))


def kill_at(trainer: Trainer, seed: int, *steps: int) -> None:
    """The first worker of a seed is killed before the interactions that begin at these steps."""
    group: Any = trainer.runs[seed].envs
    begin = group.begin

    def killing(actions: Any) -> None:
        if trainer.step_count in steps:
            group.ready()
            os.kill(group.workers[0]._process.pid, signal.SIGKILL)
            group.workers[0]._process.join(10)
        begin(actions)

    group.begin = killing


def test_a_death_is_counted_and_nothing_is_learned_across_the_cut(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    once = trainer(tmp_path, "steps=200")
    kill_at(once, 0, 50)
    [run] = once.runs
    lost = len(run.envs.workers[0].job.rows)  # type: ignore[attr-defined]
    while once.step_count < 50:
        once.step()
    cut, returns = run.replay.cursor.clone(), run.progress.returns.copy()
    [summary] = once.run()
    assert (summary["steps"], summary["dropped_episodes"]) == (200, lost)
    assert len(run.replay) == 200 - lost, "what was done in the step that was lost is no transition"
    storage = run.replay.storage
    assert not storage.has_action[cut[:lost]].any() and storage.has_action[cut[lost:]].all()
    assert torch.equal(storage.next[cut[:lost]], cut[:lost]), (
        "nothing follows an observation at which an episode was cut"
    )
    assert not storage.terminated.any()
    assert set(storage.prev[cut[:lost] + 1].tolist()).isdisjoint(cut[:lost].tolist())
    # episodes of 20 steps: those that were cut at 10 have ended at 31 and at 51, and hold what they
    # were given since
    episodes = sum(len(range(20, 41, 20)) if row >= lost else 1 for row in range(5))
    assert summary["episodes"] == episodes
    assert (returns < 0).all() and max(entry[0] for entry in run.progress.finished) < 0
    assert len(run.visits.read()["step"]) == 200 - lost
    assert (
        "killed by SIGKILL; it is restarted and its running episodes are dropped"
        in capfd.readouterr().err
    )


def test_three_deaths_in_a_row_leave_a_checkpoint_of_before_and_the_run_goes_on_from_it(
    tmp_path: Path,
) -> None:
    doomed = trainer(tmp_path, "steps=200")
    kill_at(doomed, 0, 120, 125, 130)
    lost = len(doomed.runs[0].envs.workers[0].job.rows)  # type: ignore[attr-defined]
    with pytest.raises(
        RunStopped,
        match=(
            r"^stopped at step 130: .*worker 0 .* died 3 times in a row: killed by SIGKILL; "
            r"the last checkpoint"
        ),
    ):
        doomed.run()
    assert checkpoint.latest(tmp_path).name == "step-0000000130"
    saved = final(tmp_path)
    assert (saved["step"], saved["dropped_episodes"]) == (130, 2 * lost)
    [summary] = trainer(tmp_path, "steps=200", "resume=true").run()
    assert (summary["steps"], summary["dropped_episodes"]) == (200, 2 * lost + 5)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_only_the_seed_whose_worker_dies_stops(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    together = trainer(tmp_path, "seeds=2", "steps=150")
    kill_at(together, 1, 120, 125, 130)
    with pytest.raises(RunStopped) as error:
        together.run()
    assert re.search(
        r"^stopped at step 130: .* of seed 1\) died 3 times in a row.*seed-1/checkpoints$",
        str(error.value),
    )
    assert "the others go on" in capfd.readouterr().err
    assert json.loads((tmp_path / "seed-0" / "summary.json").read_text())["dropped_episodes"] == 0
    assert checkpoint.latest(tmp_path / "seed-1").name == "step-0000000130"


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_a_run_in_workers_that_stops_and_goes_on_is_the_one_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obs: str
) -> None:
    pixels = ("obs=pixels", "perception=cnn", "agent.batch_size=4", "exploration.batch_size=4")
    words = (
        "task=block_push",
        "task.blocks=1",
        "agent.seed_steps=50",
        *(pixels if obs == "pixels" else ()),
    )

    def train(name: str, *more: str) -> Trainer:
        trainer = Trainer(
            config(
                *words,
                f"out={tmp_path / name}",
                "logger.checkpoint_every=75",
                "logger.log_every=25",
                *more,
            )
        )
        trainer.run()
        return trainer

    train("here", "steps=150")
    monkeypatch.setattr(
        block_push,
        "make_task",
        lambda blocks, make=block_push.make_task: replace(make(blocks), processes=True),
    )
    assert isinstance(train("there", "steps=75").runs[0].envs, SubprocVectorEnv)
    train("there", "steps=150", "resume=true")
    assert unequal(tmp_path / "there", tmp_path / "here") == []
