"""Ours beside other libraries on one-block BlockPush: `vis-rpg benchmark what=peers`.

Each trains for the same minutes, one after the other, in a process of its own, on one core:
batches of 512 observations (128 segments of 4, SAC's 128 transitions, Dreamer's 8 sequences of 64),
layers 128 wide where the library has the setting.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import OmegaConf

from vis_rpg.benchmarks.dreamer import Recorded, recorder
from vis_rpg.compose import compose
from vis_rpg.envs.make import make_env, observed_task

BLOCK = (
    "task=block_push",
    "task.blocks=1",
    "preset=cpu",
    "device=cpu",
    "logger.log_every=100",
    "steps=10000000",  # until it is ended
)
DREAMER = (
    "algo.per_rank_batch_size=8",
    "algo.per_rank_sequence_length=64",
    "algo.dense_units=128",
    "algo.mlp_layers=1",
    "algo.world_model.recurrent_model.recurrent_state_size=128",
    "algo.world_model.transition_model.hidden_size=128",
    "algo.world_model.representation_model.hidden_size=128",
    "algo.world_model.encoder.cnn_channels_multiplier=24",
    "algo.learning_starts=1000",
    "algo.per_rank_pretrain_steps=0",
    "algo.replay_ratio=1",
)


@dataclass(frozen=True)
class Peer:
    """One method of one library."""

    name: str
    module: str | None
    """What must be installed."""
    command: str
    """What Python runs; it reads its words from the command line."""
    words: tuple[str, ...]
    updates: float
    """For each interaction."""
    pixels: tuple[str, ...] = ()
    """Further words with obs=pixels."""

    def start(self, obs: str, out: Path) -> subprocess.Popen[bytes]:
        """Start to train into a folder."""
        more = self.pixels if obs == "pixels" else ()
        words = (*BLOCK, f"obs={obs}", f"out={out}", *self.words, *more)
        out.mkdir(parents=True)
        with (out / "peer.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-c", self.command, *words],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,  # with the processes that it starts it is ended
                preexec_fn=one_core,
            )


def one_core() -> None:
    """Keep a new process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def dreamer(name: str, experiment: str) -> Peer:
    """SheepRL's agent of this experiment."""
    words = ",".join(f'"{word}"' for word in DREAMER)
    own = (
        "logger.log_every=10",
        "agent.envs=1",
        f"dreamer.experiment={experiment}",
        f"dreamer.words=[{words}]",
    )
    return Peer(f"SheepRL {name}", "sheeprl", RUN.format("dreamer"), own, 1.0)


RUN = "from vis_rpg.cli import main; main('{}')"
SB3 = "from vis_rpg.benchmarks.peers import train_sb3; train_sb3()"
PEERS = (
    Peer(
        "vis-rpg RPG",
        None,
        RUN.format("train"),
        (),
        0.2,
        ("exploration.rnd_input=moving_slots",),
    ),
    Peer(
        "vis-rpg SAC",
        None,
        RUN.format("train"),
        ("agent=sac", "agent.envs=1", "exploration=none"),
        1.0,
    ),
    Peer("Stable-Baselines3 SAC", "stable_baselines3", SB3, ("logger.log_every=10",), 1.0),
    dreamer("DreamerV3", "dreamer_v3"),
    dreamer("DreamerV2 with Plan2Explore", "p2e_dv2_exploration"),
)


def train_sb3() -> None:
    """Train Stable-Baselines3's SAC with the words of the command line, until it is ended."""
    import torch
    from stable_baselines3 import SAC  # the extra `baselines`

    torch.set_num_threads(1)
    config = compose(sys.argv[1:])
    out = Path(config.out)
    saved = config.copy()
    saved.agent.name, saved.exploration.name = "sb3_sac", "none"  # by which curves are named
    OmegaConf.save(saved, out / "config.yaml")
    env = make_env(observed_task(config), config.obs.kind, config.seed)
    if config.obs.kind == "pixels":  # both frames, as channels
        space = gymnasium.spaces.Box(0, 255, (64, 64, 6), np.uint8)
        stacked = partial(np.concatenate, axis=-1)
        env = gymnasium.wrappers.TransformObservation(env, stacked, space)
    env = Recorded(env, 0, recorder(str(out)))
    model = SAC(
        "CnnPolicy" if config.obs.kind == "pixels" else "MlpPolicy",
        env,
        learning_rate=config.agent.lr,
        batch_size=config.agent.batch_size,
        buffer_size=100_000,
        learning_starts=config.agent.seed_steps,
        policy_kwargs={"net_arch": [config.agent.hidden_dim] * 2},
        seed=config.seed,
        device="cpu",
    )
    model.learn(config.steps)


def progress(out: Path) -> list[dict[str, Any]]:
    """Read the whole lines that a run has written so far."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def speed(lines: list[dict[str, Any]], updates: float, starts: int) -> dict[str, float]:
    """Return updates and interactions a second of the second half of the time that a run learned.

    Args:
        lines: Of its metrics.jsonl.
        updates: For each interaction.
        starts: Interactions before the first update.
    """
    learned = [line for line in lines if line["step"] > starts]
    if len(learned) < 3:
        return {}
    first = learned[len(learned) // 2 - 1]
    steps = learned[-1]["step"] - first["step"]
    rate = steps / (learned[-1]["wall_s"] - first["wall_s"])
    return {"updates_per_s": round(updates * rate, 2), "interactions_per_s": round(rate, 1)}


def peers(out: Path, minutes: float, obs: str) -> Iterator[dict[str, Any]]:
    """Train each for `minutes`; what is not installed, or stops, says so.

    Args:
        out: Folder of the runs, new.
        minutes: Wall-clock, starting and compiling counted.
        obs: state | pixels.
    """
    starts = compose([*BLOCK]).agent.seed_steps
    for peer in PEERS:
        line: dict[str, Any] = {"name": f"{peer.name}, {obs}", "minutes": minutes}
        if peer.module and importlib.util.find_spec(peer.module) is None:
            yield line | {"skipped": f"{peer.module} is not installed (vis-rpg[baselines])"}
            continue
        folder = out / f"{peer.name.replace(' ', '-').lower()}-{obs}"
        process = peer.start(obs, folder)
        try:
            stopped: int | None = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            stopped = None
        finally:  # after Ctrl-C too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = progress(folder)
        if stopped is not None:
            last = (folder / "peer.log").read_text().strip().splitlines() or [""]
            yield line | {"failed": last[-1]}
            continue
        line |= speed(lines, peer.updates, starts)
        for key in ("step", "success", "coverage"):
            line[key] = lines[-1].get(key) if lines else None
        yield line
