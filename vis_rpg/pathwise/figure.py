"""Trains agents through known dynamics and draws them: `vis-rpg pathwise`.

Writes into `out`: curves.csv (return and success over training), runs.csv (one row a run), and for
each task a picture of both and of where the first seed's episodes go, coloured by z.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from vis_rpg.bandit.figure import write
from vis_rpg.config import PathwiseConfig
from vis_rpg.envs.tasks.differentiable import DYNAMICS, Dynamics
from vis_rpg.errors import require
from vis_rpg.pathwise.agent import Draws, PathwiseAgent, PathwiseLearner, outcome

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

EPISODES = 200
"""Sampled for a row of the curves."""
DRAWN = 64
"""Episodes in a picture."""
GRADIENTS = 8
"""That the noise of one is estimated from, at the start."""
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#666666"]
HEADER = ("task", "agent", "seed", "update", "return", "success")


def main(config: PathwiseConfig) -> None:
    """Train every agent on every task, all seeds side by side; write and draw."""
    unknown = set(config.tasks) - set(DYNAMICS)
    require(not unknown, f"tasks={sorted(unknown)}: choose from {', '.join(DYNAMICS)}")
    require(len(config.seeds) > 0 < len(config.tasks), "give at least one task and one seed")
    torch.set_num_threads(1)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    curves: list[list[Any]] = []
    runs: list[list[Any]] = []
    for task in config.tasks:
        dynamics = DYNAMICS[task]()
        paths = {}
        for name, agent in config.agents.items():
            learner = PathwiseLearner(dynamics, agent, config.seeds)
            began, noise = time.process_time(), learner.noise_to_signal(GRADIENTS)
            last = record(learner, config, [task, name], curves)
            seconds = (time.process_time() - began) / len(config.seeds)
            for row, seed in enumerate(config.seeds):
                own = [row[3:] for row in curves if row[:3] == [task, name, seed]]
                found = [*own[-1][1:], updates_to(own), round(float(noise[row]), 4)]
                runs.append([task, name, seed, *found, round(seconds, 1)])
            paths[name] = last
            wins = sum(float(row[4]) >= 0.5 for row in runs if row[:2] == [task, name])
            print(f"{task:12} {name:10} better mode in {wins} of {len(config.seeds)}", flush=True)
        write(out / "curves.csv", HEADER, curves)
        header = (*HEADER[:3], *HEADER[4:], "updates_to_0.9", "noise_to_signal", "cpu_s")
        write(out / "runs.csv", header, runs)
        draw(out / f"{task}.png", dynamics, [row for row in curves if row[0] == task], paths)
    print(f"done: {out}/runs.csv {out}/curves.csv {out}/*.png")


def record(
    learner: PathwiseLearner, config: PathwiseConfig, name: list[Any], curves: list[list[Any]]
) -> tuple[Tensor, Tensor]:
    """Train; add rows to the curves; return states and z of the first seed's last episodes."""
    for done in range(config.updates + 1):
        if done % config.log_every == 0 or done == config.updates:
            returns, success, states = learner.apply(EPISODES, outcome)
            means = zip(returns.mean(1).tolist(), success.double().mean(1).tolist(), strict=True)
            for seed, (value, rate) in zip(config.seeds, means, strict=True):
                curves.append([*name, seed, done, round(value, 3), round(rate, 3)])
        if done < config.updates:
            learner.update()
    states, z = learner.apply(DRAWN, episodes)
    return states[0], z[0]


@torch.no_grad()
def episodes(agent: PathwiseAgent, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return states (T + 1, B, S) and z (B, Z) of sampled episodes."""
    return outcome(agent, draws)[2], agent.pi_z(draws.s1, draws.z)


def updates_to(rows: list[list[Any]], share: float = 0.9) -> int:
    """Return after how many updates a run's return had first made a share of its whole rise.

    Args:
        rows: Update, return and success, over training.
        share: Of the way from the first return to the highest.
    """
    values = [float(row[1]) for row in rows]
    level = values[0] + share * (max(values) - values[0])
    return next(int(row[0]) for row in rows if float(row[1]) >= level)


def draw(
    path: Path,
    dynamics: Dynamics,
    curves: list[list[Any]],
    paths: dict[str, tuple[Tensor, Tensor]],
) -> None:
    """Draw returns and successes of all seeds, and where the first seed's last episodes go."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, all_axes = plt.subplots(
        1, 2 + len(paths), figsize=(4 * (2 + len(paths)), 3.8), layout="constrained"
    )
    for axes, column, label in zip(
        all_axes, (4, 5), ("return", "share in the better mode"), strict=False
    ):
        for name, colour in zip(paths, COLOURS, strict=False):
            _draw_curves(axes, [row for row in curves if row[1] == name], column, name, colour)
        axes.set(xlabel="updates", ylabel=label)
    all_axes[0].legend(frameon=False)
    for axes, (name, (states, z)) in zip(all_axes[2:], paths.items(), strict=True):
        assert dynamics.task.draw is not None
        dynamics.task.draw(axes)
        at = np.array([[dynamics.objects(s)[-1] for s in step] for step in states.numpy()])
        for index in range(at.shape[1]):
            category = int(z[index].argmax()) if z.shape[1] else 0
            colour = COLOURS[category % len(COLOURS)] if z.shape[1] else "0.3"
            axes.plot(*at[:, index].T, color=colour, linewidth=0.7, alpha=0.6)
        axes.set_title(f"{name}: {dynamics.task.object_names[-1]}, by z" if z.shape[1] else name)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_curves(axes: Axes, rows: list[list[Any]], column: int, name: str, colour: str) -> None:
    """Draw every seed thin and the mean of seeds thick."""
    updates = sorted({row[3] for row in rows})
    seeds = sorted({row[2] for row in rows})
    values = [[row[column] for row in rows if row[2] == seed] for seed in seeds]
    axes.plot(updates, np.transpose(values), color=colour, linewidth=0.6, alpha=0.35)
    axes.plot(updates, np.mean(values, 0), color=colour, linewidth=2, label=name)
