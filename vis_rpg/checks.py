"""What settings must satisfy besides their schema, together and on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from perception.encoding import Reading
from vis_rpg import distributed
from vis_rpg.errors import UserError, require
from vis_rpg.schema import flatten

FREE_ON_RESUME = (
    "steps",
    "device",
    "runtime",
    "render.backend",
    "collectors",
    "resume",
    "out",
    "logger",
    "agent.replay_device",
    "task.processes",
)
SHARED = ("agent.envs", "agent.batch_size", "exploration.batch_size")
"""Settings of which each of several processes has an equal share."""
READINGS: dict[str, Reading] = {
    "moving_slots": "moving",
    "moving_scene": "scene",
    "displaced_slots": "displaced",
}
"""Values of exploration.rnd_input that read objects otherwise than always and one by one."""


def check(config: DictConfig) -> None:
    """Raise UserError for the first settings of a `TrainConfig` that cannot be used together."""
    latent, seeing, bonus = config.agent.latent, config.perception, config.exploration
    require(
        latent.kind == "none" or latent.dim >= 1,
        f"agent.latent.dim={latent.dim}: must be at least 1 (agent=mbsac is the agent without z)",
    )
    require(
        latent.kind not in ("mixed", "sphere") or latent.dim >= 2,
        f"agent.latent.dim={latent.dim}: agent.latent.kind={latent.kind} needs 2 or more",
    )
    require(
        latent.kind != "sphere" or latent.prior == "fixed",
        "agent.latent.kind=sphere has no learned prior: agent.latent.prior=fixed",
    )
    require(
        not latent.every
        or (latent.kind != "none" and config.agent.critic == "q" and not config.agent.planner),
        f"agent.latent.every={latent.every}: draws z anew, which needs a z, agent.critic=q and "
        "agent.planner=null",
    )
    decay = latent.entropy_decay
    require(
        len(decay) == 2 and 0 <= decay[0] < decay[1],
        f"agent.latent.entropy_decay={list(decay)}: give the interactions where the fall begins "
        "and ends: [begin,end]",
    )
    planner = config.agent.planner
    require(
        planner is None or planner.policy_samples < planner.samples >= planner.elites,
        "agent.planner: samples must be more than policy_samples, and elites at most samples",
    )
    require(
        config.agent.name != "sac" or (config.agent.horizon == 1 and planner is None),
        "agent=sac has no model: agent.horizon=1 and agent.planner=null",
    )
    require(
        (config.obs.kind == "state") == (seeing.name == "state"),
        f"perception={seeing.name} does not see obs={config.obs.kind}: use perception=state with "
        "obs=state, slots, cnn or cnn_slots with obs=pixels",
    )
    require(
        config.obs.kind == "state" or not (config.obs.hide or config.obs.noise),
        "obs.hide and obs.noise are of states: use obs=state",
    )
    require(
        config.obs.kind == "pixels" or not config.obs.get("corrupt"),
        "obs.corrupt is of frames: use obs=pixels",
    )
    reads = bonus.get("rnd_input")
    require(
        seeing.name != "cnn" or seeing.bonus_slots is not None or reads not in READINGS,
        f"exploration.rnd_input={reads} reads objects, which perception=cnn does not see: use "
        "perception=slots or cnn_slots",
    )
    require(
        not seeing.get("bonus_slots") or reads in ("slots", *READINGS),
        "perception=cnn_slots is for a bonus on slots: use it with exploration=object_rnd and "
        "exploration.rnd_input=slots, moving_slots, moving_scene or displaced_slots, else "
        "perception=cnn",
    )
    require(
        seeing.get("near") is None or reads not in READINGS,
        f"perception.near={seeing.get('near')}: only with exploration.rnd_input=slots",
    )
    require(
        bonus.name in ("none", "object_rnd") or reads != "frames",
        f"exploration={bonus.name} predicts vectors: exploration.rnd_input=frames is for "
        "object_rnd alone",
    )
    require(
        config.obs.kind == "pixels" or reads not in ("frame_embedding", "frames"),
        f"exploration.rnd_input={reads} reads frames, which obs=state does not give: use "
        "obs=pixels, or exploration.rnd_input=slots",
    )
    require(
        config.task.name != "bandit",
        "task=bandit has one step and an exact reward, and its own learner: run vis-rpg bandit",
    )
    processes = distributed.world_size()
    require(
        processes == 1 or config.seeds == 1,
        f"seeds={config.seeds}: several processes train one seed: seeds=1",
    )
    for key in SHARED:
        total = OmegaConf.select(config, key, default=0)
        require(
            total % processes == 0,
            f"{key}={total}: is shared out over {processes} processes: give a multiple of them",
        )
    where = device(config.device)
    lacking = lacks_compiler(config.device) if config.runtime == "compile" else None
    require(lacking is None, f"runtime=compile needs {lacking}, or use runtime=eager")
    require(
        config.runtime != "graph" or where.type != "cpu",
        "runtime=graph: CUDA graphs need a CUDA device; on a CPU use runtime=compile or "
        "runtime=eager",
    )


def lacks_compiler(name: str) -> str | None:
    """What compiling for this device lacks here and how to get it, None where nothing does."""
    if device(name).type == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is None:  # what torch calls
            return "a C++ compiler: install one (apt-get install g++)"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return (
                "Python's headers: apt-get install "
                f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
            )
    return None


def device(name: str) -> torch.device:
    """Return the device that `device=` names, a GPU always with its number, as its tensors say.

    Args:
        name: auto is the GPU where there is one, of several processes for each its own.

    Raises:
        UserError: The device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: choose auto, cpu, cuda or cuda:N")
    index = distributed.local_rank() if chosen.index is None else chosen.index
    require(
        chosen.type == "cpu" or index < torch.cuda.device_count(),
        f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices, and number "
        f"{index} is asked for; use device=auto, fewer processes, or device=cpu",
    )
    # An index of its own: "cuda" is not equal to the "cuda:0" that tensors report.
    return torch.device("cuda", index) if chosen.type == "cuda" else chosen


def check_resumable(config: DictConfig, saved: DictConfig) -> None:
    """Raise UserError where a run is resumed with other settings than those it was begun with."""
    now, then = (flatten(OmegaConf.to_container(each, resolve=True)) for each in (config, saved))
    then.setdefault("render.shadows", False)  # runs begun before there were any
    check_same(now, then, f"the run in {config.out}")


def check_same(now: Mapping[str, Any], then: Mapping[str, Any], begun: str) -> None:
    """Raise UserError for the first of flat settings, unless free, that are not those of then."""
    for key in sorted(now.keys() | then.keys()):
        require(
            bool({key, key.split(".")[0]} & set(FREE_ON_RESUME)) or now.get(key) == then.get(key),
            f"resume=true: {key}={now.get(key)}, but {begun} was begun with "
            f"{key}={then.get(key)}: give the same settings",
        )
