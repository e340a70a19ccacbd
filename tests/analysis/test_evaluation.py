"""Evaluation: intervals as known, the same for a seed, honest about what it measures; mistakes are
one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import vis_rpg
from tests.fake_envs import FAULTY
from tests.runs import lines, run_script, trained
from tests.small import config
from vis_rpg.agent.actor import Actor
from vis_rpg.analysis import report
from vis_rpg.analysis.evaluation import bootstrap, episode_seed, evaluate, play, wilson
from vis_rpg.envs.tasks import maze
from vis_rpg.errors import UserError
from vis_rpg.training.trainer import Trainer


@pytest.fixture(scope="module")
def run() -> Path:
    return trained("task=maze", "steps=150")


@pytest.fixture
def loaded(run: Path) -> tuple[Actor, gymnasium.Env]:
    return vis_rpg.load(run)


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (5, 10, (0.2366, 0.7634)),
        (1, 50, (0.0035, 0.1050)),
        (81, 263, (0.2553, 0.3662)),
    ],
)
def test_wilson_agrees_with_published_values(
    successes: int, trials: int, interval: tuple[float, float]
) -> None:
    assert wilson(successes, trials) == pytest.approx(interval, abs=2e-4)


def test_bootstrap_covers_the_mean_and_narrows_with_more_data() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    few, many = bootstrap(values[:20]), bootstrap(values)
    assert many[0] < values.mean() < many[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert few[1] - few[0] > 2 * (many[1] - many[0])


def test_bootstrap_of_one_value_claims_no_interval() -> None:
    assert np.isnan(bootstrap(np.ones((1, 4)))).all()


def test_bootstrap_resamples_whole_curves() -> None:
    values = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]])
    interval = bootstrap(values)
    assert interval.shape == (2, 2)
    np.testing.assert_allclose(interval[:, 1] - interval[:, 0], 10.0)


def test_the_same_seed_gives_the_same_evaluation(run: Path) -> None:
    first, second, other = (
        evaluate(*vis_rpg.load(run), episodes=2, seed=seed) for seed in (3, 3, 4)
    )
    assert first == second
    assert first.eval_coverage > 0 and other.seed != first.seed


def test_an_evaluation_does_not_depend_on_what_was_done_before(
    loaded: tuple[Actor, gymnasium.Env],
) -> None:
    first = evaluate(*loaded, episodes=2)
    evaluate(*loaded, episodes=1, seed=9)
    assert evaluate(*loaded, episodes=2) == first


def test_starts_are_apart_from_those_of_other_seeds_and_episodes() -> None:
    assert len({episode_seed(seed, episode) for seed in range(20) for episode in range(20)}) == 400


def test_each_episode_has_a_z_of_its_own_and_mean_actions(
    loaded: tuple[Actor, gymnasium.Env],
) -> None:
    actor, env = loaded
    ends, zs = [], []
    for z in (None, None, "again"):
        given = zs[-1] if z else None
        statistics = list(play(actor, env, 0, given))
        ends.append(statistics[-1].objects)
        zs.append(actor.z[0].clone())
    assert not torch.equal(zs[0], zs[1])
    assert torch.equal(zs[1], zs[2])
    np.testing.assert_array_equal(
        ends[1], ends[2]
    )  # no noise: one z, one path in a maze without chance


class Scripted(gymnasium.Wrapper):
    """A maze whose success and reward follow a script: success in the step `lucky` alone, reward 1
    in each step."""

    def __init__(self, env: gymnasium.Env, lucky: int, length: int) -> None:
        super().__init__(env)
        self.lucky, self.length, self.steps = lucky, length, 0

    def reset(self, **kwargs):
        self.steps = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        obs, _, _, _, info = self.env.step(action)
        self.steps += 1
        return (
            obs,
            1.0,
            False,
            self.steps == self.length,
            info | {"success": self.steps == self.lucky},
        )


@pytest.mark.parametrize(("lucky", "last"), [(2, 0.0), (5, 1.0)])
def test_success_in_the_last_step_and_in_any_are_told_apart(
    loaded: tuple[Actor, gymnasium.Env], lucky: int, last: float
) -> None:
    actor, env = loaded
    result = evaluate(actor, Scripted(env, lucky, 5), episodes=2)
    assert (result.eval_success, result.eval_success_any) == (last, 1.0)
    assert result.eval_return == 5.0 and result.eval_return_interval == (5.0, 5.0)


def test_every_criterion_of_success_is_logged_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = maze.Maze._info
    monkeypatch.setattr(maze, "TASK", replace(maze.TASK, criteria=("strict", "loose")))
    monkeypatch.setattr(
        maze.Maze,
        "_info",
        lambda self: inner(self) | {"success_strict": False, "success_loose": True},
    )
    [summary] = Trainer(
        config("task=maze", "steps=250", "agent.seed_steps=250", f"out={tmp_path}")
    ).run()
    evaluate(*vis_rpg.load(tmp_path), episodes=1).write(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    for found, prefix in ((summary, ""), (lines(tmp_path)[-1], ""), (written, "eval_")):
        assert (found[f"{prefix}success_strict"], found[f"{prefix}success_loose"]) == (0.0, 1.0)


def test_no_episodes_is_an_error(loaded: tuple[Actor, gymnasium.Env]) -> None:
    with pytest.raises(UserError, match="episodes=0"):
        evaluate(*loaded, episodes=0)


def test_a_task_without_objects_has_no_coverage_and_null_is_written(tmp_path: Path) -> None:
    result = evaluate(
        *vis_rpg.load(trained("task=gym", "task.id=Pendulum-v1", "steps=100", "exploration=none")),
        episodes=1,
    )
    assert "coverage" not in report.table(result, "title")
    result.write(tmp_path / "evaluation.json", step=100)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["eval_coverage"] is None and written["eval_return_interval"] == [None, None]
    assert written["eval_return"] < 0 and written["step"] == 100


def test_the_script_writes_figures_and_prints_them(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    assert run_script(monkeypatch, "evaluate", f"run={run}", "episodes=2", "videos=false") == 0
    written = json.loads((run / "evaluation.json").read_text())
    assert written["episodes"] == 2 and written["step"] == 150
    said = capfd.readouterr().out
    assert "95% interval" in said and "evaluation.json" in said
    assert not (run / "rollouts.mp4").exists()


def test_an_environment_that_cannot_be_drawn_gives_figures_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    run = trained(*FAULTY, "steps=100")
    assert run_script(monkeypatch, "evaluate", f"run={run}", "episodes=1") == 2
    assert json.loads((run / "evaluation.json").read_text())["episodes"] == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert (
        last.startswith(f"error: no video of {run}: vis_rpg_tests/Faulty-v0 cannot be drawn here")
        and "videos=false" in last
    )


def _drop_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def _cut_tensors(run: Path) -> None:
    for path in run.glob("checkpoints/*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])


def _cut_json(run: Path) -> None:
    for path in run.glob("checkpoints/*/state.json"):
        path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(
    ("breaking", "says"),
    [
        (_drop_checkpoints, "no checkpoint"),
        (_cut_tensors, "cut short"),
        (_cut_json, "cut short"),
        (shutil.rmtree, "not a run"),
    ],
)
def test_a_run_that_cannot_be_loaded_is_one_line(
    run: Path, tmp_path: Path, monkeypatch, capfd, breaking, says: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    breaking(copy)
    assert run_script(monkeypatch, "evaluate", f"run={copy}") == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1 and says in said[0] and str(copy) in said[0]


def test_the_run_must_be_given(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    assert run_script(monkeypatch, "evaluate") == 2
    assert "run=..." in capfd.readouterr().err
