"""What training episodes come to: coverage, returns, success and milestones."""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from vis_rpg import distributed
from vis_rpg.envs.tasks.task import Task
from vis_rpg.training.coverage import CoverageCounter

EPISODES_KEPT = 100
"""Finished episodes that metrics are means of, of all processes together."""
KEPT = ("returns", "succeeded", "milestones", "episodes")
"""Attributes that a checkpoint holds under the same name."""


def count_rewarded(returns: np.ndarray, finished: Iterable[Sequence[float]]) -> int:
    """Count the episodes, running and last finished, that have a positive return so far.

    Args:
        returns: Of running episodes, as in `Progress` or its state.
        finished: The last finished ones, likewise.
    """
    return int((returns > 0).sum()) + sum(ended[0] > 0 for ended in finished)


class Progress:
    """Counts what the episodes of `envs` environments come to.

    Args:
        task: Declares coverage, criteria of success and milestones.
        envs: Number of environments.
        more: Names of further numbers of an episode, given to `end`.
    """

    def __init__(self, task: Task, envs: int, more: Sequence[str] = ()) -> None:
        self.task, self.more = task, list(more)
        self.coverage = CoverageCounter(task)
        kept = -(-EPISODES_KEPT // distributed.world_size())
        self.finished: deque[list[float]] = deque(maxlen=kept)
        self.returns = np.zeros(envs)
        self.succeeded = np.zeros(envs, bool)
        self.milestones = np.zeros((envs, len(task.milestones)), bool)
        self.episodes = 0

    def add(
        self, rows: np.ndarray, reward: np.ndarray, success: np.ndarray, objects: np.ndarray
    ) -> None:
        """Count one step of the environments `rows`.

        Args:
            rows: Their indices, (R,).
            reward: (R,).
            success: Whether it holds, (R,).
            objects: True positions of the objects of interest, (R, N, 2 or 3).
        """
        self.returns[rows] += reward
        self.succeeded[rows] |= success
        for index, holds in enumerate(self.task.milestones.values()):
            self.milestones[rows, index] |= holds(objects)
        self.coverage.add(objects)

    def end(
        self, row: int, success: bool, criteria: Sequence[float], more: Sequence[float] = ()
    ) -> None:
        """Count an episode as finished, and begin the environment's next one.

        Args:
            row: Of the environment.
            success: Of the last step.
            criteria: Of success, judged in each of the task's ways.
            more: As named in the constructor.
        """
        ended = [self.returns[row], success, self.succeeded[row], *more, *criteria]
        self.finished.append([*map(float, ended), *map(float, self.milestones[row])])
        self.episodes += 1
        self.forget([row])

    def forget(self, rows: Sequence[int]) -> None:
        """Begin to count anew what an episode of these environments is judged by."""
        self.returns[rows], self.succeeded[rows], self.milestones[rows] = 0.0, False, False

    def metrics(self) -> dict[str, float]:
        """Return coverages, and means over the last finished episodes; NaN where there is none.

        They are of all processes together.
        """
        own = self.coverage.state(), list(self.finished), self.episodes
        states, finished, episodes = zip(*distributed.gather_objects(own), strict=True)
        coverage = CoverageCounter(self.task)
        coverage.load({name: reduce(operator.add, [s[name] for s in states]) for name in states[0]})
        criteria = [f"success_{name}" for name in self.task.criteria]
        milestones = [f"milestone_{name}" for name in self.task.milestones]
        names = ["return", "success", "success_any", *self.more, *criteria, *milestones]
        recent = np.array(sum(finished, []) or [[np.nan] * len(names)]).mean(0)
        return {
            "coverage": coverage.value,
            "joint_coverage": coverage.joint,
            "visit_entropy": coverage.entropy,
            **dict(zip(names, recent.tolist(), strict=True)),
            "episodes": sum(episodes),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for a checkpoint."""
        counted = {"coverage": self.coverage.state(), "finished": list(self.finished)}
        return counted | {name: copy.copy(getattr(self, name)) for name in KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.coverage.load(state["coverage"])
        self.finished.extend(state["finished"])
        for name in KEPT:
            setattr(self, name, copy.copy(state[name]))
