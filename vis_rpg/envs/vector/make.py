"""Makes the vector envs of a run: in this process or in others, and whoever renders them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from vis_rpg import distributed
from vis_rpg.envs import IDS
from vis_rpg.envs.make import make_env, task_of
from vis_rpg.envs.rendering.batch import choose_renderer
from vis_rpg.envs.vector.collectors import Collector, connect
from vis_rpg.envs.vector.subprocess import SubprocVectorEnv, Worker
from vis_rpg.envs.vector.sync import SyncVectorEnv, VectorEnv, cores
from vis_rpg.envs.vector.warp import WarpVectorEnv
from vis_rpg.errors import require


def make_vector_envs(
    task: Mapping[str, Any],
    obs: str,
    count: int,
    seeds: Sequence[int],
    backend: str = "auto",
    collectors: int = 0,
) -> list[VectorEnv]:
    """Make one vector env for each seed; `step_vector_envs` steps them together.

    In worker processes where the task declares `processes`: one a core, shared out among the vector
    envs, at least one for each. Likewise in collectors, where there are any.

    Args:
        task: As for `make_env`.
        obs: state | pixels.
        count: Environments of each.
        seeds: One for each.
        backend: render.backend, auto | egl | warp.
        collectors: Ray actors that step the environments, of all vector envs and processes
            together; 0: none.

    Raises:
        UserError: For what cannot be made or rendered here.
    """
    own = task.get("family", task["name"]) in IDS
    example = make_env(task, "state" if own else obs)
    renderer, frames_by = None, None
    lone = task.get("corrupt") or task.get("looks") == "striped" or task.get("shadows")
    if obs == "pixels" and lone:
        require(
            backend != "warp",
            "obs.corrupt, task.looks=striped and render.shadows need frames that each environment "
            "draws: use render.backend=egl",
        )
        frames_by = "egl (obs.corrupt, task.looks=striped or render.shadows)" if own else "auto"
    elif obs == "pixels":
        renderer, frames_by = choose_renderer(example, count * len(seeds), backend)
    if frames_by:
        tqdm.write(f"frames: render.backend={frames_by}", file=sys.stderr)
    # On a CPU a worker ray-casts what it has just moved: a core that waits for its turn meanwhile
    # is slow to wake, and its caches are cold.
    apart = collectors > 0 or task_of(example).processes
    cast = renderer is not None and apart and not torch.cuda.is_available()
    if cast:
        renderer = None
    kind = "state" if renderer else obs
    workers = (collectors or cores()) // (
        len(seeds) * (distributed.world_size() if collectors else 1)
    )
    if collectors:
        require(
            task.get("physics") != "warp",
            f"collectors={collectors}: task.physics=warp steps all environments in this process",
        )
        connect(collectors)
    vector_envs: list[VectorEnv] = []
    try:
        for seed in seeds:
            if apart:
                vector_envs.append(
                    SubprocVectorEnv(
                        example,
                        task,
                        kind,
                        count,
                        seed,
                        max(1, workers),
                        renderer,
                        cast,
                        Collector if collectors else Worker,
                    )
                )
            elif task.get("physics") == "warp":
                vector_envs.append(
                    WarpVectorEnv(lambda _: make_env(task, kind), count, seed, renderer)
                )
            else:
                vector_envs.append(
                    SyncVectorEnv(
                        lambda _: make_env(task, kind), count, seed, renderer, count * len(seeds)
                    )
                )
        for envs in vector_envs:
            envs.frames_by = frames_by
            if isinstance(envs, SubprocVectorEnv):
                envs.ready()
    except BaseException:
        for envs in vector_envs:
            envs.close()
        raise
    example.close()
    return vector_envs
