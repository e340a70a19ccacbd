"""Draw the states that a run explored over training, as Fig. 5 A-C of the paper.

Panels show where each object was, under which z, when, and how often.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter

from vis_rpg.config import VisualiseStatesConfig
from vis_rpg.envs.make import make_env, task_of
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError, require
from vis_rpg.training import checkpoint
from vis_rpg.training.coverage import VisitRecord
from vis_rpg.training.load import load_whole_config

STAGES = 4
"""Number of equal parts of the training so far."""
MOST_POINTS = 8000
"""Points in one panel at most; of more visits a random share is drawn."""
MAP_BINS = 50
SEEN_BEFORE = "0.82"
PANEL = 2.6
"""Side of a panel, in inches."""


@dataclass
class Visits:
    """Contents of a `VisitRecord`, oldest first: V visits of N objects."""

    step: np.ndarray
    """(V,) interactions."""
    positions: np.ndarray
    """(V, N, 2 or 3), world units."""
    z: np.ndarray
    """(V, Z) the latent variable that was acting."""


@dataclass
class ZColormap:
    """Maps z to colours."""

    values: np.ndarray
    """(V,)."""
    cmap: Colormap
    norm: Normalize
    label: str
    ticks: list[float]
    tick_labels: list[str]


def read_visits(run: Path) -> Visits:
    """Read the visits that a run's newest checkpoint refers to.

    Raises:
        UserError: The checkpoint or a chunk is missing or broken.
    """
    load_whole_config(run)
    record = VisitRecord(run / "visits")
    record.load(checkpoint.load(checkpoint.latest(run))["visits"])
    return Visits(**{name: values.numpy() for name, values in record.read().items()})


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl, without a last line that is still being written.

    Raises:
        UserError: There are no metrics.
    """
    path = run / "metrics.jsonl"
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}: give the folder of a run (vis-rpg train out=...)"
        ) from None
    lines = text.splitlines()
    complete = lines if text.endswith("\n") else lines[:-1]
    try:
        metrics = [json.loads(line) for line in complete]
        if not all(isinstance(line, dict) and "step" in line for line in metrics):
            raise ValueError
    except ValueError:
        raise UserError(f"{path}: a line is not JSON, or no metrics; the file is broken") from None
    require(
        bool(metrics),
        f"{path}: nothing is logged there yet (logger.log_every interactions lie between lines)",
    )
    return metrics


def states_figure(run: Path) -> Figure:
    """Draw a row of panels for each object of interest, and the run's coverage below.

    Raises:
        UserError: There is nothing to draw.
    """
    visits, metrics, config = read_visits(run), read_metrics(run), load_whole_config(run)
    env = make_env(config.task, "state")
    task = task_of(env)
    env.close()
    objects = len(task.object_names)
    require(
        objects > 0,
        f"{run}: task={config.task.name} names no objects of interest, so there are no "
        "visited states to draw",
    )
    kind, places = config.agent.latent.kind, visits.positions[..., list(task.plane)]
    bounds = np.linspace(0, visits.step[-1], STAGES + 1)
    stages = [(visits.step > start) & (visits.step <= end) for start, end in pairwise(bounds)]
    told = [z_regression(visits.z[now], places[now]) for now in stages]
    colours = [z_colormap(visits.z, kind, coefficients) for coefficients, _ in told]

    figure = plt.figure(
        figsize=((STAGES + 2) * PANEL, objects * PANEL + 0.9 + 2.6), layout="constrained", dpi=130
    )
    title = (
        f"{config.task.name} from {config.obs.kind}, {config.agent.name}, seed {config.seed}: "
        f"{visits.step[-1]:,} interactions"
    )
    halves: Any = figure.subfigures(2, 1, height_ratios=[objects * PANEL + 0.9, 2.4])
    upper, lower = halves
    upper.suptitle(f"Visited states, {title}", fontsize=13)
    axes = upper.subplots(objects, STAGES + 2, squeeze=False)
    for index, (row, name) in enumerate(zip(axes, task.object_names, strict=True)):
        points = places[:, index]
        row[0].set_ylabel(name, fontsize=12)
        for stage, panel in enumerate(row[:STAGES]):
            draw_stage(panel, visits.step, points, colours[stage], bounds[stage], bounds[stage + 1])
            share = told[stage][1][index]
            if np.isfinite(share):
                panel.set_xlabel(f"z explains {share:.0%}", fontsize=9)
        by_step = draw_points(
            row[-2], points, visits.step, "viridis", Normalize(0, visits.step[-1])
        )
        counts = draw_counts(row[-1], points, task)
        for panel in row:
            _frame(panel, points, task)
    for stage, panel in enumerate(axes[0, :STAGES]):
        panel.set_title(
            f"{_thousands(bounds[stage])} to {_thousands(bounds[stage + 1])}", fontsize=11
        )
    axes[0, -2].set_title("all, by interaction", fontsize=11)
    axes[0, -1].set_title("number of visits", fontsize=11)
    _add_colorbar(
        upper,
        axes[:, :STAGES],
        matplotlib.cm.ScalarMappable(colours[0].norm, colours[0].cmap),
        colours[0].label,
        aspect=60,
        ticks=colours[0].ticks,
        labels=colours[0].tick_labels,
    )
    _add_colorbar(upper, axes[:, -2], by_step, "interactions", formatter=EngFormatter(sep=""))
    _add_colorbar(upper, axes[:, -1], counts, "visits of a cell")
    draw_coverage(lower.subplots(), metrics, _summary(run), task)
    return figure


def z_regression(z: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regress where objects were on z, linearly (ridge).

    Args:
        z: (V, Z), one value an episode.
        places: (V, N, P), where objects were.

    Returns:
        The coefficients (Z, N * P) for places of unit variance, and the share of each object's
        variance that z explains, (N,), in episodes other than those that were fitted: 0 for one
        that stays where it is, NaN for less than two episodes and without a z.
    """
    values, episode = np.unique(z @ np.arange(1.0, 1 + z.shape[1]) ** 0.5, return_inverse=True)
    if len(values) < 2:
        return np.zeros((z.shape[1], np.prod(places.shape[1:]))), np.full(places.shape[1], np.nan)
    y = places.reshape(len(places), -1)
    spread = y.std(0)
    y = (y - y.mean(0)) / np.where(spread > 1e-6, spread, np.inf)

    def fit(rows: np.ndarray) -> np.ndarray:
        x = z[rows]
        ridge = rows.sum() * z.shape[1] / len(values)
        return np.linalg.solve(x.T @ x + ridge * np.eye(z.shape[1]), x.T @ y[rows])

    held_out = np.zeros_like(y)
    for half in (episode % 2 == 0, episode % 2 == 1):
        held_out[half] = z[half] @ fit(~half)
    variance = (spread**2).reshape(places.shape[1:])
    share = (y.var(0) - ((y - held_out) ** 2).mean(0)).reshape(places.shape[1:])
    explained = (share * variance).sum(-1) / np.maximum(variance.sum(-1), 1e-12)
    return fit(np.ones(len(z), bool)), explained.clip(0.0)


def z_colormap(z: np.ndarray, kind: str, coefficients: np.ndarray | None = None) -> ZColormap:
    """Choose colours for z.

    Args:
        z: (V, Z).
        kind: Of z. Categorical: a colour per category; none: one colour; else the direction in a
            plane of z.
        coefficients: (Z, Y), of a regression of places on z, for the plane in which z explains
            most of them; None: the plane of the first two numbers.
    """
    if kind == "categorical":
        categories = z.shape[1]
        cmap = plt.get_cmap("tab10" if categories <= 10 else "tab20")
        colours = ListedColormap([cmap(k % cmap.N) for k in range(categories)])
        norm = BoundaryNorm(np.arange(categories + 1) - 0.5, categories)
        return ZColormap(
            z.argmax(1),
            colours,
            norm,
            "category of z",
            list(range(categories)),
            [str(k + 1) for k in range(categories)],
        )
    if kind != "none":
        first, second = z_plane(z, coefficients).T
        ticks = [-np.pi, -np.pi / 2, 0.0, np.pi / 2, np.pi]
        labels = ["-180°", "-90°", "0°", "90°", "180°"]
        return ZColormap(
            np.arctan2(second, first),
            plt.get_cmap("hsv"),
            Normalize(-np.pi, np.pi),
            "direction of z in the plane that explains most of a panel's places"
            if coefficients is not None
            else "direction of $(z_1, z_2)$",
            ticks,
            labels,
        )
    return ZColormap(
        np.zeros(len(z)),
        ListedColormap(["tab:blue"]),
        Normalize(-0.5, 0.5),
        "this agent has no z",
        [],
        [],
    )


def z_plane(z: np.ndarray, coefficients: np.ndarray | None = None) -> np.ndarray:
    """Project z (V, Z) onto a plane, as `z_colormap` does: (V, 2)."""
    if z.shape[1] > 2 and coefficients is not None:
        z = z @ np.linalg.svd(coefficients)[0]
    return np.pad(z, ((0, 0), (0, max(0, 2 - z.shape[1]))))[:, :2]


def draw_stage(
    axes: Axes, step: np.ndarray, points: np.ndarray, colours: ZColormap, start: float, end: float
) -> None:
    """Draw points (V, 2) of `start` < step <= `end` by z, over earlier ones in grey."""
    before, now = step <= start, (step > start) & (step <= end)
    draw_points(
        axes, points[before], np.zeros(before.sum()), ListedColormap([SEEN_BEFORE]), Normalize()
    )
    draw_points(axes, points[now], colours.values[now], colours.cmap, colours.norm)


def draw_points(
    axes: Axes, points: np.ndarray, values: np.ndarray, cmap: str | Colormap, norm: Normalize
) -> Any:
    """Draw dots (V, 2) by values (V,), in random order: late ones must not hide early ones."""
    order = np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]
    size = 5 if len(order) > 2000 else 9
    x, y = points[order].T
    return axes.scatter(x, y, c=values[order], s=size, linewidths=0, cmap=cmap, norm=norm)


def draw_counts(axes: Axes, points: np.ndarray, task: Task) -> Any:
    """Draw the visits of each cell of a fine grid, on a log scale."""
    low, high = map_limits(points, task)
    edges = [np.linspace(low[axis], high[axis], MAP_BINS + 1) for axis in range(2)]
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
    counts[counts == 0] = np.nan
    cmap = ListedColormap(
        plt.get_cmap("magma_r")(np.linspace(0.15, 1, 256))
    )  # the palest would not stand out from paper
    return axes.pcolormesh(
        *edges, counts.T, cmap=cmap, norm=LogNorm(1, max(2.0, np.nanmax(counts)))
    )


def draw_coverage(
    axes: Axes, metrics: list[dict[str, Any]], summary: dict[str, Any], task: Task
) -> None:
    """Draw coverage over interactions.

    A dashed line shows the coverage of a random policy from summary.json, in as many interactions
    as the whole run, with those of its slot model's training.
    """
    random_coverage = summary.get("random_coverage")
    known = [
        (line["step"], line["coverage"]) for line in metrics if line.get("coverage") is not None
    ]
    if not known:
        axes.text(
            0.5,
            0.5,
            "this task counts no coverage",
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
        axes.axis("off")
        return
    steps, values = np.array([(0, 0.0), *known]).T
    axes.plot(steps, values, color="tab:blue", linewidth=2, label="this run")
    top = values.max()
    if random_coverage is not None:
        count = summary["steps"] + summary.get("pretraining_frames", 0)
        label = f"random policy at {count:,} interactions"
        axes.axhline(random_coverage, color="0.35", linestyle="--", linewidth=1.3, label=label)
        top = max(top, random_coverage)
    counted = task.coverage.objects if task.coverage else ()
    axes.set(
        xlabel="interactions",
        ylabel=f"coverage of\n{', '.join(counted)}",
        xlim=(0, steps[-1]),
        ylim=(0, min(1.0, 1.15 * top) or 1.0),
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def save_states(run: Path) -> Path:
    """Draw run/states.png and return its path."""
    figure = states_figure(run)
    figure.savefig(run / "states.png")
    plt.close(figure)
    return run / "states.png"


def map_limits(points: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the coverage grid, or of the data."""
    if task.coverage is not None:
        return np.array(task.coverage.low), np.array(task.coverage.high)
    return points.min(0) - 1e-3, points.max(0) + 1e-3


def _frame(axes: Axes, points: np.ndarray, task: Task) -> None:
    """Draw walls, goals and limits, without ticks."""
    low, high = map_limits(points, task)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    if task.draw is not None:
        task.draw(axes)
        axes.spines[:].set_visible(False)  # it draws walls of its own
    axes.set(xticks=[], yticks=[])


def _add_colorbar(
    figure: SubFigure,
    axes: np.ndarray,
    mappable: Any,
    label: str,
    aspect: int = 15,
    ticks: list[float] | None = None,
    labels: list[str] | None = None,
    formatter: EngFormatter | None = None,
) -> None:
    """Put a thin colour bar under a block of panels."""
    bar = figure.colorbar(
        mappable,
        ax=axes.ravel().tolist(),
        location="bottom",
        aspect=aspect,
        pad=0.02,
        shrink=0.9,
        format=formatter,
    )
    bar.set_label(label)
    if ticks is not None:
        bar.set_ticks(ticks, labels=labels)
    bar.outline.set_visible(False)


def _thousands(number: float) -> str:
    return f"{round(number):,}"


def _summary(run: Path) -> dict[str, Any]:
    """Read summary.json; a run that has not ended has none."""
    try:
        return json.loads((run / "summary.json").read_text())
    except OSError:
        return {}


def main(config: VisualiseStatesConfig) -> None:
    """Draw the states that a run visited, into its folder."""
    print(f"visited states: {save_states(Path(config.run))}")
