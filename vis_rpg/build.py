"""From a config to the parts: perception, agent, and a trained run loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from perception.cnn import CnnPerception
from perception.percept import Perception
from perception.slots import SlotPerception
from perception.state import StatePerception
from vis_rpg import checkpoint
from vis_rpg.acting import Actor
from vis_rpg.agent import Agent
from vis_rpg.envs.factory import make_env, task_of
from vis_rpg.envs.task import Declared
from vis_rpg.errors import UserError
from vis_rpg.novelty import make_novelty

ROOT = Path(__file__).resolve().parents[1]


def make_perception(config: DictConfig, env: gymnasium.Env | Declared) -> Perception:
    """The perception that the group `perception` names, for this environment or group of them."""
    seeing = config.perception
    if seeing.name == "state":
        task = task_of(env)
        assert env.observation_space.shape is not None
        return StatePerception(env.observation_space.shape[0], task.locate, task.state_scale, seeing.frequencies)
    try:
        if seeing.name == "cnn":
            return CnnPerception(backbone=seeing.backbone, weights=seeing.weights, seed=config.seed)
        path = Path(seeing.checkpoint)
        path = path if path.is_absolute() or path.exists() else ROOT / path
        if not path.exists():
            raise UserError(
                f"perception.checkpoint={seeing.checkpoint}: no slot model there; train one with "
                f"scripts/discover_objects.py task={config.task.name}, or use perception=cnn"
            )
        moving = config.exploration.get("novelty") == "moving"
        return SlotPerception(path, seeing.train, seeing.learn_every is not None, moving, bool(seeing.global_token), config.seed)
    except ValueError as error:
        raise UserError(str(error)) from None


def make_agent(config: DictConfig, env: gymnasium.Env | Declared) -> Agent:
    """An agent with fresh weights, drawn by `config.seed`."""
    torch.manual_seed(config.seed)
    perception = make_perception(config, env)
    assert env.action_space.shape is not None
    exploration = config.exploration if config.exploration.name != "none" else None
    novelty = make_novelty(exploration.novelty, task_of(env), config.seed) if exploration is not None else None
    actions, encoder = int(np.prod(env.action_space.shape)), config.perception.encoder
    try:
        return Agent(perception, actions, config.agent, encoder, exploration, config.task.terminates, novelty)
    except ValueError as error:
        raise UserError(str(error)) from None


def load_config(run: Path) -> DictConfig:
    """config.yaml of a run; raises UserError where it is missing or cannot be read."""
    try:
        config = OmegaConf.load(run / "config.yaml")
    except OSError as error:
        if seeds := sorted(run.glob("seed-*")):
            raise UserError(f"{run}: the folder of several seeds: give one of them, such as {seeds[0]}") from None
        raise UserError(
            f"{run}: not a run ({run / 'config.yaml'}: {error.strerror}): give the folder that scripts/train.py wrote (out=...)"
        ) from None
    except Exception as error:  # whatever the YAML parser makes of a broken file
        raise UserError(f"{run}/config.yaml cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, DictConfig) or "agent" not in config:
        raise UserError(f"{run}/config.yaml is not that of a run: give the folder that scripts/train.py wrote (out=...)")
    return config


def restore(agent: Agent, state: Mapping[str, Any], run: Path) -> None:
    """Give an agent the weights of a run's checkpoint; raises UserError where they are another agent's, or saw by another slot model."""
    try:
        agent.load_state_dict(state["agent"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{run}: the checkpoint does not fit its config.yaml: {str(error).splitlines()[-1].strip()}") from None


def load(run: str | Path, device: str = "cpu", seed: int = 0) -> tuple[Actor, gymnasium.Env]:
    """A trained agent and its environment: `agent, env = vis_rpg.load("runs/x")`, then the usual Gymnasium loop with `agent.reset()` at
    each episode and `agent.act(obs)` at each step. Raises UserError where the run or its checkpoint is missing or broken."""
    run = Path(run)
    config = load_config(run)
    state = checkpoint.load(checkpoint.latest(run))
    env = make_env(config.task, config.obs.kind)
    agent = make_agent(config, env)
    restore(agent, state, run)
    return Actor(agent.to(device), seed=seed), env
