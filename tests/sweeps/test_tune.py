"""Ray Tune searches settings of runs; the best is reported with a command that trains it again."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.runs import comparable, differences, lines, run_script, trained
from tests.sweeps.test_launch import needs_ray
from vis_rpg.compose import compose
from vis_rpg.errors import UserError

SPACE = 'space=["agent.gamma=interval(0.9,0.99)"]'
BASE = ("task=maze", "preset=debug", "device=cpu", "runtime=eager", "steps=200")


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray with two processors in this process, for as long as a test."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    yield ray
    ray.shutdown()


@needs_ray
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "space=... must be given"),
        ([SPACE, "tsk=maze"], "tsk=maze: no such setting; did you mean task?"),
        (['space=["agent.gama=interval(0.9,0.99)"]'], "did you mean agent.gamma?"),
        (['space=["agent.gamma=0.9"]'], "agent.gamma=0.9: one value; write KEY=interval"),
        (['space=["agent.gamma=tag(log,interval(0,1))"]'], "above 0 on a logarithmic scale"),
        (['space=["agent.gamma=interval(2,3)"]'], "agent.gamma=2."),
        ([SPACE, "trials=0"], "trials=0: must be above 0"),
    ],
)
def test_a_mistake_is_one_line_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, words: list[str], says: str
) -> None:
    assert run_script(monkeypatch, "tune", f"out={tmp_path}", *words) == 2
    [said] = capfd.readouterr().err.splitlines()
    assert says in said
    assert list(tmp_path.iterdir()) == []


@needs_ray
def test_settings_of_the_space_are_drawn_as_the_command_line_takes_them() -> None:
    from vis_rpg.sweeps.tune import dimension, drawn_words

    words = [
        "agent.gamma=interval(0.9,0.99)",
        "agent.tau=tag(log,interval(1e-3,1e-1))",
        "agent.batch_size=int(interval(4,9))",
        "agent=choice(rpg,mbsac)",
        "agent.horizon=range(2,4)",
    ]
    for _ in range(20):
        drawn = {key: domain.sample() for key, domain in map(dimension, words)}
        agent = compose(drawn_words(drawn)).agent
        assert 0.9 <= agent.gamma <= 0.99 and 1e-3 <= agent.tau <= 1e-1
        assert agent.batch_size in range(4, 9) and agent.horizon in (2, 3)
        assert agent.name in ("rpg", "mbsac")
    with pytest.raises(UserError, match="limits must rise"):
        dimension("agent.gamma=interval(0.9,0.8)")


@needs_ray
@pytest.mark.slow
def test_the_best_trial_is_the_run_of_the_command_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, ray_here: Any
) -> None:
    words = [*BASE, SPACE, "metric=coverage", "trials=3", f"out={tmp_path / 'tune'}", "seed=1"]
    assert run_script(monkeypatch, "tune", *words) == 0
    said = capfd.readouterr().out
    [command] = [
        shlex.split(line) for line in said.splitlines() if line.startswith("vis-rpg train")
    ]
    [folder] = re.findall(r"interactions, in (\S+)", said)
    assert differences(comparable(Path(folder)), comparable(trained(*command[2:]))) == []
    last = [lines(run)[-1] for run in tmp_path.glob("tune/*/") if (run / "metrics.jsonl").exists()]
    assert len(last) == 3
    done = [line["coverage"] for line in last if line["step"] == 200]
    assert lines(Path(folder))[-1]["coverage"] >= max(done), "ASHA stops the others"
    assert run_script(monkeypatch, "tune", *words) == 2
    assert "a search is there already; add resume=true" in capfd.readouterr().err
    other = [word.replace("trials=3", "trials=4") for word in words]
    assert run_script(monkeypatch, "tune", *other, "resume=true") == 2
    assert "trials=4, but the search in" in capfd.readouterr().err
    assert run_script(monkeypatch, "tune", *words, "resume=true", "cpus=0.5") == 0
    (tmp_path / "tune" / "search.json").write_text("{")
    assert run_script(monkeypatch, "tune", *words, "resume=true") == 2
    assert "search.json cannot be read" in capfd.readouterr().err


@needs_ray
@pytest.mark.slow
def test_a_trial_that_dies_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Any
) -> None:
    from vis_rpg.sweeps import tune

    killed = tmp_path / "killed"
    trial = tune.trial

    def dies_once(*args: Any, **more: Any) -> None:
        save = tune.Trainer.save

        def save_and_die(trainer: Any) -> None:
            save(trainer)
            if not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        tune.Trainer.save = save_and_die
        trial(*args, **more)

    monkeypatch.setattr(tune, "trial", dies_once)
    words = [*BASE, SPACE, "metric=coverage", "trials=1", f"out={tmp_path / 'tune'}", "grace=1"]
    assert run_script(monkeypatch, "tune", *words, "logger.checkpoint_every=100") == 0
    assert killed.exists()
    [run] = [path.parent for path in tmp_path.glob("tune/*/config.yaml")]
    gamma = compose([f"agent.gamma={_gamma(run)}"]).agent.gamma
    whole = trained(*BASE, "logger.checkpoint_every=100", f"agent.gamma={gamma}")
    assert differences(comparable(run), comparable(whole)) == []


def _gamma(run: Path) -> str:
    return re.findall(r"gamma: (\S+)", (run / "config.yaml").read_text())[0]
