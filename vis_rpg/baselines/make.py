"""Make the agent that a config names."""

from __future__ import annotations

import gymnasium
import torch
from omegaconf import DictConfig

from vis_rpg.agent.make import make_perception
from vis_rpg.agent.rnd_inputs import make_rnd_input
from vis_rpg.agent.rpg import Agent
from vis_rpg.baselines.sac import SAC
from vis_rpg.envs.make import task_of
from vis_rpg.envs.tasks.task import Declared

AGENTS: dict[str, type[Agent]] = {"sac": SAC}
"""By `agent.name`; any other name is RPG, with or without z."""


def make_agent(config: DictConfig, env: gymnasium.Env | Declared) -> Agent:
    """Make an agent with new weights drawn from `config.seed`.

    Args:
        config: The whole config.
        env: One environment, or a vector of them.

    Raises:
        UserError: The perception cannot be made.
    """
    torch.manual_seed(config.seed)
    perception = make_perception(config, env)
    exploration = config.exploration if config.exploration.name != "none" else None
    rnd_input = None
    if exploration is not None:
        rnd_input = make_rnd_input(exploration.rnd_input, task_of(env), config.seed)
    actions, terminates = gymnasium.spaces.flatdim(env.action_space), config.task.terminates
    kind = AGENTS.get(config.agent.name, Agent)
    return kind(perception, actions, config.agent, exploration, terminates, rnd_input)
