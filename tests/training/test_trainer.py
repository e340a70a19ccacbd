"""The training loop: every variant learns within 300 interactions and leaves a whole run folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.fake_envs import FAULTY
from tests.runs import RUN_FILES, differences, facts, final, lines
from tests.small import agent, changed, config, weights
from vis_rpg.analysis.explored_states import read_visits
from vis_rpg.envs.tasks import maze
from vis_rpg.training import checkpoint
from vis_rpg.training import trainer as trainer_module
from vis_rpg.training.load import load
from vis_rpg.training.progress import Progress, count_rewarded
from vis_rpg.training.run import Run, random_coverage
from vis_rpg.training.trainer import Trainer

SLOTS = Path(__file__).parents[2] / "assets" / "slots" / "block_push.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    trainer = Trainer(config("task=maze", f"out={tmp_path_factory.mktemp('runs') / 'maze'}"))
    [summary] = trainer.run()
    return trainer.runs[0], summary


VARIANTS = {
    "mbsac": ("task=maze", "agent=mbsac"),
    "categorical": ("task=maze", "agent.latent.kind=categorical", "agent.latent.dim=5"),
    "learned": ("task=maze", "agent.latent.prior=learned"),
    "learned-categorical": (
        "task=maze",
        "agent.latent.prior=learned",
        "agent.latent.kind=categorical",
    ),
    "no-bonus": ("task=maze", "exploration=none"),
    "authors": ("task=maze", "override=authors"),
    "block_push": ("task=block_push", "task.blocks=1"),
    "pendulum": ("task=gym", "task.id=Pendulum-v1"),
    "terminations": ("task=gym", "task.id=InvertedPendulum-v5"),
    "own-terminations": (*FAULTY, "+task.kwargs={fault: ends}"),
    "cnn": (
        "task=maze",
        "obs=pixels",
        "perception=cnn",
        "agent.batch_size=4",
        "exploration.batch_size=4",
    ),
}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_learns_within_300_interactions(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    trainer = Trainer(config(*words, f"out={tmp_path}"))
    agent = trainer.runs[0].agent
    before = weights(agent)
    [summary] = trainer.run()
    assert (summary["steps"], summary["updates"]) == (300, 40)
    moved = {name.split(".")[0] for name in changed(before, agent)}
    assert {"model", "target", "pi", "log_alpha"} <= moved
    assert ("pi_z" in moved) == (trainer.config.agent.latent.prior == "learned")
    assert ("p_phi" in moved) == ("agent=mbsac" not in words)
    assert all(torch.isfinite(value).all() for value in agent.state_dict().values())
    last = lines(tmp_path)[-1]
    assert all(value is None or math.isfinite(value) for value in last.values())
    assert last["state_loss"] > 0


@pytest.mark.skipif(not SLOTS.exists(), reason="no slot model is there")
def test_an_agent_learns_from_slots_that_stay_as_they_are(tmp_path: Path) -> None:
    words = (
        "task=block_push",
        "task.blocks=1",
        "obs=pixels",
        "agent.envs=2",
        "steps=116",
    )
    trainer = Trainer(config(*words, "agent.batch_size=4", f"out={tmp_path}"))
    perception = trainer.runs[0].agent.model.perception
    before = weights(perception)
    assert trainer.run()[0]["updates"] == 8
    assert changed(before, perception) == set()


def test_a_run_folder_holds_what_is_promised(finished: tuple[Run, dict[str, Any]]) -> None:
    run, summary = finished
    out = run.out
    assert {path.name for path in out.iterdir()} == RUN_FILES
    assert OmegaConf.load(out / "config.yaml") == run.config
    assert [path.name for path in checkpoint.complete(out / "checkpoints")] == [
        "step-0000000150",
        "step-0000000300",
    ]
    assert [line["step"] for line in lines(out)] == [50, 100, 150, 200, 250, 300]
    wanted = {
        "step",
        "updates",
        "wall_s",
        "coverage",
        "success",
        "success_any",
        "return",
        "episodes",
        "updates_per_s",
        "steps_per_s",
    }
    assert all(wanted <= line.keys() for line in lines(out))
    assert {
        "state_loss",
        "reward_loss",
        "q_loss",
        "policy_loss",
        "posterior_loss",
        "alpha",
        "rnd_loss",
        "bonus",
    } <= lines(out)[-1].keys()
    assert list((out / "tensorboard").iterdir())
    written = json.loads((out / "summary.json").read_text())
    assert written == summary
    assert {
        "return",
        "success",
        "coverage",
        "random_coverage",
        "steps",
        "updates",
        "wall_s",
        "dropped_episodes",
    } <= written.keys()


def test_episodes_and_coverage_are_counted_as_they_happened(
    finished: tuple[Run, dict[str, Any]],
) -> None:
    run, summary = finished
    visits = run.visits.read()
    positions = visits["positions"].numpy()[:, 0]
    assert len(positions) == 300
    assert visits["step"].tolist() == [step for step in range(5, 305, 5) for _ in range(5)]
    cells = {tuple(cell) for cell in np.floor(positions + 5).astype(int).clip(0, 9).tolist()}
    assert summary["coverage"] == pytest.approx(len(cells) / 100)
    assert summary["episodes"] == 5
    assert 0 < summary["random_coverage"] < 1


def test_replay_holds_what_was_visited_under_the_z_that_was_acting(
    finished: tuple[Run, dict[str, Any]],
) -> None:
    run, _ = finished
    storage, visits = run.replay.storage, run.visits.read()
    acted = torch.nonzero(storage.has_action)[:, 0]
    assert len(acted) == len(run.replay) == 300
    following = storage.obs["state"][storage.next[acted]]
    torch.testing.assert_close(following, visits["positions"][:, 0])
    torch.testing.assert_close(storage.z[acted], visits["z"])
    z = visits["z"].view(60, 5, -1)
    assert torch.equal(z[:50], z[:1].expand(50, -1, -1)), "one z an episode"
    assert not torch.equal(z[50], z[49])
    assert not storage.terminated.any(), "reaching the length of an episode is no end"


def test_the_same_seed_is_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> list[dict[str, Any]]:
        Trainer(config("task=maze", "steps=150", f"seed={seed}", f"out={tmp_path / name}")).run()
        return facts(tmp_path / name)

    first, second, other = run("a", 0), run("b", 0), run("c", 1)
    assert first == second
    assert first != other


def test_the_terminal_says_what_is_awaited_and_no_figure_that_is_not_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "lacks_compiler", lambda device: None)
    Trainer(config("task=gym", "task.id=Pendulum-v1", "steps=300", f"out={tmp_path}")).run()
    said = capfd.readouterr().err
    assert "30 of 300 interactions after 0.0 min\n" in said
    assert "runtime=auto, getting ready; if they are compiled, this takes minutes" in said


def test_a_resumed_run_without_a_checkpoint_says_that_it_begins_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("task=maze", "steps=150", "resume=true", f"out={tmp_path}")
    for first in (True, False):
        Trainer(config(*words)).run()
        assert ("begins anew" in capfd.readouterr().err) == first


def test_nothing_is_learned_during_seed_steps_and_actions_are_uniform(tmp_path: Path) -> None:
    trainer = Trainer(
        config(
            "task=gym",
            "task.id=Pendulum-v1",
            "agent.seed_steps=2000",
            "steps=2000",
            f"out={tmp_path}",
        )
    )
    assert trainer.run()[0]["updates"] == 0
    storage = trainer.runs[0].replay.storage
    actions = storage.action[storage.has_action].flatten()
    quantiles = actions.quantile(torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([-0.8, 0.0, 0.8]), rtol=0, atol=0.08)


def test_rewards_and_the_priors_entropy_follow_their_schedules(tmp_path: Path) -> None:
    words = (
        "agent.reward_scale=2.0",
        "agent.reward_ramp=400",
        "agent.latent.prior=learned",
        "agent.latent.entropy=0.5",
        "agent.latent.entropy_decay=[150,250]",
        "agent.seed_steps=50",
    )
    trainer = Trainer(config("task=maze", *words, f"out={tmp_path}"))
    seen, scales = {}, {}
    learn = trainer.learn

    def noted() -> float:
        ended = learn()
        seen[trainer.step_count] = float(trainer.runs[0].agent.entropy_z)
        scales[trainer.step_count] = float(trainer.runs[0].agent.reward_scale)
        return ended

    trainer.learn = noted  # type: ignore[method-assign]
    trainer.run()
    assert [seen[step] for step in (50, 150, 200, 250, 295)] == pytest.approx(
        [0.5, 0.5, 0.25, 0.0, 0.0]
    )
    assert [scales[step] for step in (50, 100, 200, 295)] == pytest.approx([0.25, 0.5, 1.0, 1.475])
    actor, _ = load(tmp_path)
    assert float(actor.agent.reward_scale) == 1.5


def test_true_ends_are_stored_and_time_limits_are_not(tmp_path: Path) -> None:
    trainer = Trainer(config(*FAULTY, "+task.kwargs={fault: ends}", "steps=200", f"out={tmp_path}"))
    trainer.run()
    storage = trainer.runs[0].replay.storage
    assert 5 < int(storage.terminated.sum()) <= trainer.runs[0].progress.episodes
    ended = torch.nonzero(storage.terminated)[:, 0]
    assert not storage.has_action[storage.next[ended]].any(), (
        "what follows an end is the final observation"
    )


def test_a_random_policys_coverage_is_a_function_of_seed_and_steps() -> None:
    settings = config("task=maze")
    assert random_coverage(settings, 200) == random_coverage(settings, 200)
    assert random_coverage(settings, 1500) > random_coverage(settings, 50)


def test_a_checkpoint_is_written_at_the_end_whatever_the_interval(tmp_path: Path) -> None:
    Trainer(
        config("task=maze", "steps=60", "logger.checkpoint_every=100000", f"out={tmp_path}")
    ).run()
    assert [path.name for path in checkpoint.complete(tmp_path / "checkpoints")] == [
        "step-0000000060"
    ]


@pytest.mark.parametrize(
    "words", [("task=maze",), ("task=block_push", "obs=pixels")], ids=["state", "slots"]
)
def test_seeing_beside_an_update_changes_no_run(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str) -> Path:
        trainer = Trainer(config(*words, "steps=250", "runtime=eager", f"out={tmp_path / name}"))
        assert trainer.runs[0].encodes_ahead == (name == "ahead")
        trainer.run()
        return tmp_path / name

    ahead = train("ahead")
    monkeypatch.setattr(Run, "encodes_ahead", False)
    after = train("after")
    assert facts(ahead) == facts(after)
    assert differences(final(ahead)["agent"], final(after)["agent"]) == []


def test_what_updates_change_sees_after_them(tmp_path: Path) -> None:
    words = ("task=block_push", "obs=pixels", "perception=cnn")
    assert not Trainer(config(*words, f"out={tmp_path}")).runs[0].encodes_ahead


def test_milestones_are_counted_by_episodes_that_met_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    milestones = {"right": lambda at: at[..., 0, 0] > 0.6, "never": lambda at: at[..., 0, 0] > 9}
    monkeypatch.setattr(maze, "TASK", replace(maze.TASK, milestones=milestones))
    run = tmp_path / "maze"
    [summary] = Trainer(config("task=maze", "steps=500", f"out={run}")).run()
    x = read_visits(run).positions[:, 0, 0].reshape(2, 50, 5)  # episodes, their steps, environments
    wanted = (x > 0.6).any(1).mean()
    assert 0 < wanted < 1
    assert (summary["milestone_right"], summary["milestone_never"]) == (wanted, 0.0)
    assert lines(run)[-1]["milestone_right"] == wanted


def test_gamma_changes_once_positive_returns_are_regular(tmp_path: Path) -> None:
    for task, gamma in (("maze", 0.9), ("gym", 0.5)):  # nothing is paid in the maze
        words = [
            f"task={task}",
            "agent.gamma=0.9",
            "agent.gamma_rewarded=0.5",
            f"out={tmp_path / task}",
        ]
        words += ["task.id=InvertedPendulum-v5"] if task == "gym" else []
        trainer = Trainer(config(*words, "steps=200"))
        assert float(trainer.runs[0].agent.gamma) == pytest.approx(0.9)
        trainer.run()
        resumed = Trainer(config(*words, "steps=210", "resume=true"))
        of = trainer.runs[0].agent, resumed.runs[0].agent, load(tmp_path / task)[0].agent
        assert [float(agent.gamma) for agent in of] == pytest.approx([gamma] * 3)
        resumed.run()


def test_gamma_is_that_of_before_once_few_recent_episodes_were_paid() -> None:
    of = agent("agent.gamma=0.9", "agent.gamma_rewarded=0.5")
    progress = Progress(maze.TASK, envs=1)
    none, seen = np.zeros((1, 1, 2)), []

    def episode(reward: float) -> None:
        progress.add(np.array([0]), np.array([reward]), np.array([False]), none)
        of.follow_schedules(0, count_rewarded(progress.returns, progress.finished))
        seen.append(round(float(of.gamma), 3))
        progress.end(0, False, [])

    for reward in [0.0] + 5 * [1.0] + 101 * [0.0]:
        episode(reward)
    assert seen == 5 * [0.9] + 97 * [0.5] + 5 * [0.9]
