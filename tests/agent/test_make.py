"""From a config to parts, and a trained run loaded again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import vis_rpg
from perception.base import RecurrentState
from perception.encoders.cnn import CnnPerception
from perception.encoders.state import StatePerception
from perception.encoding import log_scale
from tests.small import changed, config, weights
from vis_rpg.agent.make import make_perception
from vis_rpg.baselines.make import make_agent
from vis_rpg.checks import check
from vis_rpg.envs.make import make_env
from vis_rpg.errors import UserError
from vis_rpg.training.load import load, load_config
from vis_rpg.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "maze"
    Trainer(config("task=maze", "steps=150", f"out={out}")).run()
    return out


def test_perception_is_the_one_that_the_config_names() -> None:
    maze = config("task=maze")
    seen = make_perception(maze, make_env(maze.task, "state"))
    assert isinstance(seen, StatePerception)
    assert (seen.rnd_input_dim, seen.state_scale) == (2 * 13, 0.2)
    bare = config("task=maze", "perception.frequencies=0", "perception.state_scale=1")
    seen = make_perception(bare, make_env(bare.task, "state"))
    assert torch.equal(
        seen.features({"state": torch.tensor([[[3.0, -2.0]]])})[..., :2],
        torch.tensor([[[3.0, -2.0]]]),
    )
    assert seen.rnd_input_dim == 2
    near = config("task=maze", "perception.near=0.1")
    read = make_perception(near, make_env(near.task, "state")).object_coordinates
    state, at = torch.tensor([[1.0, -2.0]]), seen.object_coordinates
    assert torch.equal(read(state), log_scale(at(state), 0.1))
    pixels = config("task=maze", "obs=pixels", "perception=cnn")
    env = make_env(pixels.task, "pixels")
    seen = make_perception(pixels, env)
    assert isinstance(seen, CnnPerception)
    obs, _ = env.reset(seed=0)
    first = torch.ones(1, dtype=torch.bool)
    features, _, _ = seen.encode(
        torch.from_numpy(obs)[None], torch.zeros(1, 2), first, RecurrentState()
    )
    assert features.shape == (1, *seen.feature_shape)


def test_a_cnn_can_see_beside_a_bonus_on_slots() -> None:
    words = "task=block_push", "obs=pixels", "exploration.rnd_input=moving_slots"
    both, slots, cnn = (
        config(*words[: 2 + (seen != "cnn")], f"perception={seen}")
        for seen in ("cnn_slots", "slots", "cnn")
    )
    check(both)
    env = make_env(both.task, "pixels")
    made = [make_perception(each, env) for each in (both, slots, cnn)]
    made[2].encoder.load_state_dict(made[0].seen.encoder.state_dict())
    frames = [env.reset(seed=0)[0], *(env.step(np.ones(2))[0] for _ in range(6))]
    columns, states, features = [], [RecurrentState()] * 3, []
    for step, frame in enumerate(frames):
        given = torch.from_numpy(frame)[None], torch.zeros(1, 2), torch.tensor([step == 0])
        seen = [each.encode(*given, state) for each, state in zip(made, states, strict=True)]
        features, columns = [s[0] for s in seen], [*columns, [s[1] for s in seen]]
        states = [s[2] for s in seen]
    assert torch.equal(features[0], features[2])
    sequences = [
        {name: torch.stack([row[i][name] for row in columns]) for name in columns[0][i]}
        for i in range(3)
    ]
    assert set(sequences[0]) == set(sequences[1]) | set(sequences[2])
    read = [each.rnd_input(own) for each, own in zip(made[:2], sequences[:2], strict=True)]
    assert torch.equal(*read)
    assert read[0].any()
    assert made[0].pretraining_frames == made[1].pretraining_frames == 4000
    assert all(p.requires_grad for p in made[0].seen.encoder.parameters())
    assert not any(p.requires_grad for p in made[0].bonus.parameters())


def test_ant_pushs_state_is_read_raw_as_the_encoded_one_is_not_learned_from() -> None:
    ant = config("task=ant_push")
    perception = make_perception(ant, make_env(ant.task, "state"))
    state = torch.randn(1, 2, 31)
    features = perception.features({"state": state})
    assert torch.equal(features[..., :31], state)
    assert features.shape[-1] == 31 + perception.rnd_input_dim == 31 + 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("perception=cnn", "perception.backbone=conv5"), "backbone=conv5 is unknown"),
        (
            ("perception=cnn", "perception.weights=x.safetensors"),
            "weights=x.safetensors belong to a timm backbone",
        ),
        (
            ("perception=slots", "perception.checkpoint=none.safetensors"),
            "perception.checkpoint=none.safetensors: no slot model there; train one",
        ),
        (
            ("perception=slots", "perception.frequencies=9"),
            "perception.frequencies=9: objects at rest are still enough for [1-6] in .*maze.safet",
        ),
    ],
)
def test_a_perception_that_cannot_be_had_is_one_line(words: tuple[str, ...], says: str) -> None:
    settings = config("task=maze", "obs=pixels", *words)
    with pytest.raises(UserError, match=says):
        make_agent(settings, make_env(settings.task, "pixels"))


@pytest.mark.parametrize(
    "words",
    [
        ("task=gym", "task.id=Pusher-v5"),
        ("task=metaworld", "task.name=door-open-v3"),
        ("task=half_cheetah",),
    ],
)
def test_a_missing_slot_model_is_answered_with_the_command_that_makes_it(
    words: tuple[str, ...],
) -> None:
    settings = config(*words, "obs=pixels", "perception=slots")
    pixels = make_env(config("task=maze").task, "pixels")
    with pytest.raises(UserError, match=f"train one with .*-objects {' '.join(words)}, or use"):
        make_agent(settings, pixels)


def test_the_same_seed_makes_the_same_agent() -> None:
    settings = config("task=maze")
    env = make_env(settings.task, "state")
    first = make_agent(settings, env)
    torch.rand(5)
    assert changed(weights(first), make_agent(settings, env)) == set()
    assert changed(weights(first), make_agent(config("task=maze", "seed=1"), env))


def test_a_run_is_loaded_acts_and_renders_in_a_few_lines(run: Path) -> None:
    agent, env = vis_rpg.load(run)
    obs, _ = env.reset(seed=0)
    agent.reset()
    steps, done = 0, False
    while not done:
        obs, reward, terminated, truncated, info = env.step(agent.act(obs))
        steps, done = steps + 1, terminated or truncated
    assert steps == 50
    assert env.render().dtype == np.uint8


def test_what_is_loaded_is_the_trained_agent(run: Path) -> None:
    agent, env = load(str(run))
    fresh = make_agent(load_config(run), env)
    moved = changed(weights(fresh), agent.agent)
    assert {"pi", "model", "target", "rnd", "p_phi", "log_alpha"} <= {
        name.split(".")[0] for name in moved
    }
    again, _ = load(run)
    obs, _ = env.reset(seed=1)
    agent.reset()
    again.reset()
    assert np.array_equal(agent.act(obs), again.act(obs)), "the same seed draws the same z"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda run: shutil.rmtree(run), "not a run .*give the folder that vis-rpg train wrote"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text(""), "config.yaml is not that of a run"),
        (lambda run: (run / "config.yaml").write_text("- 1\n"), "config.yaml is not that of a run"),
        (
            lambda run: (run / "config.yaml").write_text("learning: true"),
            "config.yaml is not that of a run",
        ),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint there"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(run: Path, tmp_path: Path, harm, says: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    harm(copy)
    with pytest.raises(UserError, match=says) as error:
        load(copy)
    assert "\n" not in str(error.value)


def test_weights_of_another_size_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    settings = load_config(copy)
    settings.agent.state_dim = 20
    OmegaConf.save(settings, copy / "config.yaml")
    with pytest.raises(
        UserError, match="the checkpoint does not fit its config.yaml: .*size mismatch"
    ) as error:
        load(copy)
    assert "\n" not in str(error.value)
