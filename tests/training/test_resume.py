"""A run that is killed and resumed equals the one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import comparable, differences, facts, final, trained
from tests.small import config
from vis_rpg.errors import UserError
from vis_rpg.training import checkpoint
from vis_rpg.training.coverage import VisitRecord
from vis_rpg.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


def kill_after_first_checkpoint(out: Path, *words: str) -> None:
    """Run scripts/train.py, and kill it with SIGKILL a moment after its first
    checkpoint is there."""
    command = [
        sys.executable,
        "scripts/train.py",
        "preset=debug",
        "device=cpu",
        f"out={out}",
        *words,
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not checkpoint.complete(out / "checkpoints"):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()


def train(out: Path, *words: str) -> dict[str, Any]:
    [summary] = Trainer(config(f"out={out}", *words)).run()
    return summary


@pytest.mark.parametrize(
    "words",
    [
        ("task=maze", "steps=500", "agent.replay_capacity=300", "agent.replay_recent=50"),
        pytest.param(
            ("task=block_push", "task.blocks=2", "steps=450", "agent.latent.prior=learned"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["maze", "block_push"],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    kill_after_first_checkpoint(tmp_path / "killed", *words)
    resumed = train(tmp_path / "killed", "resume=true", *words)
    whole = train(tmp_path / "whole", *words)
    first, second = comparable(tmp_path / "killed"), comparable(tmp_path / "whole")
    assert differences(first, second) == []
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")
    for summary in (resumed, whole):
        del summary["wall_s"]
    assert resumed == whole
    visits = []
    for name in ("killed", "whole"):
        record = VisitRecord(tmp_path / name / "visits")
        record.load(final(tmp_path / name)["visits"])
        visits.append(record.read())
    assert differences(*visits) == []
    stored = [
        vars(trainer_of(tmp_path / name, *words).runs[0].replay.storage)
        for name in ("killed", "whole")
    ]
    assert differences(*stored) == []


@pytest.mark.parametrize(
    "words",
    [("agent=sac",), ("agent=tdmpc", "agent.planner.samples=64", "agent.planner.elites=8")],
    ids=["sac", "tdmpc"],
)
def test_a_baseline_resumed_halfway_is_the_one_that_was_not_stopped(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    train(tmp_path, "task=maze", *words, "steps=150")
    train(tmp_path, "task=maze", *words, "resume=true")
    whole = trained("task=maze", *words)
    assert differences(comparable(tmp_path), comparable(whole)) == []
    for name, value in final(tmp_path)["agent"].items():
        assert torch.equal(value, final(whole)["agent"][name]), name


def trainer_of(out: Path, *words: str) -> Trainer:
    return Trainer(config(f"out={out}", "resume=true", *words))


def test_resuming_at_every_checkpoint_equals_never_stopping(tmp_path: Path) -> None:
    """Checkpoints at odd places: amid a log interval, before the first update, on the last step of
    an episode."""
    words = (
        "task=maze",
        "agent=mbsac",
        "logger.log_every=70",
        "logger.checkpoint_every=35",
        "agent.seed_steps=60",
    )
    train(tmp_path / "whole", *words, "steps=300")
    for steps in (35, 65, 120, 250, 300):
        train(tmp_path / "parts", *words, f"steps={steps}", "resume=true")
    first, second = comparable(tmp_path / "parts"), comparable(tmp_path / "whole")
    assert differences(first, second) == []
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")


def test_pixels_with_a_trained_encoder_resume_exactly(tmp_path: Path) -> None:
    words = (
        "task=maze",
        "obs=pixels",
        "perception=cnn",
        "agent.batch_size=4",
        "logger.checkpoint_every=130",
        "exploration.batch_size=4",
    )
    train(tmp_path / "whole", *words, "steps=200")
    train(tmp_path / "parts", *words, "steps=130")
    train(tmp_path / "parts", *words, "steps=200", "resume=true")
    first, second = final(tmp_path / "parts"), final(tmp_path / "whole")
    assert differences(first["agent"], second["agent"]) == []
    assert differences(first["actor"], second["actor"]) == []


def test_where_an_environment_cannot_be_saved_its_episode_is_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("task=gym", "task.id=Pendulum-v1")
    train(tmp_path, *words, "steps=150")
    summary = train(tmp_path, *words, "steps=400", "resume=true")
    output = capsys.readouterr()
    assert "5 running episodes could not be saved and were dropped" in output.out + output.err
    assert summary["dropped_episodes"] == 5
    assert summary["steps"] == 400
    assert json.loads((tmp_path / "summary.json").read_text())["dropped_episodes"] == 5


def test_the_two_newest_checkpoints_can_both_be_resumed(tmp_path: Path) -> None:
    import shutil

    words = ("task=maze", "steps=300", "logger.checkpoint_every=50")
    train(tmp_path, *words)
    before = final(tmp_path)
    newest = checkpoint.latest(tmp_path)
    (newest / "state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="delete this folder to use the one before"):
        trainer_of(tmp_path, *words)
    shutil.rmtree(newest)
    train(tmp_path, *words, "resume=true")
    assert differences(before["agent"], final(tmp_path)["agent"]) == []


def test_weights_that_an_agent_has_no_place_for_are_refused_in_one_line(tmp_path: Path) -> None:
    """As those of a slot model that has been trained anew since the run began, in another shape."""
    words = ("task=maze", "steps=150")
    train(tmp_path, *words)
    state = final(tmp_path)
    state["agent"]["model.perception.model.gone"] = state["agent"]["log_alpha"].clone()
    checkpoint.save(tmp_path / "checkpoints", state["step"], state)
    with pytest.raises(
        UserError, match="the checkpoint does not fit its config.yaml: Unexpected key.*model.gone"
    ) as error:
        train(tmp_path, *words, "resume=true")
    assert "\n" not in str(error.value)


def test_a_finished_run_that_is_resumed_says_the_same_again(tmp_path: Path) -> None:
    words = ("task=maze", "steps=150")
    first = train(tmp_path, *words)
    again = train(tmp_path, *words, "resume=true")
    assert {**first, "wall_s": 0} == {**again, "wall_s": 0}


def test_resume_without_a_checkpoint_begins_the_run(tmp_path: Path) -> None:
    assert train(tmp_path / "new", "task=maze", "steps=120", "resume=true")["steps"] == 120


def test_the_saved_config_says_how_far_the_run_went(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    train(tmp_path, "task=maze", "steps=120")
    train(tmp_path, "task=maze", "steps=150", "resume=true")
    assert OmegaConf.load(tmp_path / "config.yaml").steps == 150
