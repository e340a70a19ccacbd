"""A process that a scheduler ends leaves a checkpoint of its last step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT, comparable, differences, lines, trained
from tests.small import config
from vis_rpg.training import checkpoint
from vis_rpg.training.preemption import checkpoint_on_signal
from vis_rpg.training.trainer import Trainer, main

WORDS = ("task=maze", "steps=400", "runtime=eager", "logger.log_every=20")
NEVER = "logger.checkpoint_every=100000"
GRACE_S = 30
"""Kubernetes' and Slurm's default."""


def learning(out: Path, *words: str, by: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """A run in a process group of its own, started `by` another command, that has logged thrice."""
    own = ["preset=debug", "device=cpu", f"out={out}", NEVER, *words]
    process = subprocess.Popen(
        [*by, sys.executable, "scripts/train.py", *own],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or len(lines(out)) < 3:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_sigterm_ends_a_run_within_the_grace_time_with_its_last_step_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = learning(out, *WORDS)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=GRACE_S)
    assert process.returncode == -signal.SIGTERM, said.decode()
    [kept] = checkpoint.complete(out / "checkpoints")
    assert 60 <= checkpoint.load(kept)["step"] < 400, "none but the signal's"
    Trainer(config(f"out={out}", "resume=true", NEVER, *WORDS)).run()
    assert differences(comparable(out), comparable(trained(NEVER, *WORDS))) == []


def test_sigterm_of_torchrun_leaves_the_same_step_of_each_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*WORDS, "steps=100000", "agent.envs=4"]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python")
    process = learning(out, *words, by=(*torchrun, "--nproc-per-node=2"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=GRACE_S)
    assert process.returncode, "torchrun's own, and its traceback"
    assert b"error: " not in said, said.decode()
    steps = []
    for own in (out, out / "rank-1"):
        [kept] = checkpoint.complete(own / "checkpoints")
        steps.append(checkpoint.load(kept)["step"])
    assert steps[0] == steps[1] >= 60


def test_after_the_last_checkpoint_a_signal_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = []

    def random_coverage(*_: object) -> float:  # minutes where environments are slow
        handlers.append(signal.getsignal(signal.SIGTERM))
        return 0.0

    monkeypatch.setattr("vis_rpg.training.run.random_coverage", random_coverage)
    main(config(f"out={tmp_path}", NEVER, *WORDS))
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_a_signal_that_its_handler_survives_costs_nothing(tmp_path: Path) -> None:
    """As submitit's handler of SIGTERM, which waits for the machine to be taken."""
    obeyed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: obeyed.append(number))
    try:
        trainer = Trainer(config(f"out={tmp_path}", NEVER, *WORDS))
        with checkpoint_on_signal(trainer.save) as stop:

            def after_step() -> bool:
                if trainer.step_count == 200:
                    signal.raise_signal(signal.SIGTERM)
                    assert not obeyed, "first the checkpoint"
                return stop()

            trainer.run(after_step)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert obeyed == [signal.SIGTERM]
    steps = [
        checkpoint.load(path)["step"] for path in checkpoint.complete(tmp_path / "checkpoints")
    ]
    assert steps == [200, 400]
    assert differences(comparable(tmp_path), comparable(trained(NEVER, *WORDS))) == []


def test_workers_survive_what_a_scheduler_sends_to_the_whole_process_group(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    words = ["task=gym", "task.id=tests.fake_envs:vis_rpg_tests/Faulty-v0", "task.processes=true"]
    words += ["runtime=eager", "steps=100000", "logger.log_every=20", "agent.envs=2"]
    process = learning(out, *words)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=GRACE_S)
    assert process.returncode == -signal.SIGTERM, said.decode()
    assert "died" not in said.decode()
    [kept] = checkpoint.complete(out / "checkpoints")
    assert checkpoint.load(kept)["dropped_episodes"] == 0


def test_a_signal_in_the_last_moments_is_passed_on_and_one_after_another_noted() -> None:
    obeyed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: obeyed.append(number))
    saved: list[int] = []
    try:
        with checkpoint_on_signal(lambda: saved.append(len(obeyed))) as stop:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
                stop()
            signal.raise_signal(signal.SIGTERM)  # no step follows
            assert (saved, len(obeyed)) == ([0, 1], 2)
        assert len(obeyed) == 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_nobody_handles_but_sigterm_is_left_alone() -> None:
    with checkpoint_on_signal(lambda: pytest.fail("nothing was noted")) as stop:
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert not stop()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
