"""The scene that every simulator builds, the gradient check and the clock.

A round pusher, moved by a force, pushes a square block that lies on a plane with friction. 50 steps
of 0.02 s; the loss is the squared distance of the block's centre to TARGET after the last one.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

STEPS, DT, SUBSTEPS = 50, 0.02, 4
"""Substeps are taken by simulators with springs as contacts."""
HALF, BLOCK_MASS, RADIUS, PUSHER_MASS = 0.1, 1.0, 0.05, 0.5
FORCE, DAMPING = 10.0, 5.0
"""Of the pusher: N per action of 1; N s/m."""
MU, GRAVITY, STIFFNESS, DAMPER, SLOPE = 0.3, 9.81, 5000.0, 20.0, 20.0
"""Friction of all contacts; springs and dampers of contacts; N s/m at which friction sets in."""
OFFSET = 0.01
"""Of the pusher from the block's axis (m), so that the block turns."""
GAPS = {"touching": 0.0, "begins": 0.05}
"""Between pusher and block at the start (m): in the second scene contact begins on the way."""
TARGET = (0.3, 0.1)
INERTIA = BLOCK_MASS * 2 * (2 * HALF) ** 2 / 12

BATCHES = 1, 64, 1280
"""Environments at once; the last are the episodes of an update of `vis-rpg pathwise`."""
Losses = Callable[[np.ndarray], np.ndarray]
"""From actions (N, 50, 2) to losses (N,)."""
Gradient = Callable[[np.ndarray], np.ndarray]
"""From actions (N, 50, 2) to each loss's gradient (N, 50, 2)."""


def actions() -> np.ndarray:
    """Return the actions (50, 2) at which the gradient is checked: a push with some noise."""
    noise = np.random.default_rng(0).uniform(-1, 1, (STEPS, 2))
    return np.array([0.7, 0.0]) + np.array([0.1, 0.05]) * noise


DOUBLE_STEPS, SINGLE_STEPS = (1e-3, 1e-4, 1e-5, 1e-6), (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Of finite differences."""


class Rows:
    """Prints numbers and puts them into simulators.csv in place of a candidate's former rows.

    Args:
        candidate: The simulator.
        precision: float32 | float64.
    """

    FIELDS = ("candidate", "precision", "scene", "measure", "fd_step", "envs", "value")

    def __init__(self, candidate: str, precision: str) -> None:
        self.start, self.rows = (candidate, precision), []

    def add(
        self, scene: str, measure: str, value: float, fd_step: str = "", envs: str = ""
    ) -> None:
        """Add one number."""
        self.rows.append([*self.start, scene, measure, fd_step, envs, f"{value:.6g}"])
        print(*self.rows[-1], flush=True)

    def write(self) -> None:
        """Write all."""
        path = Path(__file__).with_name("simulators.csv")
        old = list(csv.reader(path.open()))[1:] if path.exists() else []
        rows = [row for row in old if tuple(row[:2]) != self.start] + self.rows
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.FIELDS, *sorted(rows)])


def measure(
    rows: Rows,
    scene: str,
    losses: Losses,
    gradient: Gradient,
    fd_steps: Sequence[float],
    counts: Sequence[int] = (1, 64),
) -> None:
    """Check the gradient and take the speed of so many environments at once."""
    check(rows, scene, losses, gradient, fd_steps)
    for envs in counts:
        speed(rows, scene, losses, gradient, envs)


def check(
    rows: Rows, scene: str, losses: Losses, gradient: Gradient, fd_steps: Sequence[float]
) -> None:
    """Compare the gradient with central differences of the loss in each of the 100 actions."""
    at = actions()
    found = gradient(at[None])[0]
    rows.add(scene, "loss", losses(at[None])[0])
    rows.add(scene, "gradient_norm", float(np.linalg.norm(found)))
    moves = np.eye(at.size).reshape(-1, *at.shape)
    for size in fd_steps:
        difference = losses(at + size * moves) - losses(at - size * moves)
        expected = difference.reshape(at.shape) / (2 * size)
        norms = np.linalg.norm(expected), np.linalg.norm(found)
        error = np.linalg.norm(found - expected) / norms[0]
        cosine = (found * expected).sum() / norms[0] / norms[1]
        rows.add(scene, "relative_error", float(error), f"{size:g}")
        rows.add(scene, "cosine", float(cosine), f"{size:g}")


def speed(rows: Rows, scene: str, losses: Losses, gradient: Gradient, envs: int) -> None:
    """Add steps a second of CPU time, all environments together: the best of 7 rollouts.

    CPU time of the process, and the best, since other work shares the cores.
    """
    at = np.repeat(actions()[None], envs, 0)
    for measure, run in (("forward", losses), ("forward_backward", gradient)):
        run(at)
        times = []
        for _ in range(7):
            began = time.process_time()
            run(at)
            times.append(time.process_time() - began)
        rows.add(scene, measure, envs * STEPS / min(times), envs=str(envs))
