"""Evaluate an agent: z from its prior once per episode, mean actions, seeded starts.

Rates and means have 95% intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from vis_rpg.agent.actor import Actor
from vis_rpg.envs.make import object_positions, task_of
from vis_rpg.errors import require
from vis_rpg.training.coverage import CoverageCounter
from vis_rpg.training.logger import without_nan

STREAM = 0xE7A1
"""Separates the starts of evaluation episodes from those of training with the same seed."""
RESAMPLES = 2000
"""Resamples of a bootstrap."""

Interval = tuple[float, float]


@dataclass
class EpisodeStep:
    """An observation of an episode and the outcome of the episode so far."""

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
    """Figures of evaluation episodes.

    The prefix `eval_` separates them from those of training episodes, which sample their actions.
    """

    episodes: int
    seed: int
    eval_success: float
    """Share of episodes with success in their last step."""
    eval_success_interval: Interval
    """95%, Wilson score."""
    eval_success_any: float
    """Share of episodes with success in any step."""
    eval_success_any_interval: Interval
    eval_return: float
    eval_return_interval: Interval
    """95%, percentile bootstrap over episodes; NaN with fewer than two."""
    eval_coverage: float
    """Object displacement coverage of these episodes; NaN where the task declares none."""
    eval_criteria: dict[str, float]
    """Share of episodes with success in their last step by each of the task's criteria, written as
    eval_success_<name>."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values, NaN as None."""
        figures = asdict(self)
        figures |= {
            f"eval_success_{name}": share for name, share in figures.pop("eval_criteria").items()
        }
        return cast(dict[str, Any], without_nan(figures))

    def write(self, path: Path, **about: Any) -> None:
        """Write the figures as JSON.

        Args:
            path: The file.
            **about: Further entries.
        """
        path.write_text(json.dumps({**about, **self.as_json()}, indent=2) + "\n")


def evaluate(actor: Actor, env: gymnasium.Env, episodes: int = 50, seed: int = 0) -> Evaluation:
    """Run episodes of one environment.

    Args:
        actor: The agent; its generator is seeded anew.
        env: The environment.
        episodes: Number of episodes.
        seed: The same seed gives the same figures.

    Returns:
        The figures of all episodes.

    Raises:
        UserError: `episodes` is below 1.
    """
    require(episodes >= 1, f"episodes={episodes}: at least 1 is needed")
    actor.generator.manual_seed(seed)
    task = task_of(env)
    coverage = CoverageCounter(task)
    last: list[EpisodeStep] = []
    ever: list[bool] = []
    for index in tqdm(range(episodes), desc="evaluating", unit="episode"):
        ever.append(False)
        for step in play(actor, env, episode_seed(seed, index)):
            coverage.add(step.objects)
            ever[-1] |= step.success
        last.append(step)
    returns = np.array([step.total for step in last])
    success = [step.success for step in last]
    low, high = bootstrap(returns)
    criteria = np.mean([step.criteria for step in last], axis=0)
    return Evaluation(
        episodes=episodes,
        seed=seed,
        eval_success=float(np.mean(success)),
        eval_success_interval=wilson(sum(success), episodes),
        eval_success_any=float(np.mean(ever)),
        eval_success_any_interval=wilson(sum(ever), episodes),
        eval_return=float(returns.mean()),
        eval_return_interval=(float(low), float(high)),
        eval_coverage=coverage.value,
        eval_criteria=dict(zip(task.criteria, criteria.tolist(), strict=True)),
    )


def play(
    actor: Actor, env: gymnasium.Env, seed: int, z: Tensor | None = None, explore: bool = False
) -> Iterator[EpisodeStep]:
    """Play one episode.

    Args:
        actor: The agent.
        env: The environment.
        seed: Determines the start.
        z: (Z,) latent variable; None draws it from π(z|s₁).
        explore: Sample the actions instead of taking their mean.

    Yields:
        The steps of the episode; the first comes before any action.
    """
    actor.reset(z)
    names = [f"success_{name}" for name in task_of(env).criteria]
    obs, info = env.reset(seed=seed)
    total, ended = 0.0, False
    while True:
        criteria = [bool(info[name]) for name in names]
        yield EpisodeStep(
            obs, object_positions(info), total, bool(info["success"]), ended, criteria
        )
        if ended:
            return
        obs, reward, terminated, truncated, info = env.step(actor.act(obs, explore))
        total += float(reward)
        ended = bool(terminated or truncated)


def episode_seed(seed: int, episode: int) -> int:
    """Return the environment's seed in this episode of an evaluation."""
    return int(np.random.SeedSequence([STREAM, seed, episode]).generate_state(1)[0])


def wilson(successes: int, trials: int) -> Interval:
    """Return the 95% score interval of a rate (Wilson 1927).

    Unlike the normal interval it stays in [0, 1] and has a width at 0 and at 1.
    """
    low, high = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(low), float(high)


def bootstrap(values: np.ndarray) -> np.ndarray:
    """Return the 95% percentile bootstrap interval of the mean over the first axis.

    Args:
        values: (n, ...).

    Returns:
        (2, ...) bounds; NaN for fewer than two values.
    """
    if len(values) < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    rng = np.random.default_rng(0)
    return np.stack(
        stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng
        ).confidence_interval
    )
