"""From a task to the groups of environments that a run steps: in this process or in others, with
pictures from wherever they are best."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from vis_rpg.envs import IDS
from vis_rpg.envs.make import make_env, task_of
from vis_rpg.envs.rendering.batch import choose_pictures
from vis_rpg.envs.vector.subprocess import WorkerGroup
from vis_rpg.envs.vector.sync import EnvGroup, Group, cores


def make_groups(
    task: Mapping[str, Any], obs: str, count: int, seeds: Sequence[int], backend: str = "auto"
) -> list[Group]:
    """For each seed a group of `count` environments of a task (the arguments of `make_env`), which
    `step_together` steps side by side.

    In worker processes where the task declares `processes`: one a core, shared out among the
    groups, at least one for each. backend: render.backend, auto | egl | warp. Raises UserError for
    what cannot be made or rendered here.
    """
    own = task.get("family", task["name"]) in IDS
    example = make_env(task, "state" if own else obs)
    pictures, frames_by = None, None
    if obs == "pixels":
        pictures, frames_by = choose_pictures(example, count * len(seeds), backend)
        tqdm.write(f"frames: render.backend={frames_by}", file=sys.stderr)
    # On a CPU a worker ray-casts what it has just moved: a core that waits for its turn meanwhile
    # is slow to wake, and its caches are cold.
    cast = pictures is not None and task_of(example).processes and not torch.cuda.is_available()
    if cast:
        pictures = None
    kind = "state" if pictures else obs
    groups: list[Group] = []
    try:
        for seed in seeds:
            if task_of(example).processes:
                groups.append(
                    WorkerGroup(
                        example,
                        task,
                        kind,
                        count,
                        seed,
                        max(1, cores() // len(seeds)),
                        pictures,
                        cast,
                    )
                )
            else:
                groups.append(
                    EnvGroup(
                        lambda _: make_env(task, kind), count, seed, pictures, count * len(seeds)
                    )
                )
        for group in groups:
            group.frames_by = frames_by
            if isinstance(group, WorkerGroup):
                group.ready()
    except BaseException:
        for group in groups:
            group.close()
        raise
    example.close()
    return groups
