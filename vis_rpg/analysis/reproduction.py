"""The runs of a figure or table: their settings, training, evaluation, and what they cost."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from perception.slots.perception import SlotPerception
from vis_rpg.agent.make import slot_model_path
from vis_rpg.analysis.evaluation import evaluate
from vis_rpg.analysis.explored_states import read_metrics
from vis_rpg.analysis.paper import FIGURES, Figure, Row, tasks
from vis_rpg.checks import check, check_resumable, device
from vis_rpg.compose import compose
from vis_rpg.config import ReproduceConfig
from vis_rpg.errors import UserError, require
from vis_rpg.origin import commit, hardware
from vis_rpg.training import checkpoint
from vis_rpg.training.load import load, load_whole_config
from vis_rpg.training.trainer import Trainer

EPISODES = 50
"""Evaluation episodes of each run."""
EVALUATED = {"success": "eval_success", "return": "eval_return"}
"""What evaluation says of a metric of training episodes."""


@dataclass
class Job:
    """One seed of one curve."""

    row: Row
    agent: str
    """As the paper calls it."""
    config: DictConfig
    """Of vis-rpg train."""
    frames: int
    """Frames that perception was trained on; they count as interactions."""
    failure: str | None = None
    foreign: bool = False
    """Whether its folder holds a run with other settings, which then counts for nothing."""

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    @property
    def curve(self) -> Path:
        """The folder of all seeds of its curve."""
        return self.out.parent

    @property
    def reached(self) -> int:
        """Interactions of the newest checkpoint; 0 where there is none of these settings."""
        found = [] if self.foreign else checkpoint.complete(self.out / "checkpoints")
        return int(found[-1].name.removeprefix("step-")) if found else 0

    @property
    def done(self) -> bool:
        """Whether it has all its interactions."""
        return self.reached >= self.config.steps

    def metrics(self) -> list[dict[str, Any]]:
        """Read its lines up to the newest checkpoint and the wanted interactions."""
        end = min(self.reached, self.config.steps)
        if not end or not (self.out / "metrics.jsonl").stat().st_size:  # before the first line
            return []
        return [line for line in read_metrics(self.out) if line["step"] <= end]

    def points(self, key: str) -> np.ndarray:
        """Return (2, P) interactions, frames included, and values of a metric."""
        found = [
            (line["step"] + self.frames, line[key])
            for line in self.metrics()
            if line.get(key) is not None
        ]
        return np.array(found, float).reshape(-1, 2).T

    def sessions(self) -> list[dict[str, Any]]:
        """Read where each stretch of training began, on what, and with which commit."""
        path = self.out / "sessions.json"
        return json.loads(path.read_text()) if path.exists() else []

    def evaluation(self) -> dict[str, Any] | None:
        """Read its evaluation, if it is one of the finished run."""
        path = self.out / "evaluation.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("step") == self._last_step() and not self.foreign else None

    def _last_step(self) -> int:
        """Interactions at the end: steps come in as many as there are environments."""
        envs = self.config.agent.envs
        return -(-self.config.steps // envs) * envs

    @property
    def needs_evaluation(self) -> bool:
        """Whether it is to be evaluated now: at its end, not where it went on for a longer one."""
        at_its_end = self.reached == self._last_step()
        return self.row.key in EVALUATED and at_its_end and self.evaluation() is None


# The runs -----------------------------------------------------------------------------------------


def chosen(config: ReproduceConfig) -> Figure:
    """Return the figure or table that the settings name.

    Raises:
        UserError: They name none, both, or one that is not there.
    """
    require(
        (config.fig is None) != (config.table is None),
        "give one of fig=4, 5, 6, 7, 8, 11, 12 or 13 and table=tasks",
    )
    if config.table:
        return tasks(config.obs or "state")
    require(
        config.fig in FIGURES,
        f"fig={config.fig}: choose one of 4, {', '.join(map(str, FIGURES))}",
    )
    figure = FIGURES[config.fig or 0]
    require(
        config.obs in (None, figure.obs),
        f"obs={config.obs}: fig={config.fig} is from {figure.obs}; table=tasks takes obs=",
    )
    return figure


def make_jobs(figure: Figure, config: ReproduceConfig) -> list[Job]:
    """Compose the config of every run, in the order in which they are trained.

    Raises:
        UserError: A setting cannot be.
    """
    curves = [
        make_job(row, agent, figure, config) for row in figure.rows for agent in figure.agents
    ]
    jobs = [with_seed(job, seed) for seed in range(config.seeds) for job in curves]
    for job in jobs:
        try:
            if job.reached:
                check_resumable(job.config, load_whole_config(job.out))
        except UserError as error:
            job.failure, job.foreign = f"{error}, or another out", True
    return jobs


def make_job(row: Row, agent: str, figure: Figure, config: ReproduceConfig) -> Job:
    """Compose the run of seed 0."""
    words = [*row.words, *row.by_obs.get(figure.obs, ())]
    words += [f"obs={figure.obs}", f"agent={agent}", f"preset={config.preset}"]
    words += row.cpu if config.preset == "cpu" else ()
    composed = compose([*words, f"device={config.device}"])
    check(composed)
    frames = 0
    if composed.perception.name == "slots":
        frames = SlotPerception(slot_model_path(composed)).pretraining_frames
    composed.steps = min(row.steps, config.steps or row.steps) - frames
    require(
        composed.steps > 0,
        f"steps={config.steps}: the {frames:,} frames that perception of {row.name} was trained "
        f"on count as interactions: give more",
    )
    name = re.sub("[^a-z0-9]+", "-", f"{row.name} {figure.obs} {agent}".lower())
    composed.out = str(Path(config.out) / config.preset / name / "seed-0")
    return Job(row, label(agent, composed), composed, frames)


def label(agent: str, config: DictConfig) -> str:
    """Name an agent as the paper does, with (R) where the baseline has the bonus."""
    if agent == "rpg":
        return "RPG"
    return "MBSAC" if config.exploration.name == "none" else "MBSAC(R)"


def with_seed(job: Job, seed: int) -> Job:
    """Return the same run of another seed."""
    config = copy.deepcopy(job.config)
    config.seed, config.out = seed, str(job.curve / f"seed-{seed}")
    return Job(job.row, job.agent, config, job.frames)


def train(job: Job, stop: Callable[[int], bool]) -> None:
    """Train a run to its end, or until `stop` says so of the interactions of this stretch.

    A mistake of the user's stays with the run, and the others can go on.
    """
    gc.collect()  # the replay of the run before: agents refer to themselves
    config = copy.deepcopy(job.config)
    config.resume = job.reached > 0
    try:
        trainer = Trainer(config)
        first = trainer.step_count
        begun = {"step": first, "processor": processor(job), "commit": commit()}
        earlier = [own for own in job.sessions() if own["step"] < first]
        (job.out / "sessions.json").write_text(json.dumps([*earlier, begun], indent=2) + "\n")
        tqdm.write(f"{title(job)}: from {first:,} interactions on", file=sys.stderr)
        trainer.run(lambda: stop(trainer.step_count - first))
    except UserError as error:
        job.failure = str(error)
        tqdm.write(f"{title(job)}: {error}", file=sys.stderr)


def evaluate_run(job: Job) -> None:
    """Evaluate a run by mean actions, and write evaluation.json into its folder."""
    threads, step = torch.get_num_threads(), job.reached
    torch.set_num_threads(1)
    try:
        actor, env = load(job.out, str(device(job.config.device)))
        evaluate(actor, env, EPISODES).write(job.out / "evaluation.json", step=step)
        env.close()
    except UserError as error:
        job.failure = str(error)
    finally:
        torch.set_num_threads(threads)


def title(job: Job) -> str:
    """Name a run in a line."""
    return f"{job.row.name} from {job.config.obs.kind}, {job.agent}, seed {job.config.seed}"


def processor(job: Job) -> str:
    """Name what runs are trained on here."""
    return hardware(device(job.config.device))


# What they cost -----------------------------------------------------------------------------------


def speed(job: Job) -> float | None:
    """Return the interactions per second of a run's last logged stretch on this processor."""
    lines, end, here = job.metrics(), math.inf, processor(job)
    for session in reversed(job.sessions()):
        rates = [line["steps_per_s"] for line in lines if session["step"] < line["step"] <= end]
        if rates and session["processor"] == here:
            return median(rates)
        end = session["step"]
    return None


def minutes_left(jobs: list[Job]) -> list[float | None]:
    """Estimate what each run still takes, by its own speed or that of its curve's other seeds."""
    speeds: dict[Path, float] = {}
    for job in jobs:
        measured = speed(job)
        if measured:
            speeds.setdefault(job.curve, measured)
    return [
        0.0
        if job.done
        else (job.config.steps - job.reached) / (speed(job) or speeds[job.curve]) / 60
        if job.curve in speeds
        else None
        for job in jobs
    ]


def listing(jobs: list[Job], seconds: float) -> str:
    """Say of each run what is done, what is left, and how many runs fit the time.

    Args:
        jobs: The runs in their order.
        seconds: What is left of the budget, infinite without one.
    """
    lines = [f"  {'run':<52}{'interactions':>24}  minutes left"]
    total, fit, unknown = 0.0, 0, 0
    for job, minutes in zip(jobs, minutes_left(jobs), strict=True):
        reached = min(job.reached, job.config.steps)
        progress = f"{reached + job.frames * (reached > 0):,} of {job.config.steps + job.frames:,}"
        left = "not measured yet" if minutes is None else f"{minutes:.1f}"
        if job.failure:
            left = job.failure
        elif job.done:
            left = "done"
        elif minutes is None:
            unknown += 1
        else:
            total += minutes
            fit += total * 60 <= seconds
        lines.append(f"  {title(job):<52}{progress:>24}  {left}")
    failed = sum(job.failure is not None for job in jobs)
    done = sum(job.done and job.failure is None for job in jobs)
    known = len(jobs) - done - failed - unknown
    said = [f"{done} of {len(jobs)} runs are done" + f", {failed} failed" * (failed > 0)]
    if known:
        said.append(f"{total:.1f} min for {known} more")
    if unknown:
        said.append(f"{unknown} not measured yet")
    elif known and math.isfinite(seconds):
        said.append(f"{fit} of them fit into the {max(0.0, seconds) / 60:.1f} min left")
    return "\n".join([*lines, f"{'; '.join(said)}."])
