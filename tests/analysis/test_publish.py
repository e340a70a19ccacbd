"""Publishing: an agent acts and is judged as the run that it was made from, whatever folder it
lies in; of several seeds the median is chosen; what is damaged is one line."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.runs import trained
from vis_rpg.analysis import publish
from vis_rpg.analysis.evaluation import evaluate
from vis_rpg.compose import compose
from vis_rpg.errors import UserError
from vis_rpg.schema import flatten
from vis_rpg.training import published
from vis_rpg.training.load import load, load_whole_config

MAZE = ("task=maze", "steps=150")
SLOTS = ("task=block_push", "task.blocks=1", "obs=pixels", "steps=150")
CNN = ("task=block_push", "task.blocks=1", "obs=pixels", "perception=cnn", "steps=150")
DENSE = ("task=gym", "steps=150")
AGENTS = sorted(path.name for path in published.AGENTS.iterdir())


@pytest.fixture(autouse=True, scope="module")
def few_episodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "EPISODES", 2)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent published from a maze run. Copy it before breaking it."""
    folder = tmp_path_factory.mktemp("published") / "agent"
    publish.make(trained(*MAZE), folder, "agent")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "agent"))


def acts(run: Path, steps: int = 8) -> np.ndarray:
    """Observations and actions of an episode, mean and sampled actions in turn."""
    actor, env = load(run, seed=3)
    obs, _ = env.reset(seed=5)
    actor.reset()
    rows = []
    for step in range(steps):
        action = actor.act(obs, explore=step % 2 == 1)
        rows.append(np.concatenate([obs.ravel(), action]))
        obs, *_ = env.step(action)
    return np.stack(rows)


@pytest.mark.parametrize("overrides", [MAZE, SLOTS, CNN, DENSE], ids=["state", "slots", "cnn", "z"])
def test_a_published_agent_acts_and_is_judged_as_its_run(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    run, folder = trained(*overrides), tmp_path / "agent"
    card = publish.make(run, folder, "agent")
    np.testing.assert_array_equal(acts(run), acts(folder))
    assert evaluate(*load(run), 2).as_json() == card["evaluation"]
    assert (folder / published.SLOTS).exists() == (overrides == SLOTS)


def test_what_only_training_uses_is_neither_published_nor_there_to_be_read_by_mistake(
    made: Path,
) -> None:
    kept = {
        name.rpartition(".")[0].split(".layers")[0]
        for name in load_file(made / "agent.safetensors")
    }
    assert kept == {"", "model.f.1", "pi.net"}
    agent = load(made)[0].agent
    assert not hasattr(agent.model, "Q") and not hasattr(agent, "target")


@pytest.mark.parametrize(
    "words",
    [
        ["task=adroit_door", "obs=pixels", "perception=cnn", "agent=mbsac", "preset=cpu"],
        ["task=metaworld", "task.name=door-open-v3", "override=authors_dense", "steps=7000"],
        [
            "task=gym",
            "task.id=Pusher-v5",
            "+task.kwargs.width=2.5",
            "agent.latent.entropy_decay=[5,9]",
        ],
        ["task=block_push", "exploration=none", "~task.looks", "agent.lr=1e-4", "seed=3"],
    ],
)
def test_the_command_of_a_card_composes_the_config_of_the_run(words: list[str]) -> None:
    wanted = compose(words)
    program, verb, *found = shlex.split(publish.command(wanted))
    assert (program, verb) == ("vis-rpg", "train") and len(found) <= len(words) + 2
    one, other = (OmegaConf.to_container(each) for each in (wanted, compose(found)))
    left = [key for key in flatten(one).keys() | flatten(other).keys() if key != "out"]
    assert {key: flatten(one).get(key) for key in left} == {
        key: flatten(other).get(key) for key in left
    }


def seeds(folder: Path, success: list[float], **also: Any) -> Path:
    """A folder of seeds with these final successes, all of one trained run."""
    for seed, value in enumerate(success):
        run = Path(shutil.copytree(trained(*MAZE), folder / f"seed-{seed}"))
        settings = load_whole_config(run)
        settings.seed = seed
        OmegaConf.save(settings, run / "config.yaml")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        text = [json.dumps(line | {"success": value} | also) + "\n" for line in lines]
        (run / "metrics.jsonl").write_text("".join(text))
    return folder


@pytest.mark.parametrize(
    ("success", "chosen"), [([0.1, 0.9, 0.5], 2), ([0.2, 0.2, 1.0, 0.0, 0.9], 1), ([0.9, 0.1], 1)]
)
def test_the_run_of_median_success_is_chosen_and_the_card_has_all_curves(
    success: list[float], chosen: int, tmp_path: Path
) -> None:
    card = publish.make(seeds(tmp_path / "runs", success), tmp_path / "agent", "agent")
    assert card["seed"] == card["config"]["seed"] == chosen
    assert [seed["success"][-1] for seed in card["seeds"]] == success
    assert f"seed {chosen} of" in card["chosen"]


def test_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained(*MAZE), tmp_path / "run"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    lines = [json.dumps(last | {"step": step, "success": step / 1000}) for step in range(1, 1001)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = publish.curves(run, 800)
    assert found["interactions"][0] == 1 and found["interactions"][-1] == 800
    assert len(found["success"]) == publish.MOST_POINTS and found["success"][-1] == 0.8


def test_seeds_of_other_settings_or_lengths_are_refused(tmp_path: Path) -> None:
    folder = seeds(tmp_path / "runs", [0.1, 0.9])
    settings = OmegaConf.load(folder / "seed-1" / "config.yaml")
    OmegaConf.save(settings | {"steps": 300}, folder / "seed-1" / "config.yaml")
    with pytest.raises(UserError, match="not seeds of one run: .*steps"):
        publish.make(folder, tmp_path / "agent", "agent")
    OmegaConf.save(settings, folder / "seed-1" / "config.yaml")
    [newest] = (folder / "seed-1" / "checkpoints").glob("step-*150")
    newest.rename(newest.with_name("step-0000000100"))
    with pytest.raises(UserError, match="seeds have trained for 100, 150 interactions"):
        publish.make(folder, tmp_path / "agent", "agent")
