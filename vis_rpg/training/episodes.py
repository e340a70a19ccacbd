"""Episodes of training that are kept to be played again: where each began and what was done.

T steps of an episode; A numbers of an action, Z of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

MOST_BYTES = 20_000_000
"""Of all recorded episodes; a run keeps two checkpoints, and both hold them."""
FIRST_SUCCESSES = 6
"""One of so many recorded episodes is kept for the first successes."""

COLUMNS = "action", "z", "reward"
"""Of each step."""


@dataclass
class RecordedEpisode:
    """One episode of training."""

    began: int
    """Interactions of the run at its start."""
    state: dict[str, Any]
    """Of the environment there, for its `set_state`."""
    obs: np.ndarray
    """The first observation, as the environment gave it."""
    action: np.ndarray
    """(T, A) float32."""
    z: np.ndarray
    """(T, Z) float32, of each step."""
    reward: np.ndarray
    """(T,) float32."""
    ended: int
    """Interactions of the run at its end."""
    success: bool
    """In the last step."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return _nbytes(vars(self))


@dataclass
class _Running:
    """The beginning of an episode."""

    began: int
    state: dict[str, Any]
    obs: np.ndarray
    steps: list[list[np.ndarray]]
    """Action, z and reward of each step."""

    def columns(self) -> dict[str, np.ndarray]:
        """Return `action`, `z` and `reward`, each (T, ...)."""
        return {
            name: np.array([step[index] for step in self.steps], np.float32)
            for index, name in enumerate(COLUMNS)
        }


class EpisodeRecorder:
    """Keeps at most `count` finished episodes of a run, however long it will be.

    The first episode of all stays, which is random where there are random steps, and so do the
    first successes; of the others those stay whose ends are spread most evenly over the run.

    Args:
        count: Episodes that are kept; 0: none.
        envs: Number of environments.
    """

    def __init__(self, count: int, envs: int) -> None:
        self.count = count
        self.kept: list[RecordedEpisode] = []
        """In the order of their ends."""
        self.running: list[_Running | None] = [None] * envs
        """Of each environment; None while its episode is not recorded."""

    def begin(self, row: int, step: int, state: dict[str, Any] | None, obs: np.ndarray) -> None:
        """Begin to record an episode.

        Args:
            row: Of the environment.
            step: Interactions of the run so far.
            state: Of the environment; None where it cannot be saved: nothing is recorded then.
            obs: The first observation.
        """
        self.running[row] = None if state is None else _Running(step, state, obs.copy(), [])

    def add(
        self, rows: Sequence[int] | np.ndarray, action: np.ndarray, z: np.ndarray, reward: Any
    ) -> None:
        """Record one step of the environments `rows`.

        Args:
            rows: Their indices, (R,).
            action: (R, A).
            z: (R, Z).
            reward: (R,).
        """
        for row, *step in zip(rows, action, z, reward, strict=True):
            if (episode := self.running[row]) is not None:
                episode.steps.append(step)

    def end(self, row: int, step: int, success: bool) -> None:
        """Keep the episode of an environment, and drop another one where there are too many.

        Args:
            row: Of the environment.
            step: Interactions of the run so far.
            success: In the last step.
        """
        if (own := self.running[row]) is None:
            return
        self.forget([row])
        about: dict[str, Any] = {"began": own.began, "state": own.state, "obs": own.obs}
        about |= {**own.columns(), "ended": step, "success": success}
        self.kept.append(RecordedEpisode(**about))
        while len(self.kept) > self.count or sum(one.nbytes for one in self.kept) > MOST_BYTES:
            del self.kept[self._least_needed()]

    def _least_needed(self) -> int:
        """Return the index of the episode whose neighbours end closest to each other.

        The newest one goes only where all others must stay.
        """
        ended = [episode.ended for episode in self.kept]
        successes = [index for index, episode in enumerate(self.kept) if episode.success]
        needed = {0, *successes[: -(-self.count // FIRST_SUCCESSES)]}
        others = [index for index in range(1, len(ended) - 1) if index not in needed]
        gaps = {index: ended[index + 1] - ended[index - 1] for index in others}
        return min(gaps, key=gaps.__getitem__, default=len(ended) - 1)

    def forget(self, rows: Sequence[int]) -> None:
        """Drop what is recorded of the running episodes of these environments."""
        for row in rows:
            self.running[row] = None

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for a checkpoint."""
        running = [
            own and {"began": own.began, "state": own.state, "obs": own.obs, **own.columns()}
            for own in self.running
        ]
        return {"kept": [dict(vars(episode)) for episode in self.kept], "running": running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.kept = recorded_episodes({"episodes": state})
        for row, own in enumerate(state["running"]):
            if own is not None:
                steps = [list(step) for step in zip(*map(own.get, COLUMNS), strict=True)]
                self.running[row] = _Running(own["began"], own["state"], own["obs"], steps)


def recorded_episodes(state: dict[str, Any]) -> list[RecordedEpisode]:
    """Return the episodes that a checkpoint holds, in the order of their ends.

    Args:
        state: From `checkpoint.load`; that of a run before episodes were recorded has none.
    """
    return [RecordedEpisode(**own) for own in state.get("episodes", {"kept": []})["kept"]]


class Replay(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """An environment whose `reset` goes to the start of a recorded episode.

    Given the episode's actions it gives the rewards that were recorded, where the simulator
    computes as it did.

    Args:
        env: Of the run's task and observation.
        episode: Of that run.
    """

    def __init__(
        self, env: gymnasium.Env[np.ndarray, np.ndarray], episode: RecordedEpisode
    ) -> None:
        super().__init__(env)
        self.episode = episode

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observation and info of the recorded episode."""
        self.env.reset(**kwargs)
        info = self.env.get_wrapper_attr("set_state")(self.episode.state)
        return self.episode.obs.copy(), info


def _nbytes(node: Any) -> int:
    if isinstance(node, dict):
        return sum(map(_nbytes, node.values()))
    return node.nbytes if isinstance(node, np.ndarray) else 0
