"""Coverage of a grid by objects' true positions, and the record of positions for drawings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor

from vis_rpg.envs.tasks.task import Task
from vis_rpg.training.chunks import Chunks

JOINT_BINS = 6
"""Cells along each axis, at most, of the coarse grid on which arrangements are counted."""


class CoverageCounter:
    """Object displacement coverage, its entropy, and joint coverage.

    The first is the share of a grid's cells that each object's true position has ever visited,
    averaged over the objects that the task counts, the second the entropy of how often each was
    visited; both are NaN for a task that declares none. The third is
    the share of arrangements that were visited: the cells of all these objects at one time, on a
    coarse grid of at most 6 x 6 over the same range; NaN where the task counts fewer than two.

    Args:
        task: Declares the grid.
    """

    def __init__(self, task: Task) -> None:
        self.grid = task.coverage
        if self.grid is not None:
            self.objects = [task.object_names.index(name) for name in self.grid.objects]
            self.plane = list(task.plane)
            count = len(self.objects)
            self.joint_bins = tuple(min(bins, JOINT_BINS) for bins in self.grid.bins)
            self.visits = np.zeros((count, *self.grid.bins), np.int64)
            self.jointly = count > 1
            self.visited_jointly = np.zeros(np.tile(self.joint_bins, count * self.jointly), bool)

    def add(self, positions: np.ndarray) -> None:
        """Count positions (..., N, 2 or 3), world units, of all objects of interest."""
        if self.grid is None:
            return
        count = len(self.objects)
        places = positions[..., self.objects, :][..., self.plane].reshape(-1, count, 2)
        fine = self.grid.cells(places)
        for index in range(count):
            np.add.at(self.visits[index], (fine[:, index, 0], fine[:, index, 1]), 1)
        if self.jointly:
            coarse = self.grid.cells(places, self.joint_bins)
            self.visited_jointly[tuple(coarse.reshape(-1, 2 * count).T)] = True

    @property
    def value(self) -> float:
        """Coverage in [0, 1]."""
        return float((self.visits > 0).mean()) if self.grid is not None else float("nan")

    @property
    def entropy(self) -> float:
        """Entropy of the visits of an object to its cells, in nats, averaged (Fig. 5C)."""
        if self.grid is None:
            return float("nan")
        visits = self.visits.reshape(len(self.visits), -1)
        shares = visits / visits.sum(-1, keepdims=True).clip(1)
        return float(scipy.special.entr(shares).sum(-1).mean())

    @property
    def joint(self) -> float:
        """Joint coverage in [0, 1]."""
        counted = self.grid is not None and self.jointly
        return float(self.visited_jointly.mean()) if counted else float("nan")

    def state(self) -> dict[str, np.ndarray]:
        """What `load` needs: empty where nothing is counted."""
        if self.grid is None:
            return {}
        return {"visits": self.visits, "visited_jointly": self.visited_jointly}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`."""
        for name, counted in state.items():
            setattr(self, name, counted.copy())


class VisitRecord:
    """All visited positions, with their interactions and z, on disk in append-only chunks.

    Args:
        folder: Where the chunks lie.
    """

    def __init__(self, folder: Path) -> None:
        self.chunks = Chunks(folder, "visits")
        self.waiting: list[dict[str, Tensor]] = []

    def add(self, step: int, positions: np.ndarray, z: Tensor) -> None:
        """Record one vector step.

        Args:
            step: Interactions after it.
            positions: (envs, N, 2 or 3), world units.
            z: (envs, Z).
        """
        steps = torch.full((len(positions),), step, dtype=torch.int64)
        self.waiting.append(
            {
                "step": steps,
                "positions": torch.as_tensor(positions, dtype=torch.float32),
                "z": z.detach().cpu().clone(),
            }
        )

    def save(self) -> dict[str, Any]:
        """Write pending rows; return what `load` needs."""
        if self.waiting:
            rows = {
                key: torch.cat([visit[key] for visit in self.waiting]) for key in self.waiting[0]
            }
            self.chunks.append(rows, self.chunks.end, self.chunks.end + len(rows["step"]))
            self.waiting.clear()
        return self.chunks.state()

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `save`."""
        self.chunks.load_state(state)

    def read(self) -> dict[str, Tensor]:
        """Read what was written: step (V,), positions (V, N, 2 or 3), z (V, Z)."""
        parts = [self.chunks.read(span) for span in self.chunks.spans]
        # Of a run that was begun when its task named no objects yet, what is known of them.
        known = parts[-1]["positions"].shape[1:]
        parts = [part for part in parts if part["positions"].shape[1:] == known]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
