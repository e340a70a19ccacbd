"""Reproduce a figure or table: vis-rpg reproduce fig=7 preset=cpu seeds=3 budget=150m.

Runs are trained one after the other in this process, as by vis-rpg train --multirun, so that a
budget or Ctrl-C ends them between two steps, with a checkpoint. Every curve's first run is measured
over its first interactions; the curves then get their seeds in turn. What is done is skipped.
"""

from __future__ import annotations

import copy
import csv
import gc
import json
import math
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event
from time import monotonic
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from perception.slots.perception import SlotPerception
from vis_rpg.agent.make import slot_model_path
from vis_rpg.analysis.curves import Curve, average, draw_on
from vis_rpg.analysis.evaluation import bootstrap, evaluate
from vis_rpg.analysis.explored_states import read_metrics
from vis_rpg.analysis.paper import FIGURES, Figure, Readings, Row, tasks
from vis_rpg.bandit import figure as bandit
from vis_rpg.checks import check, check_resumable, device
from vis_rpg.compose import compose
from vis_rpg.config import BanditConfig, ReproduceConfig
from vis_rpg.errors import UserError, require
from vis_rpg.origin import commit, hardware
from vis_rpg.training import checkpoint
from vis_rpg.training.load import load, load_whole_config
from vis_rpg.training.trainer import REPORTED, Trainer

MEASURED = 5_000
"""Interactions over which a run's speed is measured; the run continues from them."""
EPISODES = 50
"""Evaluation episodes of each run."""
EVALUATED = {"success": "eval_success", "return": "eval_return"}
"""What evaluation says of a metric of training episodes."""
METRICS = {
    "success": "Success: share of the last 100 training episodes, sampled actions.",
    "return": "Return: mean of the last 100 training episodes, sampled actions.",
    "coverage": "Coverage: share of the cells visited since the start.",
}
UNITS = {"s": 1, "m": 60, "h": 3600}
CSV_FIELDS = ("task", "obs", "agent", "seed", "interactions", "metric", "value")
COLOURS = {"rpg": "tab:blue", "mbsac": "tab:orange"}
COLUMNS = 3
"""Panels side by side."""


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
        "give one of fig=4, 5, 6, 7, 11 or 13 and table=tasks",
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
    words = [*row.words, *(row.from_pixels if figure.obs == "pixels" else ())]
    words += [f"obs={figure.obs}", f"agent={agent}", f"preset={config.preset}"]
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


def seconds_of(budget: str | None) -> float:
    """Read a budget such as 150m; infinite without one.

    Raises:
        UserError: It is none.
    """
    if budget is None:
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not found:
        raise UserError(f"budget={budget}: write a number and s, m or h, as in budget=150m")
    return float(found[1]) * UNITS[found[2]]


# What they show -----------------------------------------------------------------------------------


def counted(jobs: list[Job]) -> list[Job]:
    """Choose the seeds that figures of a curve are of: finished ones, if any, else all begun."""
    begun = [job for job in jobs if job.points(job.row.key).size]
    finished = [job for job in begun if job.done] or begun
    first = max((job.points(job.row.key)[0, 0] for job in finished), default=0)
    return [job for job in finished if job.points(job.row.key)[0, -1] >= first]


def by_curve(jobs: list[Job]) -> list[list[Job]]:
    """Group runs by curve."""
    curves: dict[Path, list[Job]] = {}
    for job in jobs:
        curves.setdefault(job.curve, []).append(job)
    return list(curves.values())


def curve(jobs: list[Job]) -> Curve:
    """Average seeds of one curve, at least one."""
    return average(jobs[0].agent, [job.points(job.row.key) for job in jobs])


def write_csv(path: Path, jobs: list[Job]) -> None:
    """Write every metric of every run, evaluations included."""
    rows: list[tuple[Any, ...]] = []
    for job in jobs:
        config = job.config
        run = (job.row.name, config.obs.kind, job.agent, config.seed)
        for key in REPORTED:
            rows += [(*run, int(step), key, value) for step, value in job.points(key).T]
        found = job.evaluation() or {}
        rows += [
            (*run, found["step"] + job.frames, key, found[key])
            for key in EVALUATED.values()
            if key in found
        ]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([CSV_FIELDS, *rows])


def draw(path: Path, jobs: list[Job], heading: str) -> None:
    """Draw a panel for each task: means, intervals, each seed (thin), the paper and the goal."""
    panels: dict[str, list[list[Job]]] = {}
    for seeds in by_curve(jobs):
        panels.setdefault(seeds[0].row.name, []).append(seeds)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(7, 5 * columns), 3.6 * rows),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        row = curves[0][0].row
        shown = [chosen for seeds in curves if (chosen := counted(seeds))]
        axes.set_prop_cycle(color=[COLOURS[chosen[0].config.agent.name] for chosen in shown] or "k")
        draw_on(axes, [curve(chosen) for chosen in shown], name, row.key)
        for chosen, line in zip(shown, list(axes.get_lines()), strict=True):
            colour, config = line.get_color(), chosen[0].config
            for job in next(seeds for seeds in curves if chosen[0] in seeds):
                axes.plot(*job.points(row.key), color=colour, linewidth=0.6, alpha=0.5)
            readings = [
                each for each in row.paper.get(config.agent.name, ()) if each[0] <= row.steps
            ]
            if readings:
                axes.plot(
                    *zip(*readings, strict=True),
                    "x",
                    color=colour,
                    label=f"{chosen[0].agent}, paper",
                )
        goal = row.goals.get(curves[0][0].config.obs.kind)
        if goal is not None:
            axes.plot(row.steps, goal, "*", color="black", label="goal")
        if shown:
            axes.legend(frameon=False, fontsize=8)
        axes.set_xlim(0, 1.02 * row.steps)
        if row.key != "return":
            axes.set_ylim(-0.02, 1.04)
    figure.suptitle(heading)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(jobs: list[Job], heading: str, command: str) -> str:
    """Write the Markdown table of all curves."""
    head = (
        "task",
        "agent",
        "training (95% interval over seeds)",
        "by seed",
        f"mean actions, {EPISODES} episodes a seed",
        "interactions",
        "minutes a seed",
        "goal",
        "paper",
        "processor",
        "commit",
    )
    lines = [f"# {heading}", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    curves = by_curve(jobs)
    lines += [f"| {' | '.join(table_row(seeds, alone(seeds, curves)))} |" for seeds in curves]
    keys = {job.row.key for job in jobs}
    lines += ["", " ".join(METRICS[key] for key in sorted(keys))]
    if any(job.frames for job in jobs):
        lines.append("Frames that perception was trained on count as interactions.")
    notes: dict[str, list[str]] = {}
    for job in jobs:
        names = notes.setdefault(job.row.note, [])
        names += [job.row.name] if job.row.name not in names else []
    lines += ["", *(f"- {', '.join(names)}: {note}" for note, names in notes.items() if note)]
    lines += [f"- {title(job)}: {job.failure}" for job in jobs if job.failure]
    if any(not job.done for job in jobs):
        lines.append("- Not all runs are done. The command goes on where it stopped.")
    return "\n".join([*lines, f"- Command: `{command}`", ""])


def alone(seeds: list[Job], curves: list[list[Job]]) -> bool:
    """Whether a curve's task has no other agent."""
    return sum(each[0].row.name == seeds[0].row.name for each in curves) == 1


def table_row(jobs: list[Job], only_agent: bool) -> list[str]:
    """Write the cells of one curve.

    Args:
        jobs: All of its seeds.
        only_agent: Whether the paper's other agent has no row of its own.
    """
    first, chosen = jobs[0], counted(jobs)
    row, obs = first.row, first.config.obs.kind
    training = each = evaluated = minutes = processors = commits = "-"
    reached = max(min(job.reached, job.config.steps) for job in jobs)
    if chosen:
        mean = curve(chosen)
        training = spread(mean.mean[-1], mean.interval[:, -1])
        each = ", ".join(number(job.points(row.key)[1, -1]) for job in chosen)
        evaluations = [found for job in chosen if (found := job.evaluation())]
        if evaluations and row.key in EVALUATED:
            values = np.array([found[EVALUATED[row.key]] for found in evaluations])
            evaluated = spread(values.mean(), bootstrap(values))
        reached = min(min(job.reached, job.config.steps) for job in chosen)
    begun = [job for job in chosen or jobs if job.reached]
    if taken := [lines[-1]["wall_s"] / 60 for job in begun if (lines := job.metrics())]:
        minutes = f"{np.mean(taken):.1f}"
        sessions = [own for job in begun for own in job.sessions()]
        processors = ", ".join(dict.fromkeys(own["processor"] for own in sessions))
        commits = ", ".join(dict.fromkeys(own["commit"] for own in sessions))
    reached += first.frames * (reached > 0)
    seeds = f"{len(chosen)} of {len(jobs)} seeds"
    goal = row.goals.get(obs) if first.agent == "RPG" else None
    agents = row.paper if only_agent else {first.config.agent.name: ()}
    paper = [
        said if agent == first.config.agent.name else f"{label(agent, first.config)} {said}"
        for agent in agents
        if (said := readings(row.paper.get(agent, ())))
    ]
    return [
        row.name,
        first.agent,
        training,
        each,
        evaluated,
        f"{reached:,} of {row.steps:,}, {seeds}",
        minutes,
        "-" if goal is None else f"{goal:g} at {row.steps / 1e6:g} M",
        "; ".join(paper) or "-",
        processors,
        commits,
    ]


def readings(values: Readings) -> str:
    """Write values of the paper."""
    return ", ".join(f"{value:g} at {step / 1e6:g} M" for step, value in values)


def number(value: float) -> str:
    """Write a rate or a return."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def spread(mean: float, interval: np.ndarray) -> str:
    """Write a mean with its interval; without one for one seed."""
    low, high = interval
    return number(mean) + (f" ({number(low)} to {number(high)})" if np.isfinite(low) else "")


# The command --------------------------------------------------------------------------------------


@contextmanager
def stopped_by_ctrl_c() -> Iterator[Event]:
    """Note the first Ctrl-C instead of raising; a second one raises as ever."""
    pressed = Event()

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)
        tqdm.write("Ctrl-C: stopping with a checkpoint; again to stop at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def main(config: ReproduceConfig) -> None:
    """Train what is missing within the budget; write CSV, picture and Markdown table into `out`.

    Raises:
        UserError: A setting cannot be, or runs failed; the others have gone on.
    """
    deadline = monotonic() + seconds_of(config.budget)
    if config.fig == 4 and config.table is None:
        reproduce_bandit(config)
        return
    figure = chosen(config)
    jobs = make_jobs(figure, config)
    name = f"fig{config.fig}" if config.fig else f"{config.table}-{figure.obs}"
    files = Path(config.out) / f"{name}-{config.preset}"
    heading = f"{figure.title}, preset={config.preset}"
    listed = listing(jobs, deadline - monotonic())
    print(f"{heading}, on {processor(jobs[0])}\n{listed}", flush=True)
    with stopped_by_ctrl_c() as pressed:

        def over() -> bool:
            return pressed.is_set() or monotonic() >= deadline

        unmeasured = [
            job
            for job, minutes in zip(jobs, minutes_left(jobs), strict=True)
            if minutes is None and job.config.seed == 0 and not job.failure
        ]
        for job in unmeasured:
            if not over():
                train(job, lambda count: over() or count >= MEASURED)
        if unmeasured and not over():
            print(f"\nmeasured:\n{listing(jobs, deadline - monotonic())}", flush=True)
        for job in jobs:
            if not over() and not job.done and not job.failure:
                train(job, lambda _: over())
                write(files, jobs, heading, config)
            if not over() and job.needs_evaluation:
                evaluate_run(job)
    write(files, jobs, heading, config)
    print(f"\n{listing(jobs, deadline - monotonic())}")
    print(f"figures: {files}.csv\ndrawing: {files}.png\ntable: {files}.md")
    if pressed.is_set():
        raise KeyboardInterrupt
    failed = [f"{title(job)}: {job.failure}" for job in jobs if job.failure]
    require(not failed, f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")


def write(files: Path, jobs: list[Job], heading: str, config: ReproduceConfig) -> None:
    """Write CSV, picture and table of the runs as they are."""
    files.parent.mkdir(parents=True, exist_ok=True)
    write_csv(Path(f"{files}.csv"), jobs)
    draw(Path(f"{files}.png"), jobs, heading)
    Path(f"{files}.md").write_text(table(jobs, heading, command_of(config)))


def command_of(config: ReproduceConfig) -> str:
    """Return the command line of these settings."""
    values = {
        key: getattr(config, key)
        for key in ("fig", "table", "obs", "preset", "seeds", "steps", "budget", "out")
    }
    words = [f"{key}={value}" for key, value in values.items() if value is not None]
    return shlex.join(["vis-rpg", "reproduce", *words])


def reproduce_bandit(config: ReproduceConfig) -> None:
    """Run Fig. 4, which takes less than half a minute a seed, unless it is there."""
    folder, seeds = Path(config.out) / "fig4", list(range(config.seeds))
    if (folder / "fig4.png").exists():
        found = {int(row["seed"]) for row in bandit.read(folder / "bandit.csv")}
        if found == set(seeds):
            print(f"done already: {folder}/bandit.csv {folder}/fig4.png")
            return
    composed = compose([f"seeds={seeds}"], "bandit")
    composed.out = str(folder)
    bandit.main(cast(BanditConfig, composed))
