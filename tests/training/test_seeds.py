"""Several seeds in one process: each a run of its own in its own folder, that nothing which befalls
the others touches."""

from __future__ import annotations

import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import vis_rpg
from tests.runs import RUN_FILES, comparable, differences, facts, final, run_script, trained
from tests.small import changed, config, weights
from tests.training.test_trainer import SLOTS
from vis_rpg.errors import RunStopped, UserError
from vis_rpg.training import checkpoint
from vis_rpg.training.coverage import VisitRecord
from vis_rpg.training.trainer import Trainer, seed_configs

ALONE = ("task=maze", "logger.log_every=40")  # so that checkpoints lie between its lines
WORDS = (*ALONE, "seeds=3")


@pytest.fixture(scope="module")
def whole() -> Path:
    return trained(*WORDS)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def trainer(out: Path, *words: str) -> Trainer:
    settings = config(*words)
    settings.out = str(out)
    return Trainer(settings)


def visited(out: Path) -> torch.Tensor:
    record = VisitRecord(out / "visits")
    record.load(final(out)["visits"])
    return record.read()["positions"]


def unequal(first: Path, second: Path) -> list[str]:
    """Where two runs that have come equally far are not the same to the last bit."""
    found = differences(comparable(first), comparable(second))
    return (
        found
        + differences(facts(first), facts(second), "metrics")
        + differences(visited(first), visited(second), "visits")
    )


# Folders ------------------------------------------------------------------------------------------


def test_every_seed_is_given_what_it_would_be_given_alone(tmp_path: Path) -> None:
    together, alone = config(*WORDS), config(*ALONE)
    together.seed, together.out = 5, str(tmp_path)
    for seed, given in zip((5, 6, 7), seed_configs(together), strict=True):
        alone.seed, alone.out = seed, str(tmp_path / f"seed-{seed}")
        assert given == alone


def test_seeds_draw_different_z_actions_batches_and_noise(tmp_path: Path) -> None:
    runs = trainer(tmp_path, *WORDS).runs
    for generators in (
        [run.actor.generator for run in runs],
        [run.generator for run in runs],
        [run.batch_generator for run in runs],
    ):
        assert len({float(torch.rand(1, generator=generator)) for generator in generators}) == 3


def test_every_seed_leaves_a_whole_run_behind_as_a_lone_run_does(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {"seed-0", "seed-1", "seed-2"}
    for seed in range(3):
        run = whole / f"seed-{seed}"
        assert {path.name for path in run.iterdir()} == RUN_FILES
        alone = config(*ALONE)
        alone.seed, alone.out = seed, str(run)
        assert OmegaConf.load(run / "config.yaml") == alone
        assert [path.name for path in checkpoint.complete(run / "checkpoints")] == [
            "step-0000000150",
            "step-0000000300",
        ]
        assert (facts(run)[-1]["step"], facts(run)[-1]["updates"]) == (280, 36)
    assert not torch.equal(visited(whole / "seed-0"), visited(whole / "seed-1"))


def test_a_seed_is_loaded_evaluated_and_drawn_like_any_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = []
    for seed in range(3):
        actor, env = vis_rpg.load(copy / f"seed-{seed}")
        actor.reset()
        actions.append(actor.act(env.reset(seed=0)[0]))
    assert not np.array_equal(actions[0], actions[1])
    assert (
        run_script(monkeypatch, "evaluate", f"run={copy / 'seed-1'}", "episodes=1", "videos=false")
        == 0
    )
    assert run_script(monkeypatch, "visualise_states", f"run={copy / 'seed-1'}") == 0
    assert (copy / "seed-1" / "evaluation.json").exists()


def test_the_folder_of_several_seeds_is_no_run_and_says_what_to_give(whole: Path) -> None:
    with pytest.raises(
        UserError, match=r"the folder of several seeds: give one of them, such as .*seed-0$"
    ):
        vis_rpg.load(whole)


# Each as alone ------------------------------------------------------------------------------------


def says_what_it_says_alone(beside: Path, alone: Path) -> None:
    """Exactly until something is learned, and closely in the first line after that."""
    said, expected = facts(beside), facts(alone)
    begun = next(index for index, line in enumerate(expected) if "state_loss" in line)
    assert said[:begun] == expected[:begun]
    assert said[begun].keys() == expected[begun].keys()
    for name, value in expected[begun].items():
        assert said[begun][name] == (
            None if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)
        ), name


@pytest.mark.parametrize("seed", [0, 2])
def test_a_seed_beside_others_does_what_it_does_alone(whole: Path, seed: int) -> None:
    beside, alone = whole / f"seed-{seed}", trained(*ALONE, f"seed={seed}", "steps=150")
    assert torch.equal(visited(beside)[:100], visited(alone)[:100])
    says_what_it_says_alone(beside, alone)


PIXELS = {
    "slots": ("task=block_push", "task.blocks=1", "obs=pixels"),
    "cnn": ("task=maze", "obs=pixels", "perception=cnn"),
}


@pytest.mark.parametrize("seeing", ["slots", "cnn"])
def test_seeds_learn_from_pixels_side_by_side(tmp_path: Path, seeing: str) -> None:
    if seeing != "cnn" and not SLOTS.exists():
        pytest.skip("no slot model is there")
    words = (
        *PIXELS[seeing],
        "agent.envs=2",
        "agent.seed_steps=12",
        "agent.batch_size=4",
        "exploration.batch_size=4",
    )
    both, lone = trainer(tmp_path, *words, "seeds=2"), trainer(tmp_path / "lone", *words)
    before = [weights(run.agent) for run in both.runs]
    for trained_on in (both, lone):
        trained_on.began, trained_on.last_log = 0.0, (0.0, 0, 0)
        for _ in range(8):
            trained_on.step()
        trained_on.log()
    for run, start in zip(both.runs, before, strict=True):
        moved = {".".join(name.split(".")[:2]) for name in changed(start, run.agent)}
        assert {"model.f", "target.f", "pi.net", "p_phi.net", "rnd.predictor"} <= moved
        assert ("model.perception" in moved) == (seeing != "slots")
        assert all(value.isfinite().all() for value in run.agent.state_dict().values())
    says_what_it_says_alone(tmp_path / "seed-0", tmp_path / "lone")


def test_seeds_side_by_side_log_an_equal_share_of_the_time(tmp_path: Path, monkeypatch) -> None:
    three = trainer(tmp_path, *WORDS)
    three.runs[1].wall_before = 7.0  # it has been trained before
    three.began, three.last_log = 10.0, (10.0, 0, 0)
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    assert [line["wall_s"] for line in three.log()] == [30.0, 37.0, 30.0]


# Going on -----------------------------------------------------------------------------------------


def test_resumed_seeds_go_on_from_the_newest_shared_checkpoint_as_if_never_stopped(
    whole: Path, copy: Path
) -> None:
    shutil.rmtree(copy / "seed-1" / "checkpoints" / "step-0000000300")
    resumed = trainer(copy, *WORDS, "resume=true")
    assert [run.step for run in resumed.runs] == [150] * 3
    summaries = resumed.run()
    assert [(summary["seed"], summary["steps"], summary["updates"]) for summary in summaries] == [
        (seed, 300, 40) for seed in range(3)
    ]
    for seed in range(3):
        assert unequal(copy / f"seed-{seed}", whole / f"seed-{seed}") == []


@pytest.mark.parametrize("lost", ["one each", "all of the first", "all of the last"])
def test_seeds_without_a_checkpoint_in_common_are_told_how_to_go_on(copy: Path, lost: str) -> None:
    if lost == "one each":
        shutil.rmtree(copy / "seed-0" / "checkpoints" / "step-0000000150")
        shutil.rmtree(copy / "seed-1" / "checkpoints" / "step-0000000300")
    else:
        shutil.rmtree(copy / ("seed-0" if lost == "all of the first" else "seed-2") / "checkpoints")
    with pytest.raises(
        UserError,
        match="no checkpoint of the same step: continue them one by one with seed=N out=.*seed-N",
    ) as error:
        trainer(copy, *WORDS, "resume=true")
    assert str(copy) in str(error.value)
    assert facts(copy / "seed-1")[-1]["step"] == 280, "nothing is touched"


def test_a_seed_that_fell_behind_goes_on_alone_to_where_the_others_are(copy: Path) -> None:
    shutil.rmtree(copy / "seed-1" / "checkpoints" / "step-0000000300")
    [summary] = trainer(copy / "seed-1", *ALONE, "seed=1", "resume=true").run()
    assert (summary["seed"], summary["steps"], summary["updates"]) == (1, 300, 40)
    assert [line["step"] for line in facts(copy / "seed-1")] == [40, 80, 120, 160, 200, 240, 280]
    together = trainer(copy, *WORDS, "resume=true", "steps=310")
    assert together.step_count == 300
    assert [summary["steps"] for summary in together.run()] == [310] * 3


def test_a_seed_is_not_overwritten_where_the_others_are_new(copy: Path) -> None:
    shutil.rmtree(copy / "seed-0")
    with pytest.raises(
        UserError, match=r"seed-1: a run with checkpoints is there already; add resume=true"
    ):
        trainer(copy, *WORDS)


# What befalls one ---------------------------------------------------------------------------------


def poison(trainer: Trainer, seeds: list[int], step: int) -> None:
    """What these seeds have learned is lost at this step."""
    learn = trainer.learn

    def poisoned() -> float:
        if trainer.step_count == step:
            for seed in seeds:
                trainer.runs[seed].agent.model.R.layers[-1].bias.data.fill_(math.nan)
        return learn()

    trainer.learn = poisoned  # type: ignore[method-assign]


def break_environment(trainer: Trainer, seed: int, step: int) -> None:
    env: Any = trainer.runs[seed].envs.envs[3]
    make_step = env.step

    def broken(action: np.ndarray) -> Any:
        if trainer.step_count >= step:
            raise RuntimeError("the motor is hot")
        return make_step(action)

    env.step = broken


def test_seeds_that_fail_stop_alone_and_are_named_when_the_others_are_done(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = trainer(tmp_path, *WORDS)
    poison(stopped, [1], 200)
    break_environment(stopped, 0, 260)
    with pytest.raises(RunStopped) as error:
        stopped.run()
    environment, loss = str(error.value).split("checkpoints; ")
    assert re.search(
        r"^stopped at step 260: .*environment 3 .* raised RuntimeError .*the motor is hot; "
        r".*seed-0/$",
        environment,
    )
    assert re.search(
        r"^stopped at step 20\d: .* is not finite; the last checkpoint is kept in "
        r".*seed-1/checkpoints$",
        loss,
    )
    output = capfd.readouterr()
    assert (output.out + output.err).count("the others go on") == 2
    assert unequal(tmp_path / "seed-2", whole / "seed-2") == []
    assert (tmp_path / "seed-2" / "summary.json").exists()
    for seed, lines in ((0, 6), (1, 5)):
        left = tmp_path / f"seed-{seed}"
        assert facts(left) == facts(whole / f"seed-{seed}")[:lines]
        assert checkpoint.latest(left).name == "step-0000000150"
        assert all(value.isfinite().all() for value in final(left)["agent"].values())
        assert not (left / "summary.json").exists()


def test_when_the_last_seed_fails_the_run_stops_at_once_and_names_all(tmp_path: Path) -> None:
    stopped = trainer(tmp_path, "task=maze", "seeds=2")
    poison(stopped, [0, 1], 120)
    with pytest.raises(
        RunStopped, match=r"seed-0/checkpoints; stopped at step 1.*seed-1/checkpoints$"
    ):
        stopped.run()
    assert stopped.step_count < 200
