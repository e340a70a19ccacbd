"""What goes wrong in a run is one line that names it, and costs no more than what came after the
last checkpoint."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.fake_envs import FAULTY
from tests.small import config
from vis_rpg.errors import RunStopped, UserError
from vis_rpg.training import checkpoint
from vis_rpg.training.load import load
from vis_rpg.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
EARLY = ("agent.seed_steps=50", "logger.log_every=25", "logger.checkpoint_every=50")


def fault(kind: str, out: Path) -> Trainer:
    return Trainer(config(*FAULTY, f"+task.kwargs={{fault: {kind}}}", f"out={out}", *EARLY))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("observation", "observation of vis_rpg_tests/Faulty-v0, environment 0 .*is not finite"),
        ("reward", "reward of vis_rpg_tests/Faulty-v0, environment 0 .*is not finite"),
        (
            "raises",
            r"vis_rpg_tests/Faulty-v0, environment 0 \(seed 0, episode 3\) raised "
            r"RuntimeError at action \[.*\]: joint 3 is broken",
        ),
        (
            "reset",
            "vis_rpg_tests/Faulty-v0, environment 0 .* raised OSError at reset: the simulator "
            "is gone",
        ),
    ],
)
def test_an_environment_that_fails_stops_the_run_and_the_last_checkpoint_stays(
    tmp_path: Path, kind: str, says: str
) -> None:
    trainer = fault(kind, tmp_path)
    with pytest.raises(RunStopped, match=rf"stopped at step 2\d\d: {says}") as error:
        trainer.run()
    assert "\n" not in str(error.value)
    assert str(tmp_path / "checkpoints") in str(error.value)
    kept = checkpoint.complete(tmp_path / "checkpoints")
    assert kept[-1].name == ("step-0000000250" if kind == "reset" else "step-0000000200")
    actor, env = load(tmp_path)
    obs, _ = env.reset(seed=0)
    actor.reset()
    assert torch.isfinite(torch.as_tensor(actor.act(obs))).all()


def test_frames_that_are_all_the_same_stop_the_run_after_the_random_steps(tmp_path: Path) -> None:
    words = (
        "task=gym",
        "task.id=vis_rpg_tests/Blank-v0",
        "obs=pixels",
        "perception=cnn",
        "steps=60",
        *EARLY,
    )
    with pytest.raises(
        RunStopped,
        match=(
            "stopped at step 50: all frames of all 5 environments of vis_rpg_tests/Blank-v0 "
            "were the same"
        ),
    ):
        Trainer(config(*words, f"out={tmp_path / 'blank'}")).run()
    Trainer(config(*words, "+task.kwargs={after: 9}", f"out={tmp_path / 'seen'}")).run()


def test_an_update_that_is_under_way_is_over_before_a_failing_environment_stops_the_run(
    tmp_path: Path,
) -> None:
    trainer = fault("raises", tmp_path)
    learn, learned_at = trainer.learn, []

    def slowly() -> float:
        time.sleep(0.1 if trainer.step_count >= 200 else 0.0)
        ended = learn()
        learned_at.append(trainer.step_count)
        return ended

    trainer.learn = slowly  # type: ignore[method-assign]
    with pytest.raises(RunStopped):
        trainer.run()
    assert learned_at[-1] == trainer.runs[0].step


@pytest.mark.parametrize(
    ("poison", "quantity"),
    [
        (lambda agent: agent.model.R.layers[-1].bias, "reward_loss|model_grad_norm"),
        (lambda agent: agent.pi.net.layers[-1].bias, "q_loss|model_grad_norm"),
        (lambda agent: agent.p_phi.net.layers[-1].bias, "q_loss|model_grad_norm"),
        (lambda agent: agent.rnd.predictor.layers[-1].bias, "rnd_loss|rnd_grad_norm"),
    ],
    ids=["reward", "policy", "posterior", "rnd"],
)
def test_a_nan_in_a_loss_is_named_with_its_step_and_never_saved(
    tmp_path: Path, poison, quantity: str
) -> None:
    trainer = Trainer(
        config("task=maze", f"out={tmp_path}", "logger.checkpoint_every=50", "logger.log_every=30")
    )
    learn = trainer.learn

    def poisoned() -> float:
        if trainer.step_count == 205:
            poison(trainer.runs[0].agent).data.fill_(float("nan"))
        return learn()

    trainer.learn = poisoned  # type: ignore[method-assign]
    with pytest.raises(
        RunStopped,
        match=rf"stopped at step 2\d\d: ({quantity}) is not finite; the last checkpoint is kept in",
    ):
        trainer.run()
    newest = checkpoint.load(checkpoint.latest(tmp_path))
    assert newest["step"] == 200
    assert all(torch.isfinite(value).all() for value in newest["agent"].values())


def test_a_full_disk_keeps_the_checkpoints_and_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("task=maze", f"out={tmp_path}", "logger.checkpoint_every=50", "steps=250")
    trainer = Trainer(config(*words))
    write = checkpoint.write_tensors

    def full(path: Path, tensors) -> None:
        if trainer.step_count >= 200:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    monkeypatch.undo()
    assert [path.name[-3:] for path in checkpoint.complete(tmp_path / "checkpoints")] == [
        "100",
        "150",
    ]
    assert Trainer(config(*words, "resume=true")).run()[0]["steps"] == 250
    spans = json.loads((checkpoint.latest(tmp_path) / "state.json").read_text())["state"]["replay"][
        "spans"
    ]
    assert len(list((tmp_path / "replay").iterdir())) == len(spans), (
        "no chunk is left that nothing refers to"
    )


def test_a_folder_with_a_run_in_it_is_not_overwritten(tmp_path: Path) -> None:
    words = ("task=maze", "steps=60", f"out={tmp_path}")
    Trainer(config(*words)).run()
    log = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError,
        match=(
            "a run with checkpoints is there already; add resume=true to continue it, or "
            "give another out"
        ),
    ):
        Trainer(config(*words))
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_resuming_with_other_settings_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    Trainer(config("task=maze", "steps=60", f"out={tmp_path}")).run()
    log = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError,
        match="resume=true: agent.beta=0.5, but the run in .* was begun with agent.beta=0.01",
    ):
        Trainer(config("task=maze", "steps=60", f"out={tmp_path}", "resume=true", "agent.beta=0.5"))
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_a_lost_chunk_of_replay_is_named(tmp_path: Path) -> None:
    words = ("task=maze", "steps=150", f"out={tmp_path}")
    Trainer(config(*words)).run()
    [chunk] = (tmp_path / "replay").iterdir()
    chunk.unlink()
    with pytest.raises(UserError, match=rf"{chunk.name}: needed by a checkpoint of this run"):
        Trainer(config(*words, "resume=true"))


@pytest.mark.parametrize(
    "words",
    [
        ("steps=0",),
        ("agent.latent.kind=gausian",),
        ("device=cuda:99",),
        ("task=block_push", "perception=cnn"),
        ("agent.replay_capacity=10",),
        ("task=gym", "task.id=Pendulm-v1"),
        ("task=gym", "task.id=CartPole-v1"),
        ("task=bandit",),
    ],
    ids=" ".join,
)
def test_a_setting_that_cannot_be_is_refused_without_leaving_a_run_behind(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        Trainer(config(*words, f"out={tmp_path / 'run'}"))
    assert "\n" not in str(error.value)
    assert not checkpoint.complete(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_script_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "scripts/train.py",
        "preset=debug",
        "task=maze",
        "agent.latent.kind=gausian",
        f"out={tmp_path}/x",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "error: agent.latent.kind=gausian: choose one of gaussian, categorical, mixed, sphere, "
        "none (nearest: gaussian)"
    )
    assert not (tmp_path / "x").exists()
