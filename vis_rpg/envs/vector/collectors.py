"""Environments in Ray actors, on any machine of a cluster: `collectors=N` of `vis-rpg train`.

The learner chooses all actions, in one batch, so that a run is the same to the last bit wherever
its environments are, and collectors know nothing of the agent (central inference, as in SEED RL,
Espeholt et al. 2020).
"""

from __future__ import annotations

import ctypes
import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np

from vis_rpg.envs.vector.subprocess import FAILURES, OUTCOME, Died, Job, Stepper, Worker
from vis_rpg.errors import UserError, one_line, require

PATIENCE_S = 300
"""For a machine that is free to make an actor, and for its environments."""
POSES = ("positions", "rotations")


def connect(collectors: int) -> None:
    """Join Ray's cluster, that of RAY_ADDRESS or one of this machine alone.

    Raises:
        UserError: Ray is not installed, does not answer, or has fewer processors than `collectors`.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UserError("collectors need Ray: pip install 'vis-rpg[ray]'") from None
    try:
        if not ray.is_initialized():
            ray.init()
        processors = int(ray.cluster_resources().get("CPU", 0))
    except Exception as error:  # Ray's own, as of a cluster that does not answer
        raise UserError(f"Ray: {one_line(error)}") from error
    require(
        collectors <= processors,
        f"collectors={collectors}: Ray's cluster has {processors} processors, and each takes one",
    )


class Collector(Worker):
    """The learner's end of one actor.

    Raises:
        UserError: Its environments cannot be made.
    """

    WHAT, MANY = "collector", "collectors on Ray"

    def launch(self) -> None:
        """Start the actor; its first answer says whether it could make its environments."""
        self._ray = importlib.import_module("ray")
        self._shared = self.job.arrays()
        self._rows = slice(self.job.rows[0], self.job.rows[-1] + 1)
        actor = self._ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(Actor)
        self._actor = actor.remote()
        self._answer = self._actor.make.remote(replace(self.job, memory=None, gpu=None))
        self._timeout: float | None = PATIENCE_S

    def send(self, command: str, *what: Any) -> None:
        """Ask for something; an actor that is gone is noticed where the answer is awaited."""
        actions = self._shared["action"][self._rows].copy()
        self._answer = self._actor.answer.remote(actions, command, *what)

    def answer(self) -> Any:
        """As of `Worker`; what an actor writes of a step comes with its answer."""
        try:
            (kind, content), written = self._ray.get(self._answer, timeout=self._timeout)
        except self._ray.exceptions.GetTimeoutError:
            raise Died(f"no processor was free in {PATIENCE_S} s") from None
        except self._ray.exceptions.RayError as error:
            raise Died(one_line(error).split(". ")[0]) from None
        self._timeout = None
        if kind in FAILURES:
            raise FAILURES[kind](content)
        for name, rows in written.items():
            self._shared[name][self._rows] = rows
        return content

    def close(self) -> None:
        """End the actor."""
        if self._ray.is_initialized():
            self._ray.kill(self._actor)


class Actor:
    """What runs on the other machine."""

    def make(self, job: Job) -> tuple[tuple[str, Any], dict[str, np.ndarray]]:
        """Make the environments; answers as `answer`."""
        size = sum(
            math.prod(shape) * np.dtype(kind).itemsize for shape, kind in job.fields.values()
        )
        self._rows = slice(job.rows[0], job.rows[-1] + 1)
        self._stepper = Stepper()
        memory = (ctypes.c_byte * (job.count * size))()
        return self._stepper.answer("make", replace(job, memory=memory)), {}

    def answer(
        self, actions: np.ndarray, command: str, *what: Any
    ) -> tuple[tuple[str, Any], dict[str, np.ndarray]]:
        """Do something with the environments.

        Args:
            actions: (R, A) for the R environments.
            command: As of `Stepper.answer`.
            what: Likewise.

        Returns:
            What `Stepper.answer` returns, and what it wrote, by name: (R, ...).
        """
        shared = self._stepper.shared
        shared["action"][self._rows] = actions
        told = self._stepper.answer(command, *what)
        names = [*POSES, *(OUTCOME if command == "step" else ())]
        return told, {name: shared[name][self._rows] for name in names if name in shared}
