"""Evaluation: z from its prior once an episode, mean actions, seeded starts; rates and means with
95% intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor
from tqdm import tqdm

from vis_rpg.agent.actor import Actor
from vis_rpg.envs.make import object_positions, task_of
from vis_rpg.errors import UserError
from vis_rpg.training.coverage import CoverageCounter

NORMAL_QUANTILE = 1.959964
"""Two-sided 95% of a standard normal."""
STREAM = 0xE7A1
"""Keeps the starts of evaluation episodes apart from those of training with the same seed."""
RESAMPLES = 2000
"""Of a bootstrap."""

Interval = tuple[float, float]


@dataclass
class Moment:
    """One observation of an episode, and how the episode stands with it."""

    obs: np.ndarray
    objects: np.ndarray
    """(N, 2 or 3) true positions, world units."""
    total: float
    """Return so far."""
    success: bool
    ended: bool
    criteria: list[bool]
    """Success by each of the task's criteria."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of evaluation episodes; `eval_` keeps their names apart from those of training
    episodes, which sample their actions."""

    episodes: int
    seed: int
    eval_success: float
    """Share of episodes with success in their last step."""
    eval_success_interval: Interval
    """95%, Wilson."""
    eval_success_any: float
    """Share of episodes with success in any step."""
    eval_success_any_interval: Interval
    eval_return: float
    eval_return_interval: Interval
    """95%, percentile bootstrap over episodes; NaN with fewer than two."""
    eval_coverage: float
    """Object displacement coverage of the evaluation episodes alone; NaN where the task declares
    none."""
    eval_criteria: dict[str, float]
    """Share of episodes with success in their last step by each of the task's criteria; written as
    eval_success_<name>."""

    def write(self, path: Path, **about: Any) -> None:
        """As JSON, with what else is known `about` it; NaN becomes null."""
        figures = {**about, **asdict(self)}
        figures |= {
            f"eval_success_{name}": share for name, share in figures.pop("eval_criteria").items()
        }
        path.write_text(json.dumps(_without_nan(figures), indent=2) + "\n")


def evaluate(actor: Actor, env: gymnasium.Env, episodes: int = 50, seed: int = 0) -> Evaluation:
    """Run `episodes` episodes of one environment; the same seed gives the same figures. Raises
    UserError unless episodes >= 1."""
    if episodes < 1:
        raise UserError(f"episodes={episodes}: at least 1 is needed")
    actor.generator.manual_seed(seed)
    task = task_of(env)
    coverage = CoverageCounter(task)
    criteria = np.zeros((episodes, len(task.criteria)), bool)
    returns, last, ever = np.zeros(episodes), np.zeros(episodes, bool), np.zeros(episodes, bool)
    for index in tqdm(range(episodes), desc="evaluating", unit="episode"):
        for moment in play(actor, env, episode_seed(seed, index)):
            coverage.add(moment.objects)
            returns[index], last[index], criteria[index] = (
                moment.total,
                moment.success,
                moment.criteria,
            )
            ever[index] |= moment.success
    low, high = bootstrap(returns)
    return Evaluation(
        episodes=episodes,
        seed=seed,
        eval_success=float(last.mean()),
        eval_success_interval=wilson(int(last.sum()), episodes),
        eval_success_any=float(ever.mean()),
        eval_success_any_interval=wilson(int(ever.sum()), episodes),
        eval_return=float(returns.mean()),
        eval_return_interval=(float(low), float(high)),
        eval_coverage=coverage.value,
        eval_criteria=dict(zip(task.criteria, criteria.mean(0).tolist(), strict=True)),
    )


def play(
    actor: Actor, env: gymnasium.Env, seed: int, z: Tensor | None = None, explore: bool = False
) -> Iterator[Moment]:
    """One episode from the start that `seed` gives, moment by moment, the first before any action.

    z: (Z,), or drawn from π(z|s₁); explore: sample the actions instead of taking their mean.
    """
    actor.reset(z)
    names = [f"success_{name}" for name in task_of(env).criteria]
    obs, info = env.reset(seed=seed)
    total, ended = 0.0, False
    yield Moment(
        obs,
        object_positions(info),
        total,
        bool(info["success"]),
        ended,
        [bool(info[name]) for name in names],
    )
    while not ended:
        obs, reward, terminated, truncated, info = env.step(actor.act(obs, explore))
        total += float(reward)
        ended = bool(terminated or truncated)
        yield Moment(
            obs,
            object_positions(info),
            total,
            bool(info["success"]),
            ended,
            [bool(info[name]) for name in names],
        )


def episode_seed(seed: int, episode: int) -> int:
    """Of the environment in this episode of an evaluation."""
    return int(np.random.SeedSequence([STREAM, seed, episode]).generate_state(1)[0])


def wilson(successes: int, trials: int) -> Interval:
    """95% score interval of a rate (Wilson 1927): unlike the normal one it stays in [0, 1] and has
    a width at 0 and at 1."""
    rate, square = successes / trials, NORMAL_QUANTILE**2
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = (
        NORMAL_QUANTILE
        * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
        / (1 + square / trials)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: np.ndarray) -> np.ndarray:
    """95% percentile bootstrap interval of the mean over the first axis: (n, ...) -> (2, ...); NaN
    for fewer than two values."""
    n = len(values)
    if n < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    picks = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    weights = np.stack([np.bincount(pick, minlength=n) for pick in picks]) / n
    return np.percentile(np.tensordot(weights, values, 1), [2.5, 97.5], axis=0)


def _without_nan(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
