"""Fig. 4: trains RPG, and a Gaussian and a softmax with REINFORCE, on the bandit, and draws them.

Writes into `out`: bandit.csv (one row a run), curves.csv (over training the mean reward, and by how
many nats the ELBO lies below log p(O)), modes.csv
(the policies over training) and fig4.png, which is drawn from the three.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes

from vis_rpg.bandit.reinforce import GaussianReinforce, SoftmaxReinforce
from vis_rpg.bandit.rpg import (
    BanditRPG,
    Learner,
    Modes,
    density,
    log_evidence,
    mean_reward,
    train,
)
from vis_rpg.config import BanditConfig
from vis_rpg.envs.tasks.bandit import REACH, bandit_reward
from vis_rpg.errors import require

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

ACTIONS = 10_000  # sampled for a mean reward
AGENTS: dict[str, Callable[[BanditConfig], Learner]] = {
    "RPG": lambda config: BanditRPG(config.rpg),
    "Gaussian": lambda config: GaussianReinforce(config.reinforce),
    "Softmax": lambda config: SoftmaxReinforce(config.softmax),
}
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]
DRAWN = {"Gaussian": "#6f6f6f", "Softmax": "#cc79a7"}
"""Colours of agents whose policies are not drawn by z."""


def main(config: BanditConfig) -> None:
    """Train every agent on every seed, write the CSV files and draw them."""
    require(len(config.seeds) > 0, "seeds=[]: give at least one")
    torch.set_num_threads(1)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    runs: list[list[Any]] = []
    curves: list[list[Any]] = []
    modes: list[list[Any]] = []
    evidence = log_evidence(config.rpg.reward_weight)
    for name, seed in ((name, seed) for name in AGENTS for seed in config.seeds):
        torch.manual_seed(seed)
        learner = AGENTS[name](config)
        wall, cpu = time.perf_counter(), time.process_time()
        snapshots = list(
            train(learner, config.updates, config.log_every, torch.Generator().manual_seed(seed))
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        test = torch.Generator().manual_seed(seed + 1_000_000)
        for update, policy in snapshots:
            reward = mean_reward(policy, ACTIONS, test)
            gap = evidence - policy.elbo
            curves.append([name, seed, update, f"{reward:.4f}", f"{gap:.6f}" if gap == gap else ""])
            rows = zip(
                policy.probability.tolist(), policy.mean.tolist(), policy.std.tolist(), strict=True
            )
            modes += [
                [name, seed, update, z, *(f"{value:.5g}" for value in row)]
                for z, row in enumerate(rows)
            ]
        runs.append([name, seed, f"{reward:.4f}", f"{wall:.1f}", f"{cpu:.1f}"])
        print(
            f"{name:8} seed {seed}: mean reward {reward:.3f} in {wall:.0f} s ({cpu:.0f} s of CPU)",
            flush=True,
        )
        write(out / "bandit.csv", ("agent", "seed", "mean_reward", "wall_s", "cpu_s"), runs)
        header = ("agent", "seed", "update", "mean_reward", "elbo_gap")
        write(out / "curves.csv", header, curves)
        write(
            out / "modes.csv", ("agent", "seed", "update", "z", "probability", "mean", "std"), modes
        )
    draw(out)
    print(f"done: {out}/bandit.csv {out}/curves.csv {out}/modes.csv {out}/fig4.png")


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file."""
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw(out: Path) -> None:
    """Draw fig4.png from the CSV files in `out`.

    It shows the policies of the first seed at three stages, and the reward of all seeds over
    training.
    """
    curves, modes = read(out / "curves.csv"), read(out / "modes.csv")
    seed = modes[0]["seed"]
    updates = sorted({int(row["update"]) for row in curves})
    stages = [
        min(updates, key=lambda update: abs(update - part * updates[-1])) for part in (0, 1 / 4, 1)
    ]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 6.6), layout="constrained")
    grid = figure.add_gridspec(len(AGENTS), 4, width_ratios=(1, 1, 1, 1.25))
    for row, name in enumerate(AGENTS):
        for column, update in enumerate(stages):
            axes = figure.add_subplot(grid[row, column])
            chosen = [
                r
                for r in modes
                if (r["agent"], r["seed"], int(r["update"])) == (name, seed, update)
            ]
            probability, mean, std = (
                torch.tensor([float(r[key]) for r in chosen])
                for key in ("probability", "mean", "std")
            )
            policy = Modes(probability, mean, std)
            _draw_policy(axes, policy, [DRAWN[name]] if name in DRAWN else COLOURS)
            reward = next(
                r["mean_reward"]
                for r in curves
                if (r["agent"], r["seed"], int(r["update"])) == (name, seed, update)
            )
            axes.set_title(
                f"{'start' if update == 0 else f'update {update:,}'}: mean reward "
                f"{float(reward):.2f}",
                fontsize=9,
            )
            if row == len(AGENTS) - 1:
                axes.set_xlabel("action x")
            if column == 0:
                axes.set_ylabel(f"{name}\nreward")
    _draw_curves(figure.add_subplot(grid[:, 3]), curves)
    figure.savefig(out / "fig4.png", dpi=150)
    plt.close(figure)


def _draw_policy(axes: Axes, policy: Modes, colours: Sequence[str]) -> None:
    """Draw the reward as a line and the density of the policy, stacked by z, at its own scale."""
    x = torch.linspace(-REACH, REACH, 4801)[1:-1]
    shares = density(policy, x).double().numpy()
    height = np.cumsum(shares, 0) * 1.1 / shares.sum(0).max()
    below = np.zeros_like(height[0])
    for z, top in enumerate(height):
        seen = (
            top - below > 0.005
        )  # or a narrow peak would wear the outlines of shares that are empty
        axes.fill_between(
            x,
            below,
            top,
            where=seen.tolist(),
            color=colours[z % len(colours)],
            alpha=0.75,
            linewidth=0.8,
        )
        below = top
    axes.plot(x, bandit_reward(x), color="black", linewidth=1.1)
    axes.set(
        xlim=(-REACH, REACH), ylim=(0, 1.18), xticks=(-1.2, -0.6, 0, 0.6, 1.2), yticks=(0, 0.5, 1.1)
    )


def _draw_curves(axes: Axes, curves: list[dict[str, str]]) -> None:
    """Mean reward over training: every seed thin, the mean of seeds thick."""
    for name, colour in {"RPG": COLOURS[0], **DRAWN}.items():
        rows = [r for r in curves if r["agent"] == name]
        runs = [
            [float(r["mean_reward"]) for r in rows if r["seed"] == seed]
            for seed in dict.fromkeys(r["seed"] for r in rows)
        ]
        updates = list(dict.fromkeys(int(r["update"]) for r in rows))
        axes.plot(updates, np.transpose(runs), color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(
            updates, np.mean(runs, 0), color=colour, linewidth=2, label=f"{name} (n = {len(runs)})"
        )
    for peak, label in ((1.1, "global peak"), (0.5, "local peak")):
        axes.axhline(peak, color="black", linewidth=0.7, linestyle=":")
        axes.annotate(
            label,
            (updates[-1], peak),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axes.set(
        xlabel="updates",
        ylim=(0, 1.18),
        xlim=(0, updates[-1]),
        title="mean reward of sampled actions",
    )
    axes.title.set_fontsize(9)
    axes.legend(frameon=False, loc="lower right")
