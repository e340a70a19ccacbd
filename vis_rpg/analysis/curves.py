"""Learning curves over seeds: one CSV per task and its figure, over interactions or minutes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vis_rpg.analysis.evaluation import bootstrap
from vis_rpg.analysis.explored_states import read_metrics
from vis_rpg.config import PlotCurvesConfig
from vis_rpg.errors import UserError, require
from vis_rpg.training.load import damaged, load_config

FIELDS = ("step", "value", "seed", "agent")
COLUMNS = {"interactions": "step", "minutes": "minutes"}
"""Of the CSV, for the horizontal axis; minutes came later, and older files lack them."""


@dataclass
class Curve:
    """One agent over its seeds, as far as every seed has come."""

    agent: str
    seeds: int
    x: np.ndarray
    """(P,) interactions or minutes."""
    mean: np.ndarray
    """(P,)."""
    interval: np.ndarray
    """(2, P) 95% percentile bootstrap over seeds; NaN with one seed."""


def seed_runs(folder: Path) -> list[Path]:
    """Return the runs in the folder of several seeds; for any other folder, the run itself."""
    seeds = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
    return seeds if seeds and not (folder / "config.yaml").exists() else [folder]


def write_csv(
    path: Path, runs: Sequence[Path], key: str, labels: Sequence[str] | None = None
) -> None:
    """Write one logged metric of several runs.

    Args:
        path: The CSV file.
        runs: Folders of runs.
        key: The metric.
        labels: The agent name of each run; by default that of `label`.

    Raises:
        UserError: A run does not log the metric, or two runs share agent and seed.
    """
    rows: list[tuple[int, float, int, str, float | None]] = []
    known: dict[tuple[str, int], Path] = {}
    for i, run in enumerate(runs):
        config, metrics = load_config(run), read_metrics(run)
        try:
            agent, seed = labels[i] if labels else label(config), int(config.seed)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise damaged(run, error) from None
        if (agent, seed) in known:
            raise UserError(
                f"runs: {known[agent, seed]} and {run} are both agent={agent} seed={seed}: "
                "give each seed once, or labels=[...]"
            )
        known[agent, seed] = run
        minutes = minutes_of(metrics)
        found = [
            (line["step"], line[key], seed, agent, minute)
            for line, minute in zip(metrics, minutes, strict=True)
            if line.get(key) is not None
        ]
        require(
            bool(found),
            f"key={key}: {run} has logged no such number; it has {', '.join(sorted(metrics[-1]))}",
        )
        rows += found
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([(*FIELDS, "minutes"), *rows])


def minutes_of(metrics: list[dict[str, Any]]) -> list[float | None]:
    """Return the minutes of training until each line, an equal share of seeds side by side."""
    return [round(line["wall_s"] / 60, 2) if "wall_s" in line else None for line in metrics]


def label(config: DictConfig) -> str:
    """Name a run's curve by its agent, its perception, and its bonus if not the default."""
    name, bonus = str(config.agent.name), config.exploration
    if config.perception.name != "state":
        slots = config.perception.get("bonus_slots") is not None
        name += f" from {config.perception.name}{'_slots' * slots}"
    if bonus.name == "none":
        return f"{name} without bonus"
    kind = bonus.get("rnd_input", "slots")
    return name if kind == "slots" else f"{name}, {kind} bonus"


def read_curves(path: Path, x: str = "interactions") -> list[Curve]:
    """Read the curves of a CSV in the agents' order there; seeds are interpolated linearly.

    Args:
        path: The CSV.
        x: "interactions" or "minutes".

    Raises:
        UserError: The file is missing or has other columns.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give runs=[...] to write it") from None
    require(
        bool(rows) and not set(FIELDS) - set(rows[0]),
        f"{path}: not a CSV of curves, which has the columns {', '.join(FIELDS)}",
    )
    column = COLUMNS[x]
    require(all(row.get(column) for row in rows), f"x={x}: {path} has none; write it from its runs")
    agents: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        agents.setdefault(row["agent"], {}).setdefault(row["seed"], []).append(
            (float(row[column]), float(row["value"]))
        )
    return [
        average(agent, [np.array(sorted(points)).T for points in seeds.values()], x)
        for agent, seeds in agents.items()
    ]


def average(agent: str, seeds: list[np.ndarray], x: str = "interactions") -> Curve:
    """Average one agent's seeds where all have been, interpolating linearly.

    Args:
        agent: Its name.
        seeds: (2, P) places on the horizontal axis and values of each seed.
        x: What the axis counts.

    Raises:
        UserError: The seeds have no such places in common.
    """
    first, last = max(own[0] for own, _ in seeds), min(own[-1] for own, _ in seeds)
    require(
        bool(first <= last),
        f"agent={agent}: its seeds have no {x} in common (one ends at "
        f"{last:,.0f}, another begins at {first:,.0f})",
    )
    grid = np.unique(np.concatenate([own for own, _ in seeds]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, own, value) for own, value in seeds])
    return Curve(agent, len(seeds), grid, values.mean(0), bootstrap(values))


def draw_curves(
    path: Path, curves: Sequence[Curve], title: str, label: str, x: str = "interactions"
) -> None:
    """Draw means with their 95% intervals."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    draw_on(axes, curves, title, label)
    axes.set_xlabel(x)
    figure.savefig(path)
    plt.close(figure)


def draw_on(axes: Axes, curves: Sequence[Curve], title: str, label: str) -> None:
    """Draw means with their 95% intervals on given axes."""
    for curve in curves:
        seeds = f"{curve.seeds} seed{'s' if curve.seeds > 1 else ''}"
        (line,) = axes.plot(curve.x, curve.mean, linewidth=2, label=f"{curve.agent} ({seeds})")
        axes.fill_between(curve.x, *curve.interval, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="interactions", ylabel=label, title=title)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if curves:
        several = any(curve.seeds > 1 for curve in curves)
        axes.legend(frameon=False, title="mean, 95% bootstrap interval" if several else None)


def main(config: PlotCurvesConfig) -> None:
    """Write the CSV of the runs, if any are given, and draw it."""
    folder = Path(config.out)
    table, picture = folder / "curves.csv", folder / "curves.png"
    if config.runs:
        require(
            len(config.labels) in (0, len(config.runs)),
            f"labels: {len(config.labels)} for {len(config.runs)} of runs: give one for each",
        )
        seeds = [seed_runs(Path(path)) for path in config.runs]
        named = [label for label, own in zip(config.labels, seeds, strict=False) for _ in own]
        write_csv(table, [run for own in seeds for run in own], config.key, named)
    curves = read_curves(table, config.x)
    draw_curves(picture, curves, config.name, config.key, config.x)
    digits = 1 if config.x == "minutes" else 0
    for curve in curves:
        low, high = curve.interval[:, -1]
        spread = f"95% interval {low:.3f} to {high:.3f}, {curve.seeds} seeds"
        print(
            f"{curve.agent}: {config.key} {curve.mean[-1]:.3f} at {curve.x[-1]:,.{digits}f} "
            f"{config.x} ({spread if curve.seeds > 1 else '1 seed'})"
        )
    print(f"figures: {table}\ndrawing: {picture}")
