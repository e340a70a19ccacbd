"""What the runs of a figure or table show: CSV, picture and Markdown table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from vis_rpg.analysis.curves import Curve, average, draw_on
from vis_rpg.analysis.evaluation import bootstrap
from vis_rpg.analysis.paper import Readings
from vis_rpg.analysis.reproduction import EPISODES, EVALUATED, Job, label, title
from vis_rpg.training.trainer import REPORTED

METRICS = {
    "success": "Success: share of the last 100 training episodes, sampled actions.",
    "return": "Return: mean of the last 100 training episodes, sampled actions.",
    "coverage": "Coverage: share of the cells visited since the start.",
}
CSV_FIELDS = ("task", "obs", "agent", "seed", "interactions", "metric", "value")
COLOURS = {"rpg": "tab:blue", "mbsac": "tab:orange"}
COLUMNS = 3
"""Panels side by side."""


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
