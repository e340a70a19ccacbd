"""Publishing: an agent acts and is judged as the run that it was made from, whatever folder it
lies in; of several seeds the median is chosen; what is damaged is one line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants, hf_api
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import vis_rpg
from tests.hub import TOKEN, HubServer, hub
from tests.runs import run_script, trained
from vis_rpg.analysis import publish
from vis_rpg.analysis.evaluation import evaluate
from vis_rpg.compose import compose
from vis_rpg.errors import UserError
from vis_rpg.origin import commit
from vis_rpg.schema import flatten
from vis_rpg.training import published
from vis_rpg.training.chunks import digest
from vis_rpg.training.load import load, load_whole_config

MAZE = ("task=maze", "steps=150")
SLOTS = ("task=block_push", "task.blocks=1", "obs=pixels", "steps=150")
CNN = ("task=block_push", "task.blocks=1", "obs=pixels", "perception=cnn", "steps=150")
DENSE = ("task=gym", "steps=150")
FIELDS = (
    "format",
    "name",
    "task",
    "obs",
    "agent",
    "interactions",
    "chosen",
    "command",
    "commit",
    "processor",
    "seeds",
    "config",
    "files",
    "evaluation",
)
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


def acts(run: str | Path, steps: int = 8) -> np.ndarray:
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


BOTH = (
    *CNN[:-2],
    "perception=cnn_slots",
    "exploration.rnd_input=moving_slots",
    "agent.encoder.memory=gru",
    "steps=150",
)


@pytest.mark.parametrize(
    "overrides", [MAZE, SLOTS, CNN, BOTH, DENSE], ids=["state", "slots", "cnn", "both", "z"]
)
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
        ["task=adroit_door", "obs=pixels", "perception=cnn", "agent=mbsac", "render.shadows=true"],
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
    assert card["chosen"].startswith(f"seed {chosen} of 0, 1")


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
    path = folder / "seed-1" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("  gamma: 0.99\n", "  gamma: 0.5\n"))
    with pytest.raises(UserError, match="seed-1 is no other seed of .*: agent.gamma=0.5, not 0.99"):
        publish.make(folder, tmp_path / "agent", "agent")
    path.write_text(text)
    [newest] = (folder / "seed-1" / "checkpoints").glob("step-*150")
    newest.rename(newest.with_name("step-0000000100"))
    with pytest.raises(UserError, match="seeds have trained for 100, 150 interactions"):
        publish.make(folder, tmp_path / "agent", "agent")


def test_a_run_that_has_not_recorded_what_trained_it_must_be_told(tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained(*MAZE), tmp_path / "run"))
    (run / "runtime.json").write_text('{"runtime": "eager", "device": "cpu", "processor": "a"}')
    with pytest.raises(UserError, match="has not recorded its commit: give commit=..."):
        publish.make(run, tmp_path / "agent", "agent")
    assert publish.recorded(run, "abc", None) == {"commit": "abc", "processor": "a"}
    assert publish.recorded(trained(*MAZE), None, None)["commit"] == commit()


def test_an_agent_that_is_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(published, "MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="the agent takes .* MB, more than the 0 MB"):
        publish.make(trained(*MAZE), tmp_path / "agent", "agent")


def test_paths_of_the_machine_are_not_published() -> None:
    words = ["task=block_push", "obs=pixels", "out=/home/me/secret/x"]
    where = published.ASSETS / "slots" / "block_push.safetensors"
    kept = publish.portable(compose([*words, f"perception.checkpoint={where}"]))
    assert kept["out"] == "runs/x" and kept["perception"]["checkpoint"] == "block_push.safetensors"


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        card = json.loads((folder / "card.json").read_text())
        change(card)
        (folder / "card.json").write_text(json.dumps(card))

    return harm


def poisoned(folder: Path) -> None:
    """Weights with a NaN whose checksum is right."""
    weights = load_file(folder / "agent.safetensors")
    weights["log_alpha"] = torch.tensor(float("nan"))
    save_file(weights, folder / "agent.safetensors")
    files = {"agent.safetensors": digest(folder / "agent.safetensors")}
    edited(lambda card: card.update(files=files))(folder)


def cut(folder: Path) -> None:
    os.truncate(folder / "agent.safetensors", 900)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "agent.safetensors").unlink(), "is damaged .*agent.safetensors"),
        (cut, "is damaged|checksum"),
        (poisoned, "NaN or infinity in log_alpha"),
        (lambda folder: (folder / "card.json").write_text("{"), "card.json cannot be read"),
        (lambda folder: (folder / "card.json").write_text("[]"), "not an agent of this version"),
        (edited(lambda card: card.update(format="other 1")), "not an agent of this version"),
        (edited(lambda card: card.pop("config")), "is damaged .*config"),
        (edited(lambda card: card.update(files={})), "is damaged .*agent.safetensors"),
        (edited(lambda card: card["files"].update(other="x")), "is damaged .*other"),
        (
            edited(lambda card: card["files"].update({"agent.safetensors": "0"})),
            "agent.safetensors is not as it was published",
        ),
        (edited(lambda card: card["config"]["agent"].pop("lr")), "is damaged .agent.lr is missing"),
        (
            edited(lambda card: card["config"]["agent"].update(hidden_dim=8)),
            "agent.safetensors does not fit card.json",
        ),
        (edited(lambda card: card["config"].update(obs={"kind": "pixels"})), "perception=state"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_line(
    harm: Callable[[Path], None], says: str, copy: Path
) -> None:
    harm(copy)
    with pytest.raises(UserError, match=says) as error:
        load(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def test_an_agent_older_than_a_setting_gets_the_value_that_it_was_trained_with(copy: Path) -> None:
    edited(
        lambda card: (card["config"]["agent"].pop("critic"), card["config"]["exploration"].clear())
    )(copy)
    edited(lambda card: card["config"]["exploration"].update(name="none", scale=0.0))(copy)
    config = published.read(copy).config
    assert config.agent.critic == "q"
    assert config.exploration.window == 0


def test_every_setting_younger_than_the_format_may_be_missing(copy: Path) -> None:
    def without(card: dict[str, Any]) -> None:
        for key in published.ADDED.keys() - {"perception.bonus_slots"}:  # a CNN's, this is state
            *path, last = key.split(".")
            section = card["config"]
            for name in path:
                section = section[name]
            del section[last]

    wanted = published.read(copy).config
    edited(without)(copy)
    assert published.read(copy).config == wanted


@pytest.fixture
def zoo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo with the one agent `tiny`, and an empty working directory."""
    monkeypatch.setattr(published, "AGENTS", made.parents[1] / "zoo")
    shutil.copytree(made, published.AGENTS / "tiny", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return published.AGENTS


def test_evaluating_gives_the_figures_of_the_run_and_leaves_the_package_alone(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("episodes=2", "videos=false")
    assert run_script(monkeypatch, "evaluate", "run=zoo:tiny", *words) == 0
    assert run_script(monkeypatch, "evaluate", f"run={trained(*MAZE)}", *words, "out=of/run") == 0
    ours = Path("runs/zoo-tiny/evaluation.json").read_text()
    assert ours == Path("of/run/evaluation.json").read_text()
    assert json.loads(ours)["step"] == 150
    assert {path.name for path in (zoo / "tiny").iterdir()} == {
        "agent.safetensors",
        "card.json",
        "README.md",
    }
    agent, env = vis_rpg.load("zoo:tiny")
    agent.reset()
    assert env.action_space.contains(agent.act(env.reset(seed=0)[0]))


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("evaluate", ["run=zoo:tyny"], "zoo:tyny: no such agent; did you mean tiny? (there are"),
        ("visualise_states", ["run=zoo:tiny"], "zoo:tiny: a published agent has no critics,"),
        ("diagnose", ["run=zoo:tiny"], "zoo:tiny: a published agent has no critics,"),
        ("plot_curves", ["runs=[zoo:tiny]", "name=x", "out=x"], "zoo:tiny: a published agent has"),
        ("visualise_slots", ["run=zoo:tiny"], "run=zoo:tiny sees without slots"),
        ("publish", ["run=zoo:tiny", "to=x"], "run=zoo:tiny is published already: give to=hf:"),
        ("publish", ["run=absent", "to=x"], "absent: not a run"),
        ("publish", ["run=zoo:tiny", "to=."], "to=.: something is there already"),
        ("publish", ["run=zoo:tiny", "to=hf:me/x"], "no token of the Hugging Face Hub is there"),
        ("publish", ["run=zoo:tiny", "to=hf:a/b/c"], "to=hf:a/b/c: write to=hf:USER/REPO"),
    ],
)
def test_a_mistake_is_one_line(
    command: str,
    words: list[str],
    says: str,
    zoo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "absent")
    assert run_script(monkeypatch, command, *words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A stand-in of the Hub that the client talks to, with a token that it takes."""
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # its storage is not stood in for
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_an_agent_goes_to_the_hub_and_comes_back(
    server: HubServer, made: Path, copy: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "private.txt").write_text("not for others")
    assert run_script(monkeypatch, "publish", f"run={copy}", "to=hf:me/maze") == 0
    assert set(server.repos["me/maze"]) == {"agent.safetensors", "card.json", "README.md"}
    assert list(server.objects.values()) == [(made / "agent.safetensors").read_bytes()]
    np.testing.assert_array_equal(acts("hf:me/maze"), acts(made))
    words = ("run=hf:me/maze", "episodes=2", "videos=false")
    assert run_script(monkeypatch, "evaluate", *words) == 0
    found = json.loads(Path("runs/hf-me-maze/evaluation.json").read_text())
    assert found.items() >= json.loads((made / "card.json").read_text())["evaluation"].items()


def test_a_run_goes_to_the_hub_with_its_video(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "record_rollouts", lambda actor, env, path: path.write_text("v"))
    assert run_script(monkeypatch, "publish", f"run={trained(*MAZE)}", "to=hf:you/maze") == 0
    files = server.repos["you/maze"]
    assert files["rollouts.mp4"] == b"v" and json.loads(files["card.json"])["name"] == "maze"
    assert files["README.md"].decode().startswith("---\nlibrary_name: vis-rpg\n")


def test_what_the_hub_refuses_is_one_line(
    server: HubServer, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run_script(monkeypatch, "publish", f"run={copy}", "to=hf:me/maze") == 2
    assert run_script(monkeypatch, "evaluate", "run=hf:me/absent") == 2
    refused, absent = capsys.readouterr().err.splitlines()
    assert "to=hf:me/maze cannot be uploaded (" in refused and "401" in refused
    assert "hf:me/absent cannot be fetched (" in absent and "404" in absent
    assert not server.repos


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_that_ships_loads_acts_and_has_a_whole_card(name: str) -> None:
    folder = published.AGENTS / name
    assert {path.name for path in folder.iterdir()} <= set(published.FILES)
    weighed = [folder / each for each in published.FILES if each != published.VIDEO]
    assert sum(path.stat().st_size for path in weighed if path.exists()) < published.MOST_BYTES
    card = published.read(folder).card
    lacking = [key for key in FIELDS if card.get(key) in (None, "", [], {})]
    assert lacking == [] and card["name"] == name
    assert card["evaluation"]["episodes"] == 50
    assert all(len(seed["interactions"]) == len(seed["success"]) for seed in card["seeds"])
    agent, env = vis_rpg.load(f"zoo:{name}")
    agent.reset()
    assert env.action_space.contains(agent.act(env.reset(seed=0)[0]))
