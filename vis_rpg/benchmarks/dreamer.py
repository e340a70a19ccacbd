"""SheepRL's Dreamers on our tasks: `vis-rpg dreamer`.

SheepRL (the extra `baselines`) trains; this module gives it our environments and writes the same
metrics.jsonl and summary.json as `vis-rpg train`, so that curves and tables read them. DreamerV2
with Plan2Explore is `dreamer.experiment=p2e_dv2_exploration`, the paper's baseline.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import DictConfig, OmegaConf

from vis_rpg.checks import device as checked_device
from vis_rpg.envs.make import make_env, object_positions, observed_task, task_of
from vis_rpg.errors import UserError, require
from vis_rpg.training.logger import without_nan
from vis_rpg.training.progress import Progress

START = "import perception.encoders.torchvision_compat; from sheeprl.cli import run; run()"
"""What the process of SheepRL runs; torchvision may not load alone beside a CPU-only torch."""


def words(config: DictConfig, out: Path, accelerator: str) -> list[str]:
    """Return what SheepRL's command line is given.

    Args:
        config: A `DreamerConfig`.
        out: The run's folder, absolute.
        accelerator: cpu | cuda.
    """
    pixels = config.obs.kind == "pixels"
    return [
        f"exp={config.dreamer.experiment}",
        "env=default",
        f"env.id={config.task.name}",
        "+env.wrapper._target_=vis_rpg.benchmarks.dreamer.recorded_env",
        f"+env.wrapper.folder={out}",
        "+env.wrapper.seed=null",
        "+env.wrapper.rank=null",
        f"env.num_envs={config.agent.envs}",
        "env.sync_env=true",
        "env.capture_video=false",
        f"algo.total_steps={config.steps}",
        *(f"algo.cnn_keys.{part}={'[rgb]' if pixels else '[]'}" for part in ("encoder", "decoder")),
        *(
            f"algo.mlp_keys.{part}={'[]' if pixels else '[state]'}"
            for part in ("encoder", "decoder")
        ),
        "algo.run_test=false",
        f"buffer.size={min(config.steps, config.agent.replay_capacity)}",
        "buffer.memmap=false",
        "buffer.checkpoint=false",
        f"checkpoint.every={config.steps}",
        "metric.log_level=0",
        f"fabric.accelerator={accelerator}",
        f"seed={config.seed}",
        f"log_root={out}",
        "root_dir=sheeprl",
        "run_name=run",
        f"hydra.run.dir={out}/sheeprl",
        *config.dreamer.words,
    ]


class Recorder:
    """Counts what all environments of a run do, and writes metrics.jsonl.

    Args:
        config: Of the run.
        env: Says which task it is.
    """

    def __init__(self, config: DictConfig, env: gymnasium.Env[Any, Any]) -> None:
        self.config = config
        self.progress = Progress(task_of(env), config.agent.envs)
        self.step, self.began = 0, time.perf_counter()
        self.path = Path(config.out) / "metrics.jsonl"

    def add(self, row: int, reward: float, info: dict[str, Any], ended: bool) -> None:
        """Count one step of the environment `row`."""
        at = np.array([row])
        success = np.array([bool(info["success"])])
        self.progress.add(at, np.array([reward]), success, object_positions(info)[None])
        self.step += 1
        if ended:
            criteria = [info[f"success_{name}"] for name in self.progress.task.criteria]
            self.progress.end(row, bool(success[0]), criteria)
        if self.step % self.config.logger.log_every == 0 or self.step == self.config.steps:
            line = {"step": self.step, "wall_s": round(time.perf_counter() - self.began, 3)}
            with self.path.open("a") as file:
                file.write(json.dumps(without_nan(line | self.progress.metrics())) + "\n")


@cache
def recorder(folder: str) -> Recorder:
    """The recorder of the run in a folder, one for all of its environments."""
    config = DictConfig(OmegaConf.load(Path(folder) / "config.yaml"))
    env = make_env(config.task, "state")
    try:
        return Recorder(config, env)
    finally:
        env.close()


class Recorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose steps are counted; of two stacked frames it shows the newest."""

    def __init__(self, env: gymnasium.Env[Any, Any], row: int, counts: Recorder) -> None:
        super().__init__(env)
        self.row, self.counts = row, counts
        space = env.observation_space
        shape = space.shape or ()
        self.stacked = len(shape) == 4
        if self.stacked:
            self.observation_space = gymnasium.spaces.Box(0, 255, shape[1:], np.uint8)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        obs, info = self.env.reset(**kwargs)
        return (obs[-1] if self.stacked else obs), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Carry out an action, and count it."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.counts.add(self.row, float(reward), info, terminated or truncated)
        return (obs[-1] if self.stacked else obs), float(reward), terminated, truncated, info


def recorded_env(folder: str, seed: int, rank: int) -> gymnasium.Env[Any, Any]:
    """Make one environment of a run; SheepRL calls it.

    Args:
        folder: The run's.
        seed: Of this environment.
        rank: Its index.
    """
    counts = recorder(folder)
    config = counts.config
    return Recorded(make_env(observed_task(config), config.obs.kind, seed), rank, counts)


def main(config: DictConfig) -> None:
    """Train with SheepRL, and write the run's summary.json.

    Args:
        config: A `DreamerConfig`.

    Raises:
        UserError: SheepRL is not installed, the folder holds a run, or SheepRL fails.
    """
    require(
        importlib.util.find_spec("sheeprl") is not None,
        "vis-rpg dreamer needs SheepRL: pip install 'vis-rpg[baselines]'",
    )
    require(
        config.seeds == 1 and not config.resume,
        "vis-rpg dreamer trains one seed, from the start: -m seed=0,1,2 out='runs/x-${seed}' for "
        "several",
    )
    device = checked_device(config.device)
    out = Path(config.out).absolute()
    require(
        not (out / "metrics.jsonl").exists(),
        f"{out} holds a run already: give another out, or remove it",
    )
    out.mkdir(parents=True, exist_ok=True)
    saved = config.copy()
    saved.out = str(out)
    # By which curves are named.
    saved.agent.name = saved.exploration.name = config.dreamer.experiment
    saved.perception = {"name": "state"}
    OmegaConf.save(saved, out / "config.yaml")
    command = [sys.executable, "-c", START, *words(config, out, device.type)]
    chosen = {} if device.index is None else {"CUDA_VISIBLE_DEVICES": str(device.index)}
    # Without it the last line would be Hydra's hint at this, not the error.
    chosen["HYDRA_FULL_ERROR"] = "1"
    with (out / "sheeprl.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | chosen, check=False)
    if done.returncode != 0:
        lines = (out / "sheeprl.log").read_text().strip().splitlines() or [""]
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        why = (errors or lines)[-1]
        raise UserError(f"SheepRL stopped: {why} (all of it: {out}/sheeprl.log)")
    path = out / "metrics.jsonl"
    require(path.exists(), f"SheepRL ended without a step (all of it: {out}/sheeprl.log)")
    summary = json.loads(path.read_text().splitlines()[-1])
    summary |= {"steps": summary.pop("step"), "task": config.task.name, "obs": config.obs.kind}
    summary |= {"agent": config.dreamer.experiment, "seed": config.seed}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    shown = {key: summary[key] for key in ("steps", "return", "success", "coverage")}
    print(f"done: {out}/summary.json {shown}")
