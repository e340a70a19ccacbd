"""Several environments of one task, stepped together: VectorEnv and SyncVectorEnv."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn, SupportsFloat, TypedDict, cast

import gymnasium
import numpy as np

from vis_rpg import distributed
from vis_rpg.envs.make import object_positions, task_of
from vis_rpg.envs.rendering.batch import BatchRenderer
from vis_rpg.envs.tasks.base import BaseTask
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import RunStopped, UserError

SEED_STRIDE = 1000
"""Environment i of a run with seed s starts from seed s * 1000 + i."""

Observations = dict[int, np.ndarray]
"""First observations (...) of episodes that have begun, by the environment's index."""


EnvStates = dict[int, dict[str, Any] | None]
"""What environments' own `get_state` returned, by index; None where it cannot be saved."""

EnvStep = tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]
"""What an environment's `step` returns."""


class EnvState(TypedDict):
    """The saved state of one environment in a vector env."""

    env: dict[str, Any] | None
    """What the environment's own `get_state` returned; None where it cannot be saved."""
    episodes: int
    """Episodes begun so far."""
    obs: np.ndarray
    """(...) the observation that the next action answers to."""


@dataclass
class StepResult:
    """One step of N environments."""

    obs: np.ndarray
    """(N, ...) after the step; of a finished episode its final observation, not the next one's
    first."""
    reward: np.ndarray
    """(N,) float32."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""
    success: np.ndarray
    """(N,) bool."""
    objects: np.ndarray
    """(N, n, 2 or 3) float64, true positions in world units."""
    criteria: np.ndarray
    """(N, C) bool, success by each of the task's criteria."""
    first_obs: dict[int, np.ndarray] = field(default_factory=dict)
    """For each environment whose episode is over: the first observation (...) of its next one,
    which has begun."""
    dropped: list[int] = field(default_factory=list)
    """Environments whose episode was cut: they were lost with their worker, their rows of this step
    mean nothing."""

    @property
    def kept(self) -> np.ndarray:
        """The environments (N',) whose rows tell what happened."""
        return np.setdiff1d(np.arange(len(self.obs)), self.dropped)


class VectorEnv(ABC):
    """`count` environments of one task.

    Each is seeded at its first reset only; its own generator carries on from there. A step is
    `begin`, `wait`, `finish`, so that several vector envs can move at the same time; `step` is all
    three.

    Raises:
        RunStopped: For an environment that raises, for an action, observation or reward that is not
            finite.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        count: int,
        seed: int,
        renderer: BatchRenderer | None = None,
    ) -> None:
        """Declare the spaces.

        Args:
            env: One like the others.
            count: N environments.
            seed: Environment i starts from seed * 1000 + i; of several processes each continues
                to count where the one before ended.
            renderer: Where given, observations are its frames, of all environments in one call;
                they step from state.
        """
        self.seed = seed
        self.task: Task = task_of(env)
        self.id = env.spec.id if env.spec else self.task.name
        self.action_space = cast(gymnasium.spaces.Box, env.action_space)
        self.observation_space = renderer.space if renderer else env.observation_space
        self.obs: list[np.ndarray] = [np.zeros(0)] * count
        """(...) the observation that each environment's next action answers to."""
        self._episodes = [0] * count
        self._slice = renderer.allocate(count) if renderer else None
        self.stepped_in = "one thread"
        """Where the environments move: threads or processes, and how many."""
        self.frames_by: str | None = None
        """Whose frames observations are, where they are frames."""

    # What a kind of vector env does ---------------------------------------------------------------

    @abstractmethod
    def _send(self, actions: np.ndarray) -> None:
        """Let all environments begin to carry out actions (N, A)."""

    @abstractmethod
    def _receive(self) -> tuple[StepResult, Observations]:
        """What these led to, and how the next episodes of lost environments have begun."""

    @abstractmethod
    def _start(self, seeds: Mapping[int, int | None]) -> Observations:
        """Reset these environments.

        Returns how their episodes begin, and those of others that were lost.
        """

    @abstractmethod
    def _save(self, rows: Sequence[int]) -> EnvStates:
        """The states of these environments."""

    @abstractmethod
    def _restore(self, states: Mapping[int, dict[str, Any]]) -> Observations:
        """Continue from saved states.

        Returns how the next episodes of environments that were lost have begun.
        """

    @abstractmethod
    def _poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Where geoms and sites are now (`stack_geom_poses`)."""

    @abstractmethod
    def close(self) -> None:
        """Close every environment."""

    # Steps ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.obs)

    def reset(self) -> np.ndarray:
        """Begin an episode everywhere: first observations (N, ...)."""
        self._enter(
            self._start(
                {
                    index: None if self._episodes[index] else self._seed(index)
                    for index in range(len(self))
                }
            )
        )
        return np.stack(self.obs)

    def step(self, actions: np.ndarray) -> StepResult:
        """Carry out actions (N, A) in [-1, 1]; a finished environment is reset at once."""
        self.begin(actions)
        self.wait()
        return self.finish()

    def begin(self, actions: np.ndarray) -> None:
        """Let all environments begin to move."""
        self._send(self._finite("action", np.asarray(actions, np.float32)))

    def wait(self) -> None:
        """Wait until all have moved."""
        self._outcome = self._receive()
        if self._slice:
            self._slice.put(*self._poses())

    def finish(self) -> StepResult:
        """What the step led to; environments whose episode has ended begin their next one."""
        step, lost = self._outcome
        if self._slice:
            step.obs = self._slice.push()
        for index in lost:
            step.obs[index], step.reward[index] = self.obs[index], 0.0
            step.terminated[index] = step.truncated[index] = step.success[index] = False
        self._finite("observation", step.obs)
        self._finite("reward", step.reward)
        self.obs = list(step.obs)
        ended = {int(index): None for index in np.flatnonzero(step.terminated | step.truncated)}
        firsts = lost | (self._start(ended) if ended else {})
        self._enter(firsts)
        step.dropped = sorted(firsts.keys() - ended.keys())
        step.first_obs = {index: self.obs[index] for index in sorted(firsts)}
        return step

    def _enter(self, firsts: Observations) -> None:
        """Episodes have begun in these environments."""
        if not firsts:
            return
        for index, obs in firsts.items():
            self._episodes[index] += 1
            self.obs[index] = obs
        if self._slice:
            self._slice.put(*self._poses())
            for index, stack in self._slice.start(list(firsts)).items():
                self.obs[index] = stack
        self._finite("observation", self.obs)

    # Checkpoints ----------------------------------------------------------------------------------

    def get_state(self) -> list[EnvState]:
        """Save every environment: NumPy arrays and JSON values."""
        saved = self.env_states(range(len(self)))
        return [
            {"env": saved[index], "episodes": episodes, "obs": obs.copy()}
            for index, (episodes, obs) in enumerate(zip(self._episodes, self.obs, strict=True))
        ]

    def env_states(self, rows: Sequence[int]) -> EnvStates:
        """Save these environments, each for the `set_state` of a lone one of the same task."""
        saved = self._save(rows)
        if self._slice:  # as it is where environments stack their own frames
            saved = {
                row: state and state | {"frames": self.obs[row].copy()}
                for row, state in saved.items()
            }
        return saved

    def set_state(self, states: list[EnvState]) -> list[int]:
        """Continue from `get_state`; `obs` then holds what the next actions answer to.

        Returns the environments that could not be restored: their episodes are dropped, and new
        ones, freshly seeded, have begun.
        """
        self._episodes = [int(state["episodes"]) for state in states]
        firsts = self._restore(
            {index: state["env"] for index, state in enumerate(states) if state["env"] is not None}
        )
        unsaved = {
            index: self._fresh(index)
            for index, state in enumerate(states)
            if state["env"] is None and index not in firsts
        }
        firsts |= self._start(unsaved) if unsaved else {}
        self.obs = [np.array(state["obs"]) for state in states]
        if self._slice:
            self._slice.restore(dict(enumerate(self.obs)))
        self._enter(firsts)
        return sorted(firsts)

    # Names and errors -----------------------------------------------------------------------------

    def _seed(self, index: int) -> int:
        return self.seed * SEED_STRIDE + distributed.rank() * len(self.obs) + index

    def _fresh(self, index: int) -> int:
        """The seed of the episode that follows one that was dropped."""
        return int(
            np.random.SeedSequence([self._seed(index), self._episodes[index]]).generate_state(1)[0]
        )

    def _name(self, index: int) -> str:
        return (
            f"{self.id}, environment {index} (seed {self._seed(index)}, episode "
            f"{self._episodes[index]})"
        )

    def _stop(self, index: int, when: str, error: Exception) -> NoReturn:
        what = " ".join(str(error).split())
        raise RunStopped(
            f"{self._name(index)} raised {type(error).__name__} {when}: {what}"
        ) from error

    def _finite(self, quantity: str, values: Any) -> Any:
        """`values` (N, ...), or RunStopped with the first environment where they are not finite."""
        if not np.isfinite(values).all():
            bad = next(index for index, value in enumerate(values) if not np.isfinite(value).all())
            raise RunStopped(f"{quantity} of {self._name(bad)} is not finite")
        return values


class SyncVectorEnv(VectorEnv):
    """Environments in this process.

    Where it is faster (`BaseTask.threads_from`) physics moves in threads, which all vector envs
    share; pictures are taken afterwards, in one thread, since a GL context belongs to one.
    Otherwise environments are stepped in turn.

    Args:
        make: Index -> environment.
        count: N environments.
        seed: As of VectorEnv.
        renderer: As of VectorEnv.
        together: How many all vector envs that step together have, `count` by default.
    """

    def __init__(
        self,
        make: Callable[[int], gymnasium.Env[np.ndarray, np.ndarray]],
        count: int,
        seed: int,
        renderer: BatchRenderer | None = None,
        together: int | None = None,
    ) -> None:
        self.envs = [make(index) for index in range(count)]
        super().__init__(self.envs[0], count, seed, renderer)
        own = [
            env
            for env in self.envs
            if isinstance(env, BaseTask) and env.threads_from <= (together or count)
        ]
        self._own = own if len(own) == count and cores() > 1 else []
        if self._own:
            self.stepped_in = f"{min(count, cores())} threads"
        self._moves: list[Future[None]] = []
        self._raised: dict[int, Exception] = {}

    def _send(self, actions: np.ndarray) -> None:
        self._actions = actions
        if self._own:
            shares = np.array_split(np.arange(len(self)), min(len(self), cores()))
            self._moves = [threads().submit(self._advance, share.tolist()) for share in shares]

    def _advance(self, indices: list[int]) -> None:
        for index in indices:
            try:
                self._own[index].advance(self._actions[index])
            except Exception as error:  # told where the step is waited for
                self._raised[index] = error

    def _receive(self) -> tuple[StepResult, Observations]:
        for move in self._moves:
            move.result()
        steps = [self._step(index) for index in range(len(self))]
        return stack_step(steps, self.task.criteria), {}

    def _step(self, index: int) -> EnvStep:
        try:
            if not self._own:
                return self.envs[index].step(self._actions[index])
            if index in self._raised:
                raise self._raised[index]
            return self._own[index].outcome()
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises ends the run, with its name
            self._stop(index, f"at action {self._actions[index].tolist()}", error)

    def _start(self, seeds: Mapping[int, int | None]) -> Observations:
        return {index: self._reset(index, seed) for index, seed in seeds.items()}

    def _reset(self, index: int, seed: int | None) -> np.ndarray:
        try:
            return self.envs[index].reset(seed=seed)[0]
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises ends the run, with its name
            self._stop(index, "at reset", error)

    def _save(self, rows: Sequence[int]) -> EnvStates:
        return {row: saved_state(self.envs[row]) for row in rows}

    def _restore(self, states: Mapping[int, dict[str, Any]]) -> Observations:
        for index, state in states.items():
            self.envs[index].get_wrapper_attr("set_state")(state)
        return {}

    def _poses(self) -> tuple[np.ndarray, np.ndarray]:
        return stack_geom_poses(self.envs)

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()


def step_vector_envs(
    vector_envs: Sequence[VectorEnv], actions: Sequence[np.ndarray]
) -> list[StepResult | RunStopped]:
    """One step of several vector envs, all of whose environments move at the same time.

    Why it failed where it did.
    """
    results: list[StepResult | RunStopped | None] = [None] * len(vector_envs)

    def attempt(phase: Callable[[int], StepResult | None]) -> None:
        for index, result in enumerate(results):
            if not isinstance(result, RunStopped):
                try:
                    results[index] = phase(index)
                except RunStopped as error:
                    results[index] = error

    attempt(lambda index: vector_envs[index].begin(actions[index]))
    attempt(lambda index: vector_envs[index].wait())
    attempt(lambda index: vector_envs[index].finish())
    return [result for result in results if result is not None]


def stack_step(steps: Sequence[EnvStep], criteria: tuple[str, ...]) -> StepResult:
    """What N environments returned, as arrays."""
    obs, reward, terminated, truncated, infos = zip(*steps, strict=True)
    return StepResult(
        obs=np.stack(obs),
        reward=np.array(reward, np.float32),
        terminated=np.array(terminated, bool),
        truncated=np.array(truncated, bool),
        success=np.array([info["success"] for info in infos], bool),
        objects=np.stack([object_positions(info) for info in infos]),
        criteria=np.array([[info[f"success_{name}"] for name in criteria] for info in infos], bool),
    )


def saved_state(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """Of one environment; None where it cannot be saved."""
    if not env.has_wrapper_attr("get_state"):
        return None
    try:
        return env.get_wrapper_attr("get_state")()
    except NotImplementedError:
        return None


def stack_geom_poses(envs: Iterable[gymnasium.Env[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Stack the `MujocoTask.geom_poses` of environments: (N, P, 3) and (N, P, 9)."""
    positions, rotations = zip(*[env.get_wrapper_attr("geom_poses")() for env in envs], strict=True)
    return np.stack(positions), np.stack(rotations)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def threads() -> ThreadPoolExecutor:
    """The threads in which physics moves, one a core; all vector envs of a process share them."""
    return ThreadPoolExecutor(cores(), "physics")
