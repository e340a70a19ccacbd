"""From a config to the parts: perception, agent, and a trained run loaded again."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig

from perception.base import Perception
from perception.encoders.cnn import CnnPerception
from perception.encoders.state import StatePerception
from perception.slots.perception import SlotPerception
from vis_rpg.agent.rnd_inputs import make_novelty
from vis_rpg.agent.rpg import Agent
from vis_rpg.envs.make import task_of
from vis_rpg.envs.tasks.task import Declared
from vis_rpg.errors import UserError
from vis_rpg.resources import ROOT


def make_perception(config: DictConfig, env: gymnasium.Env | Declared) -> Perception:
    """The perception that the group `perception` names, for this environment or group of them."""
    seeing = config.perception
    if seeing.name == "state":
        task = task_of(env)
        assert env.observation_space.shape is not None
        scale = seeing.get("state_scale")  # runs of earlier versions have none
        return StatePerception(
            env.observation_space.shape[0],
            task.object_coordinates,
            task.state_scale if scale is None else scale,
            seeing.frequencies,
        )
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
        moving = config.exploration.get("rnd_input") == "moving_slots"
        return SlotPerception(
            path,
            seeing.train,
            seeing.learn_every is not None,
            moving,
            bool(seeing.global_token),
            config.seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def make_agent(config: DictConfig, env: gymnasium.Env | Declared) -> Agent:
    """An agent with fresh weights, drawn by `config.seed`."""
    torch.manual_seed(config.seed)
    perception = make_perception(config, env)
    assert env.action_space.shape is not None
    exploration = config.exploration if config.exploration.name != "none" else None
    novelty = (
        make_novelty(exploration.rnd_input, task_of(env), config.seed)
        if exploration is not None
        else None
    )
    actions, encoder = int(np.prod(env.action_space.shape)), config.perception.encoder
    try:
        return Agent(
            perception, actions, config.agent, encoder, exploration, config.task.terminates, novelty
        )
    except ValueError as error:
        raise UserError(str(error)) from None
