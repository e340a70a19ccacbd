"""The map of explored states: which of them are drawn, in which colours, and what was not visited.

V visits of N objects; P visits that are drawn.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex

from vis_rpg.analysis.explored_states import (
    STAGES,
    Visits,
    map_limits,
    z_colormap,
    z_plane,
    z_regression,
)
from vis_rpg.analysis.explorer.seeds import rounded
from vis_rpg.envs.tasks.task import Coverage, Task
from vis_rpg.errors import UserError

MOST_POINTS = 8000
"""Visits of one seed that are drawn, at most."""
MOST_IN_ALL = 24000
"""Of all seeds of all runs."""
BACKDROP = 500
"""Longer side of the drawing of walls and goals, in pixels."""
NEVER = -1


@dataclass
class ZView:
    """How the page shows z: as a place in a plane, and in a colour."""

    kind: str
    """Of the latent space."""
    coefficients: np.ndarray | None
    """(Z, Y), as for `z_colormap`."""
    plane: str
    """Which plane of z this is, in words."""

    def places(self, z: np.ndarray) -> np.ndarray:
        """Return (V, 2) for z (V, Z)."""
        return z_plane(z, self.coefficients)

    def z_at(self, place: np.ndarray, dim: int) -> np.ndarray:
        """Return the z (Z,) of width `dim` at a place (2,), 0 in all directions but the plane's."""
        directions = self.places(np.eye(dim))  # (Z, 2), orthonormal
        z: np.ndarray = directions @ place
        return z

    def colours(self, z: np.ndarray) -> list[str]:
        """Return (V,) colours for z (V, Z)."""
        colours = z_colormap(z, self.kind, self.coefficients)
        table = np.unique(np.ma.getdata(colours.norm(colours.values)), return_inverse=True)
        hexes = [to_hex(colours.cmap(value)) for value in table[0]]
        return [hexes[i] for i in table[1]]

    def legend(self, dim: int) -> dict[str, Any]:
        """Return a title, and labels of z of width `dim` with their colours."""
        colours = z_colormap(np.zeros((1, dim)), self.kind, self.coefficients)
        ticks = zip(colours.tick_labels, colours.ticks, strict=True)
        labels = [[label, to_hex(colours.cmap(colours.norm(tick)))] for label, tick in ticks]
        categories = self.kind == "categorical"
        title = "category of z:" if categories else f"direction of z in the plane {self.plane}:"
        return {"title": title, "labels": labels}


def plane_of_places(kind: str, visits: Visits, task: Task) -> ZView:
    """Choose the plane of z that tells most of where objects were in the last part of the run."""
    late = visits.step > visits.step[-1] * (1 - 1 / STAGES)
    places = visits.positions[late][..., list(task.plane)]
    coefficients, _ = z_regression(visits.z[late], places)
    return ZView(kind, coefficients, "that tells most of places")


def plane_of_spread(kind: str, z: np.ndarray) -> ZView:
    """Choose the plane in which z (V, Z) spreads most."""
    return ZView(kind, (z - z.mean(0)).T, "in which it spreads most")


def seed_map(visits: Visits, task: Task, view: ZView, most: int) -> dict[str, Any]:
    """Return what the map of one seed shows.

    Args:
        visits: The record.
        task: Declares the plane and the grid of coverage.
        view: Of z.
        most: P at most.

    Returns:
        `step`, `z` (its two coordinates in words) and `z_colour`, each (P,); `x` and `y`, (N, P);
        `first`, for each object the interaction of the first visit of each cell, NEVER for none;
        None where the task declares no grid; `rows` of the record, (P,).
    """
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(visits.step))[:most])
    places = visits.positions[..., list(task.plane)]
    z = visits.z[rows]
    palette, colour = np.unique(view.colours(z), return_inverse=True)
    return {
        "rows": rows.tolist(),
        "step": visits.step[rows].tolist(),
        "x": [rounded(own, 4) for own in places[rows, :, 0].T],
        "y": [rounded(own, 4) for own in places[rows, :, 1].T],
        "z": in_words(z, view),
        "palette": palette.tolist(),
        "z_colour": colour.tolist(),
        "first": None
        if task.coverage is None
        else [
            first_visits(visits.step, places[:, index], task.coverage).ravel().tolist()
            for index in range(places.shape[1])
        ],
    }


def in_words(z: np.ndarray, view: ZView) -> list[str]:
    """Describe each z (V, Z): its category, or its place in the plane."""
    if view.kind == "none":
        return ["no z"] * len(z)
    if view.kind == "categorical":
        return [f"category {k + 1}" for k in z.argmax(1)]
    return [f"({u:.2f}, {v:.2f})" for u, v in view.places(z)]


def first_visits(step: np.ndarray, places: np.ndarray, grid: Coverage) -> np.ndarray:
    """Return the interaction at which each cell of the grid was first visited, NEVER for none.

    Args:
        step: (V,).
        places: (V, 2).
        grid: Its cells are those that coverage counts.
    """
    last = step.max() + 1
    first = np.full(grid.bins, last, np.int64)
    np.minimum.at(first, tuple(grid.cells(places).T), step)
    return np.where(first == last, NEVER, first)


def map_data(
    seeds: Sequence[tuple[int, Visits]],
    task: Task,
    views: Sequence[ZView],
    bonuses: Sequence[Callable[[np.ndarray], np.ndarray]],
    runs: int = 1,
) -> dict[str, Any]:
    """Return what the map shows.

    Args:
        seeds: Number and record of each.
        task: Theirs.
        views: Of their z.
        bonuses: Of each seed the bonus (P,) of positions (P, N, 2 or 3); a UserError that it
            raises says why there is none.
        runs: That share the page.
    """
    every = np.concatenate([visits.positions for _, visits in seeds])[..., list(task.plane)]
    low, high = map_limits(every.reshape(-1, 2), task)
    grid = task.coverage
    most = min(MOST_POINTS, MOST_IN_ALL // (len(seeds) * runs))
    dim = seeds[0][1].z.shape[1]
    maps: list[dict[str, Any]] = [
        {"seed": number, **seed_map(visits, task, view, most)}
        for (number, visits), view in zip(seeds, views, strict=True)
    ]
    no_bonus = None
    for own, (_, visits), bonus in zip(maps, seeds, bonuses, strict=True):
        rows = own.pop("rows")
        try:
            own["bonus"] = rounded(bonus(visits.positions[rows]), 3)
        except UserError as error:
            no_bonus = str(error)
    return {
        "objects": list(task.object_names),
        "low": rounded(low),
        "high": rounded(high),
        "grid": None if grid is None else {"low": grid.low, "high": grid.high, "bins": grid.bins},
        "counted": [] if grid is None else list(grid.objects),
        "backdrop": backdrop(task, low, high),
        "kind": views[0].kind,
        "legend": views[0].legend(dim),
        "no_bonus": no_bonus,
        "seeds": maps,
    }


def backdrop(task: Task, low: np.ndarray, high: np.ndarray) -> str | None:
    """Draw walls and goals of a task as the address of a PNG; None where it draws nothing."""
    if task.draw is None:
        return None
    size = (high - low) / (high - low).max() * BACKDROP / 100
    figure = plt.figure(figsize=tuple(np.maximum(size, 0.2)), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    task.draw(axes)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="auto")
    axes.axis("off")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=True)
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
