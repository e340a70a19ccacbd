"""The picture of a diagnosis: critic, model, R, paths by z and the bonus as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vis_rpg.agent.actor import Actor
from vis_rpg.analysis.explored_states import z_colormap
from vis_rpg.envs.make import task_of

if TYPE_CHECKING:
    from vis_rpg.analysis.diagnosis import Diagnosis


def figure(diagnosis: Diagnosis, actor: Actor, env: gymnasium.Env, title: str) -> Figure:
    """Draw critic, model and reward model, and for each object paths by z and the bonus' map."""
    task, episodes = task_of(env), diagnosis.episodes
    z = torch.stack([e.z for e in episodes]).cpu().numpy()
    colours = z_colormap(z, actor.agent.config.latent.kind)
    shades = colours.cmap(colours.norm(colours.values))
    figure = plt.figure(figsize=(15, 6.4 + 3.2 * bool(task.object_names)), layout="constrained")
    figure.suptitle(title)
    rows: Any = figure.subfigures(2, 1, height_ratios=[1, 1 if task.object_names else 0.01])
    axes = rows[0].subplots(1, 5)
    _scatter(axes[0], diagnosis.returns, diagnosis.q, shades, "Monte-Carlo return", "critic")
    for values, name in ((diagnosis.q, "critic"), (diagnosis.returns, "Monte-Carlo return")):
        axes[1].plot(*_over_time(values), label=name)
    axes[1].set(xlabel="step", title="mean over episodes")
    axes[1].legend(frameon=False)
    errors = diagnosis.state_error.cpu()
    axes[2].plot(np.arange(1, len(errors) + 1), errors, marker="o")
    axes[2].axvline(actor.agent.config.horizon, color="0.7", linestyle="--")
    axes[2].set(xlabel="open-loop steps", title="model: error / variance of s", ylim=(0, None))
    first = [diagnosis.paid_reward[:1].cpu(), diagnosis.predicted_reward[:1].cpu()]
    _scatter(axes[3], [first[0][0]], [first[1][0]], ["tab:blue"], "paid reward", "R")
    for name in episodes[0].terms:
        axes[4].plot(*_over_time([e.terms[name] for e in episodes]), label=name)
    axes[4].set(xlabel="step", title="mean reward a step")
    axes[4].legend(frameon=False)
    if task.object_names:
        lower = rows[1].subplots(1, 2 * len(task.object_names), squeeze=False)[0]
        plane = list(task.plane)
        bonus = torch.cat([e.bonus for e in episodes]).cpu().numpy()
        for index, name in enumerate(task.object_names):
            by_z, by_bonus = lower[2 * index : 2 * index + 2]
            for episode, shade in zip(episodes, shades, strict=True):
                by_z.plot(*episode.positions[:, index, plane].T, color=shade, linewidth=0.7)
                by_z.plot(*episode.positions[-1, index, plane], ".", color=shade)
            points = np.concatenate([e.positions[1:, index, plane] for e in episodes])
            shown = by_bonus.scatter(*points.T, c=bonus, s=4, linewidths=0)
            rows[1].colorbar(shown, ax=by_bonus, location="bottom")
            by_z.set(title=f"{name}: paths by z", aspect="equal")
            by_bonus.set(title=f"{name}: bonus", aspect="equal")
    return figure


def _scatter(
    axes: Axes, x: list[Tensor], y: list[Tensor], shades: Any, xlabel: str, ylabel: str
) -> None:
    for own_x, own_y, shade in zip(x, y, shades, strict=True):
        axes.plot(own_x.cpu(), own_y.cpu(), ".", color=shade, markersize=2)
    every = torch.cat([*x, *y])
    ends = [float(every.min()), float(every.max())]
    axes.plot(ends, ends, color="0.4", linewidth=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)


def _over_time(values: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Average over the episodes that last until then."""
    padded = torch.nn.utils.rnn.pad_sequence(values, padding_value=float("nan"))
    mean = padded.nanmean(1).cpu().numpy()
    return np.arange(len(mean)), mean
