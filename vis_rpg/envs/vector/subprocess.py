"""Environments in worker processes.

They write what they see into shared memory, and may die without taking the run along.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from vis_rpg.envs.make import make_env, task_of
from vis_rpg.envs.rendering.batch import BatchRenderer, RenderSlice, make_warp_renderer
from vis_rpg.envs.tasks.base import frames_space
from vis_rpg.envs.vector.sync import (
    EnvStates,
    Observations,
    StepResult,
    VectorEnv,
    cores,
    saved_state,
    stack_geom_poses,
    stack_step,
)
from vis_rpg.errors import RunStopped, UserError, WorkersFailed, one_line

DEATHS = 3
"""Of one worker in a row, without a good step between them: they stop the run."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells numerical libraries, when they are imported, to leave the other cores to the other
workers."""
GPU = "MUJOCO_EGL_DEVICE_ID"
"""What tells EGL, when its first context is made, on which GPU to render."""
OUTCOME = ("obs", "reward", "terminated", "truncated", "success", "objects", "criteria")
"""What a worker writes of a step, as `StepResult` has it."""

Envs = dict[int, gymnasium.Env[Any, Any]]
"""A worker's environments, by their row in the vector env."""
Fields = dict[str, tuple[tuple[int, ...], str]]
"""Name -> (shape of one environment's entry, dtype) of what lies in shared memory."""


class Died(Exception):
    """A worker is gone, or what it steps has raised; the text says how."""


FAILURES = {"user": UserError, "stopped": RunStopped, "raised": Died}
"""What a worker's answer of another kind than "done" raises in the parent."""


@dataclass(frozen=True)
class Job:
    """What a worker is given: it makes the environments `rows`."""

    task: Mapping[str, Any]
    obs: str
    rows: range
    count: int
    """Environments of the whole vector env."""
    fields: Fields
    memory: Any
    """ctypes array: it belongs to no name, so that nothing is left behind however the processes
    end."""
    cast: bool
    """Whether frames are ray-cast."""
    gpu: str | None
    """MUJOCO_EGL_DEVICE_ID of the parent: processes inherit what it was when the first of them was
    started."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The shared memory by name: (count, ...)."""
        arrays, offset = {}, 0
        for name, (shape, dtype) in self.fields.items():
            size = self.count * math.prod(shape)
            arrays[name] = np.frombuffer(self.memory, dtype, size, offset).reshape(
                self.count, *shape
            )
            offset += arrays[name].nbytes
        return arrays


def _start_forkserver() -> None:
    """Start it where it is not running, deaf to what ends its process group.

    It tells how workers end, and starts those that take the place of others.
    """
    resource_tracker.ensure_running()  # which unblocks SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """The parent's end of one worker process."""

    WHAT, MANY = "worker", "worker processes"

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.job, self.deaths = name, job, 0
        self.launch()

    def launch(self) -> None:
        """Start the process; its first answer says whether it could make its environments."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        _start_forkserver()
        kept = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        try:
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_work, args=(theirs, self.job), name=self.name, daemon=True
            )
            self._process.start()
            theirs.close()
        finally:
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def send(self, command: str, *what: Any) -> None:
        """Ask for something; a worker that is gone is noticed where the answer is awaited."""
        with contextlib.suppress(OSError):
            self._pipe.send((command, *what))

    def answer(self) -> Any:
        """What it answers; raises Died where it never will, and the user's errors as they are."""
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5.0)
            raise Died(_how(self._process.exitcode)) from None
        if kind in FAILURES:
            raise FAILURES[kind](content)
        return content

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5.0)


class SubprocVectorEnv(VectorEnv):
    """Environments of one task in up to `workers` processes, one a core unless given.

    A worker that dies, or whose environment raises, is named and restarted with new episodes in all
    its environments, and the step's result says which were dropped.

    Raises:
        WorkersFailed: For a third death in a row.
    """

    def __init__(
        self,
        example: gymnasium.Env[Any, Any],
        task: Mapping[str, Any],
        obs: str,
        count: int,
        seed: int,
        workers: int | None = None,
        renderer: BatchRenderer | None = None,
        cast: bool = False,
        kind: type[Worker] = Worker,
    ) -> None:
        """Start the workers; `ready` waits until they have made their environments.

        Args:
            example: An environment of this task, of any observation kind, so that none need be
                rendered in this process.
            task: As for `make_env`.
            obs: As for `make_env`.
            count: Environments.
            seed: As of VectorEnv.
            workers: Processes, one a core unless given.
            renderer: As of VectorEnv.
            cast: With obs=pixels, whether the workers' frames are ray-cast.
            kind: What the workers are.

        Raises:
            UserError: Where an environment cannot be made.
            RunStopped: Where the example raises at its reset.
        """
        super().__init__(example, count, seed, renderer)
        if obs == "pixels":
            self.observation_space = frames_space()
        try:
            _, info = example.reset(seed=0)
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises ends the run, with its name
            self._stop(0, "at reset", error)
        space = frames_space() if obs == "pixels" else example.observation_space
        fields = _fields(example, space, np.shape(info["objects"]), renderer is not None)
        size = count * sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in fields.values()
        )
        memory = multiprocessing.get_context("forkserver").RawArray(ctypes.c_byte, size)
        shares = np.array_split(np.arange(count), min(count, workers or cores()))
        gpu = os.environ.get(GPU)
        jobs = [
            Job(_plain(task), obs, range(rows[0], rows[-1] + 1), count, fields, memory, cast, gpu)
            for rows in shares
        ]
        self._shared = jobs[0].arrays()
        self.workers = [kind(f"{kind.WHAT} {number}", job) for number, job in enumerate(jobs)]
        self.stepped_in = f"{len(jobs)} {kind.MANY}"
        self._starting, self._failed = True, False

    def ready(self) -> None:
        """Wait until all environments are made; raises UserError where one cannot be."""
        if self._starting:
            self._starting = False
            for worker in self.workers:
                try:
                    worker.answer()
                except Died as death:
                    self._revive(worker, str(death), begin=False)

    # What a vector env does -----------------------------------------------------------------------

    def _send(self, actions: np.ndarray) -> None:
        self.ready()
        self._shared["action"][:] = actions
        for worker in self.workers:
            worker.send("step")

    def _receive(self) -> tuple[StepResult, Observations]:
        lost: Observations = {}
        for worker in self.workers:
            try:
                worker.answer()
                worker.deaths = 0
            except Died as death:
                lost |= self._revive(worker, str(death))
        outcome: Any = {name: self._shared[name].copy() for name in OUTCOME}
        return StepResult(**outcome), lost

    def _start(self, seeds: Mapping[int, int | None]) -> Observations:
        return self._ask("reset", seeds)

    def _restore(self, states: Mapping[int, dict[str, Any]]) -> Observations:
        return self._ask("restore", states)

    def _ask(self, command: str, about: Mapping[int, Any]) -> Observations:
        """Let the workers concerned do something at the same time.

        Returns how episodes have begun that it began, or that died.
        """
        self.ready()
        asked = []
        for worker in self.workers:
            mine = {row: about[row] for row in worker.job.rows if row in about}
            if mine:
                worker.send(command, mine)
                asked.append(worker)
        firsts: Observations = {}
        for worker in asked:
            try:
                firsts |= worker.answer()
            except Died as death:
                firsts |= self._revive(worker, str(death))
        return firsts

    def _save(self, rows: Sequence[int]) -> EnvStates:
        states: EnvStates = dict.fromkeys(rows)
        if self._failed:  # the others have gone on: nothing is as it was before the step
            return states
        asked = []
        for worker in self.workers:
            if mine := [row for row in worker.job.rows if row in states]:
                worker.send("save", mine)
                asked.append(worker)
        for worker in asked:
            try:
                states |= worker.answer()
            except Died:  # the next step finds it dead and restarts it
                worker.close()
        return states

    def _poses(self) -> tuple[np.ndarray, np.ndarray]:
        return self._shared["positions"], self._shared["rotations"]

    def close(self) -> None:
        """End every worker."""
        for worker in self.workers:
            worker.close()

    # Deaths ---------------------------------------------------------------------------------------

    def _revive(self, worker: Worker, how: str, begin: bool = True) -> Observations:
        """Restart a worker that has died; begin: with new episodes in all its environments."""
        rows = worker.job.rows
        which = f"s {rows[0]} to {rows[-1]}" if len(rows) > 1 else f" {rows[0]}"
        who = f"{self.id}, {worker.name} (environment{which} of seed {self.seed})"
        while True:
            worker.close()
            worker.deaths += 1
            if worker.deaths == DEATHS:
                self._failed = True
                raise WorkersFailed(f"{who} died {DEATHS} times in a row: {how}")
            tqdm.write(
                f"{who} died: {how}; it is restarted and its running episodes are dropped",
                file=sys.stderr,
            )
            worker.launch()
            try:
                worker.answer()
                if begin:
                    worker.send("reset", {row: self._fresh(row) for row in rows})
                return worker.answer() if begin else {}
            except Died as death:
                how = str(death)


def _plain(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's configuration as a worker can be given it."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value for key, value in task.items()
    }


def _fields(
    example: gymnasium.Env[Any, Any],
    space: gymnasium.Space[Any],
    objects: tuple[int, ...],
    poses: bool,
) -> Fields:
    assert example.action_space.shape is not None and space.shape is not None
    fields: Fields = {
        "objects": (objects, "float64"),
        "action": (example.action_space.shape, "float32"),
        "reward": ((), "float32"),
        "obs": (space.shape, str(space.dtype)),
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "success": ((), "bool"),
        "criteria": ((len(task_of(example).criteria),), "bool"),
    }
    if poses:  # eight-byte numbers come first, so that all lie where their kind must
        positions, rotations = example.get_wrapper_attr("geom_poses")()
        fields = {
            "positions": (positions.shape, "float64"),
            "rotations": (rotations.shape, "float64"),
        } | fields
    return fields


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


# In the worker ------------------------------------------------------------------------------------


def _work(pipe: Connection, job: Job) -> None:
    """A worker's life: do what the parent asks until it closes the pipe or is gone."""
    # Ctrl-C, and what schedulers send to a whole process group, are the parent's to answer.
    os.setpgid(0, 0)
    for each in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # multiprocessing ends us by it
    os.environ.pop(GPU, None)
    if job.gpu is not None:
        os.environ[GPU] = job.gpu
    with contextlib.suppress(EOFError, ConnectionError):  # the parent closed the pipe, or is gone
        stepper = Stepper()
        told = stepper.answer("make", job)
        while True:
            pipe.send(told)
            if told[0] != "done":
                break
            command, *what = pipe.recv()
            told = stepper.answer(command, *what)


class Stepper:
    """A worker's environments: they do what the parent asks."""

    shared: dict[str, np.ndarray]
    _envs: Envs
    _slice: RenderSlice | None

    def answer(self, command: str, *what: Any) -> tuple[str, Any]:
        """Do it.

        Args:
            command: make (first), step, reset, save or restore.
            what: What it is about.

        Returns:
            done and what is answered, or a key of FAILURES and a text: it is of no use from then
            on.
        """
        try:
            if command != "make":
                return "done", _do(command, what, self._envs, self.shared, self._slice)
            [job] = what
            self._envs = {
                row: make_env(job.task, "state" if job.cast else job.obs) for row in job.rows
            }
            self.shared, self._slice = job.arrays(), None
            if job.cast:
                count = len(self._envs)
                self._slice = make_warp_renderer(self._envs[job.rows[0]], count).allocate(count)
            return "done", None
        except UserError as error:
            return "stopped" if isinstance(error, RunStopped) else "user", str(error)
        except Exception as error:  # whatever is raised is told before the worker ends
            return "raised", str(error) if isinstance(error, Died) else one_line(error)


def _do(
    command: str,
    what: tuple[Any, ...],
    envs: Envs,
    shared: dict[str, np.ndarray],
    render_slice: RenderSlice | None,
) -> Any:
    start = min(envs)  # a slice counts from 0
    if command == "save":
        states = {row: saved_state(envs[row]) for row in what[0]}
        if render_slice:
            states = {
                row: state and state | {"frames": render_slice.stack(row - start)}
                for row, state in states.items()
            }
        return states
    if command == "restore":
        for row, state in what[0].items():
            envs[row].get_wrapper_attr("set_state")(state)
        if render_slice:
            render_slice.restore({row - start: state["frames"] for row, state in what[0].items()})
        return {}
    if command == "reset":
        firsts: Observations = {}
        for row, seed in what[0].items():
            with _named(row, "at reset"):
                firsts[row] = envs[row].reset(seed=seed)[0]
        _show_poses(envs, shared, render_slice)
        if render_slice:
            stacks = render_slice.start([row - start for row in firsts])
            firsts = {start + index: stack for index, stack in stacks.items()}
        return firsts
    told = []
    for row, env in envs.items():
        action = shared["action"][row].copy()
        with _named(row, f"at action {action.tolist()}"):
            told.append(env.step(action))
    step = stack_step(told, task_of(envs[start]).criteria)
    _show_poses(envs, shared, render_slice)
    if render_slice:
        step.obs = render_slice.push()
    for name in OUTCOME:
        shared[name][start : max(envs) + 1] = getattr(step, name)
    return None


@contextlib.contextmanager
def _named(row: int, when: str) -> Iterator[None]:
    """Whatever an environment raises ends its worker, with its name.

    The user's errors pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise Died(f"environment {row} raised {one_line(error)} {when}") from error


def _show_poses(
    envs: Envs, shared: dict[str, np.ndarray], render_slice: RenderSlice | None
) -> None:
    """Tell whoever renders where everything is: this worker, or the parent."""
    if render_slice:
        render_slice.put(*stack_geom_poses(envs.values()))
    if "positions" in shared:
        rows = slice(min(envs), max(envs) + 1)
        shared["positions"][rows], shared["rotations"][rows] = stack_geom_poses(envs.values())
