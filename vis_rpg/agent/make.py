"""Make the perception that a config names."""

from __future__ import annotations

from pathlib import Path

import gymnasium
from omegaconf import DictConfig
from torch import Tensor

from perception.base import Perception
from perception.encoders.cnn import CnnPerception
from perception.encoders.memory import MemoryPerception
from perception.encoders.separate_bonus import SeparateBonus
from perception.encoders.state import StatePerception
from perception.encoding import log_scale
from perception.slots.perception import SlotPerception
from vis_rpg.checks import READINGS
from vis_rpg.envs.make import task_of
from vis_rpg.envs.tasks.task import Declared
from vis_rpg.errors import UserError, require
from vis_rpg.resources import ROOT


def make_perception(config: DictConfig, env: gymnasium.Env | Declared) -> Perception:
    """Make the perception that a config names.

    Args:
        config: The whole config.
        env: One environment, or a vector of them.

    Raises:
        UserError: A checkpoint, backbone or weights file cannot be used.
    """
    seen = _make_perception(config, env)
    if config.agent.encoder.memory == "gru":
        return MemoryPerception(seen, config.agent.hidden_dim)
    return seen


def slot_model_path(config: DictConfig, key: str = "checkpoint") -> Path:
    """Find the slot model that a config names, in the working directory or among those that ship.

    Args:
        config: The whole config.
        key: Which setting of `perception` names it.

    Raises:
        UserError: There is none.
    """
    path = Path(config.perception[key])
    path = path if path.is_absolute() or path.exists() else ROOT / path
    require(
        path.exists(),
        f"perception.{key}={config.perception[key]}: no slot model there; train one "
        f"with vis-rpg discover-objects {_task_words(config.task)}, or use perception=cnn",
    )
    return path


def _task_words(task: DictConfig) -> str:
    """The words of the command line that choose a task."""
    if task.get("family"):
        return f"task={task.family} task.name={task.name}"
    return f"task={task.name}" + (f" task.id={task.id}" if task.get("id") else "")


def _make_perception(config: DictConfig, env: gymnasium.Env | Declared) -> Perception:
    section = config.perception
    reading = READINGS.get(config.exploration.get("rnd_input"), "all")
    try:
        if section.name == "state":
            task = task_of(env)
            scale = task.state_scale if section.state_scale is None else section.state_scale
            frequencies = task.frequencies if section.frequencies is None else section.frequencies
            size = gymnasium.spaces.flatdim(env.observation_space)
            near = section.near

            def coordinates(state: Tensor) -> Tensor:
                at = task.object_coordinates(state)
                return at if near is None else log_scale(at, near)

            return StatePerception(size, coordinates, scale, frequencies, reading)
        if section.name == "slots":
            return SlotPerception(slot_model_path(config), reading, section.frequencies)
        cnn = CnnPerception(backbone=section.backbone, weights=section.weights, seed=config.seed)
        if section.bonus_slots is None:
            return cnn
        return SeparateBonus(cnn, SlotPerception(slot_model_path(config, "bonus_slots"), reading))
    except ValueError as error:
        raise UserError(str(error)) from None
