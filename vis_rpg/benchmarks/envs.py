"""Measure steps/s and frames/s of each task, as a run steps it and in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from vis_rpg.compose import compose
from vis_rpg.envs import IDS
from vis_rpg.envs.make import make_env
from vis_rpg.envs.rendering.batch import choose_renderer
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import SyncVectorEnv, VectorEnv
from vis_rpg.errors import require

Line = dict[str, Any]
ENVS = 5
"""Environments of a vector env, as in Table 1."""


def envs(only: str | None = None, seconds: float = 1.0, backend: str = "auto") -> Iterator[Line]:
    """Measure each task from state and from pixels; what cannot be made here says why.

    Args:
        only: One task instead of all.
        seconds: Length of a span; a speed is the median of three.
        backend: render.backend.

    Returns:
        Lines with the interactions/s of a vector env as a run steps it, and in one process.

    Raises:
        UserError: For a task that does not exist.
    """
    require(
        only is None or only in IDS,
        f"only_task={only}: choose one of {', '.join(IDS)}",
    )
    for name in [only] if only else IDS:
        for obs in ("state", "pixels"):
            yield {"name": f"{name}, {obs}", **_measured(name, obs, seconds, backend)}


def _measured(name: str, obs: str, seconds: float, backend: str) -> Line:
    try:
        task = compose([f"task={name}"]).task
        [envs] = make_vector_envs(task, obs, ENVS, [0], backend)
        with closing(envs):
            line: Line = {
                "frames_by": envs.frames_by,
                "stepped_in": envs.stepped_in,
                "envs": ENVS,
                "steps_per_s": _speed(envs, seconds),
            }
        if isinstance(envs, SyncVectorEnv):
            return {**line, "one_process_steps_per_s": line["steps_per_s"]}
        renderer = (
            choose_renderer(make_env(task, "state"), ENVS, backend)[0] if obs == "pixels" else None
        )
        alone = SyncVectorEnv(
            lambda _: make_env(task, "state" if renderer else obs), ENVS, 0, renderer
        )
        with closing(alone):
            return {**line, "one_process_steps_per_s": _speed(alone, seconds)}
    except (
        Exception
    ) as error:  # a library that is missing or a renderer that cannot be had says so in its own way
        return {"not_measured": " ".join(str(error).split()) or type(error).__name__}


def _speed(envs: VectorEnv, seconds: float) -> float:
    """Interactions/s with random actions, resets included; with obs=pixels these are frames/s."""
    shape = 64, len(envs), *envs.action_space.shape
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    envs.reset()
    for action in actions[:3]:
        envs.step(action)
    rates = []
    for _ in range(3):
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            envs.step(actions[steps % len(actions)])
            steps += 1
        rates.append(steps * len(envs) / (time.perf_counter() - begin))
    return round(statistics.median(rates), 1)
