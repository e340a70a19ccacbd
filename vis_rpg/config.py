"""What a training config must satisfy beyond what YAML can say; checked before any work starts."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vis_rpg.errors import UserError

CHOICES = {
    "runtime": ("auto", "eager", "compile", "graph"),
    "precision": ("float32", "bfloat16"),
    "render.backend": ("auto", "egl", "warp"),
    "agent.replay_device": ("auto", "device", "host"),
    "agent.q_reduce": ("sum", "mean"),
    "agent.latent.kind": ("gaussian", "categorical", "none"),
    "agent.latent.prior": ("fixed", "learned"),
    "perception.encoder": ("mlp", "transformer"),
    "exploration.rnd_input": (
        "slots",
        "moving_slots",
        "frame_embedding",
        "frames",
        "oracle_positions",
    ),
}
POSITIVE = (
    "steps",
    "seeds",
    *(
        f"agent.{key}"
        for key in (
            "horizon",
            "batch_size",
            "state_dim",
            "hidden_dim",
            "lr",
            "grad_clip",
            "alpha",
            "target_every",
        )
    ),
    *(
        f"agent.{key}"
        for key in ("policy_every", "std_scale", "latent.posterior_std", "replay_capacity", "envs")
    ),
    *(
        "exploration.width",
        "exploration.batch_size",
        "logger.log_every",
        "logger.checkpoint_every",
        "perception.learn_every",
        "perception.state_scale",
    ),
)
FREE_ON_RESUME = (
    "steps",
    "device",
    "runtime",
    "render",
    "resume",
    "out",
    "logger",
    "preset",
    "agent.replay_device",
    "task.processes",
)


def check(config: DictConfig) -> None:
    """Raise UserError for the first value that cannot be used."""
    for key, choices in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in choices and not (
            key.startswith("exploration.") and config.exploration.name == "none"
        ):
            near = get_close_matches(str(value), choices, 1, 0.0)[0]
            raise UserError(f"{key}={value}: choose one of {', '.join(choices)} (nearest: {near})")
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if (
            value is not None and value <= 0
        ):  # exploration=none has no sizes, frozen perception no pace
            raise UserError(f"{key}={value}: must be above 0")
    agent = config.agent
    for key, value in (("agent.gamma", agent.gamma), ("agent.tau", agent.tau)):
        if not 0 <= value <= 1:
            raise UserError(f"{key}={value}: must lie between 0 and 1")
    if agent.latent.kind != "none" and agent.latent.dim < 1:
        raise UserError(
            f"agent.latent.dim={agent.latent.dim}: must be at least 1 (agent=mbsac is the "
            "agent without z)"
        )
    decay = agent.latent.entropy_decay
    if len(decay) != 2 or not 0 <= decay[0] < decay[1]:
        raise UserError(
            f"agent.latent.entropy_decay={list(decay)}: give the interactions where the fall "
            "begins and ends: [begin,end]"
        )
    if (config.obs.kind == "state") != (config.perception.name == "state"):
        raise UserError(
            f"perception={config.perception.name} does not see obs={config.obs.kind}: "
            "use perception=state with obs=state, slots or cnn with obs=pixels"
        )
    if config.perception.name != "slots" and config.exploration.get("rnd_input") == "moving_slots":
        raise UserError(
            "exploration.rnd_input=moving_slots reads slots, which "
            f"perception={config.perception.name} does not see: use obs=pixels with "
            "perception=slots, or exploration.rnd_input=slots"
        )
    if config.obs.kind == "state" and config.exploration.get("rnd_input") in (
        "frame_embedding",
        "frames",
    ):
        raise UserError(
            f"exploration.rnd_input={config.exploration.rnd_input} reads frames, which obs=state "
            "does not give: use obs=pixels, or "
            "exploration.rnd_input=slots"
        )
    if config.task.name == "bandit":
        raise UserError(
            "task=bandit has one step and an exact reward, and its own learner: run "
            "scripts/bandit.py"
        )
    where = device(config)
    if config.runtime == "compile" and (lacking := lacks_compiler(config)):
        raise UserError(f"runtime=compile needs {lacking}, or use runtime=eager")
    if config.runtime == "graph" and where.type == "cpu":
        raise UserError(
            "runtime=graph: CUDA graphs need a CUDA device; on a CPU use runtime=compile or "
            "runtime=eager"
        )


def lacks_compiler(config: DictConfig) -> str | None:
    """What compiling for a CPU lacks here and how to get it, None where nothing does."""
    if device(config).type == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is None:  # what torch calls
            return "a C++ compiler: install one (apt-get install g++)"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return (
                "Python's headers: apt-get install "
                f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
            )
    return None


def device(config: DictConfig) -> torch.device:
    """The device that `device=` names, a GPU always with its number, as tensors there say; auto is
    the GPU where there is one. Raises UserError where it is not there."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use "
            "device=auto or device=cpu"
        )
    # An index of its own: "cuda" is not equal to the "cuda:0" that tensors report.
    return torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen


def check_resumable(config: DictConfig, saved: DictConfig) -> None:
    """Raise UserError where a run is resumed with other settings than those it was begun with."""

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {
            key: value
            for name, child in node.items()
            for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
        }

    now, then = (
        flat(OmegaConf.to_container(config, resolve=True)),
        flat(OmegaConf.to_container(saved, resolve=True)),
    )
    for key in sorted(now.keys() | then.keys()):
        if not {key, key.split(".")[0]} & set(FREE_ON_RESUME) and now.get(key) != then.get(key):
            raise UserError(
                f"resume=true: {key}={now.get(key)}, but the run in {config.out} was begun "
                f"with {key}={then.get(key)}: "
                "give the same settings"
            )
