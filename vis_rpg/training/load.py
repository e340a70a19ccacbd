"""Load a trained run, or an agent published from one: its config, weights and environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vis_rpg.agent.actor import Actor
from vis_rpg.agent.rpg import Agent
from vis_rpg.baselines.make import make_agent
from vis_rpg.checks import check
from vis_rpg.compose import checked
from vis_rpg.config import TrainConfig
from vis_rpg.envs.make import make_env, observed_task
from vis_rpg.envs.rendering.frames import render_on
from vis_rpg.errors import UserError, one_line, require
from vis_rpg.training import checkpoint, published
from vis_rpg.training.progress import count_rewarded


def load_config(run: Path) -> DictConfig:
    """Read config.yaml of a run.

    Raises:
        UserError: It is missing or cannot be read, or this is a published agent.
    """
    require(
        not published.is_published(run),
        f"{run}: a published agent has no critics, replay, metrics or visited states: give the "
        "folder of a run",
    )
    try:
        config = OmegaConf.load(run / "config.yaml")
    except OSError as error:
        if seeds := sorted(run.glob("seed-*")):
            raise UserError(
                f"{run}: the folder of several seeds: give one of them, such as {seeds[0]}"
            ) from None
        raise UserError(
            f"{run}: not a run ({run / 'config.yaml'}: {error.strerror}): give the folder that "
            "vis-rpg train wrote (out=...)"
        ) from None
    except Exception as error:  # whatever the YAML parser makes of a broken file
        raise UserError(f"{run}/config.yaml cannot be read: {one_line(error)}") from None
    if not isinstance(config, DictConfig) or "agent" not in config:
        raise UserError(
            f"{run}/config.yaml is not that of a run: give the folder that vis-rpg train "
            "wrote (out=...)"
        )
    return config


def load_whole_config(run: Path) -> DictConfig:
    """Read config.yaml of a run that is to act or continue.

    Raises:
        UserError: It is missing or cannot be read, or a key is missing or of another kind.
    """
    config = load_config(run)
    require(
        "dreamer" not in config,
        f"{run}: a run of SheepRL: only its curves can be read (vis-rpg plot-curves)",
    )
    try:
        try:
            checked(config, TrainConfig)
        except UserError:
            published.add_younger(config)
            checked(config, TrainConfig)
    except (UserError, OmegaConfBaseException) as error:
        for newest in checkpoint.complete(run / "checkpoints")[-1:]:
            checkpoint.load(newest)  # which says so if the run is of another version
        raise damaged(run, error) from None
    return config


def damaged(run: Path, error: Exception) -> UserError:
    """Return what to raise where a value of a run's config.yaml is missing or of another kind."""
    return UserError(
        f"{run}/config.yaml is damaged, or of another version: "
        f"{str(error).splitlines()[0]}: restore it from a copy of the run"
    )


def runtime_record(run: Path) -> dict[str, Any]:
    """Read how and on what a run was last trained (runtime.json); empty if it cannot be read."""
    try:
        found = json.loads((run / "runtime.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def restore(agent: Agent, state: Mapping[str, Any], run: Path) -> None:
    """Give an agent the weights of a run's checkpoint, and what its schedules have come to.

    Args:
        agent: Made from the run's config.
        state: From `checkpoint.load`.
        run: The run's folder, for messages.

    Raises:
        UserError: The weights belong to another agent or another slot model, or are not finite.
    """
    try:
        agent.load_state_dict(state["agent"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{run}: the checkpoint does not fit its config.yaml: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from None
    if broken := [name for name, value in agent.state_dict().items() if not value.isfinite().all()]:
        more = f" and {len(broken) - 1} others" if len(broken) > 1 else ""
        raise UserError(
            f"{run}: the newest checkpoint has weights that are not finite (NaN or infinity in "
            f"{broken[0]}{more}): "
            "delete its folder to use the one before"
        )
    progress = state["progress"]
    rewarded = count_rewarded(progress["returns"], progress["finished"])
    agent.follow_schedules(state["step"], rewarded)


def load(run: str | Path, device: str = "cpu", seed: int = 0) -> tuple[Actor, gymnasium.Env]:
    """Load a trained agent and its environment.

    With `agent, env = vis_rpg.load("runs/x")`, run the usual Gymnasium loop: `agent.reset()` at
    each episode and `agent.act(obs)` at each step.

    Args:
        run: The run's folder, that of a published agent, zoo:NAME (one that ships), or
            hf:USER/REPO (one on the Hugging Face Hub).
        device: Where the agent acts.
        seed: Seeds z and exploration noise.

    Raises:
        UserError: The run or its checkpoint is missing or broken.
    """
    run = published.locate(run)
    found = published.read(run) if published.is_published(run) else None
    config = found.config if found else load_whole_config(run)
    settings = run / (published.CARD if found else "config.yaml")
    try:
        check(
            DictConfig({**config, "device": "cpu", "runtime": "eager"})
        )  # The machine may be another one.
    except UserError as error:
        raise UserError(f"{settings}: {error}") from None
    state = {} if found else checkpoint.load(checkpoint.latest(run))
    render_on(torch.device(device))
    try:
        env = make_env(observed_task(config), config.obs.kind)
        agent = make_agent(config, env)
    except (
        OmegaConfBaseException,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{settings}: no agent can be made from it ({one_line(error)})") from error
    if found:
        published.restore(agent, found, run)
    else:
        restore(agent, state, run)
    return Actor(agent.to(device), seed=seed), env
