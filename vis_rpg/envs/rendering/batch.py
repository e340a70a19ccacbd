"""Frames that are not rendered by the environments themselves.

A ray-caster renders all environments in one call, or all of a worker's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from vis_rpg.envs.rendering.frames import FRAME, FrameStack
from vis_rpg.envs.tasks.base import frames_space
from vis_rpg.envs.tasks.mujoco_task import MujocoTask
from vis_rpg.errors import UserError, require


class Renderer(Protocol):
    """Takes all frames of one model in one call."""

    def render(self, positions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        """Render N environments.

        Args:
            positions: (N, P, 3), of `MujocoTask.geom_poses`.
            rotations: (N, P, 9).

        Returns:
            Frames (N, 64, 64, 3) uint8.
        """


class BatchRenderer:
    """The newest frames of `count` environments of any number of vector envs.

    Args:
        renderer: Renders all of them in one call.
        count: Environments.
        shapes: P, geoms and sites of one environment.
    """

    space = frames_space()

    def __init__(self, renderer: Renderer, count: int, shapes: int) -> None:
        self._renderer = renderer
        self._positions, self._rotations = (
            np.zeros((count, shapes, 3)),
            np.zeros((count, shapes, 9)),
        )
        self._frames = np.zeros((count, FRAME, FRAME, 3), np.uint8)
        self._given = 0
        self._stale = True

    def allocate(self, count: int) -> RenderSlice:
        """The part of the next `count` environments, a vector env's."""
        self._given += count
        return RenderSlice(self, slice(self._given - count, self._given), count)

    def put(self, rows: slice, positions: np.ndarray, rotations: np.ndarray) -> None:
        """Where the geoms and sites of some environments are now."""
        self._positions[rows], self._rotations[rows], self._stale = positions, rotations, True

    def frames(self, rows: slice) -> np.ndarray:
        """(n, 64, 64, 3) uint8; everything is pictured at once where anything has moved since."""
        if self._stale:
            self._frames, self._stale = (
                self._renderer.render(self._positions, self._rotations),
                False,
            )
        return self._frames[rows]


class RenderSlice:
    """A vector env's part of all frames, stacked as observations."""

    def __init__(self, renderer: BatchRenderer, rows: slice, count: int) -> None:
        self._renderer, self._rows = renderer, rows
        self._stacks = [FrameStack() for _ in range(count)]

    def put(self, positions: np.ndarray, rotations: np.ndarray) -> None:
        """Where the geoms and sites of its environments are now."""
        self._renderer.put(self._rows, positions, rotations)

    def push(self) -> np.ndarray:
        """Observations (n, 2, 64, 64, 3) after a step."""
        return np.stack(
            [
                stack.push(frame)
                for stack, frame in zip(
                    self._stacks, self._renderer.frames(self._rows), strict=True
                )
            ]
        )

    def start(self, indices: list[int]) -> dict[int, np.ndarray]:
        """First observations of episodes that have begun."""
        frames = self._renderer.frames(self._rows)
        return {index: self._stacks[index].start(frames[index]) for index in indices}

    def stack(self, index: int) -> np.ndarray:
        """The newest observation of an environment."""
        return self._stacks[index].frames.copy()

    def restore(self, stacks: Mapping[int, np.ndarray]) -> None:
        """Continue from saved observations, by the environment's index."""
        for index, frames in stacks.items():
            self._stacks[index].frames = np.array(frames, np.uint8)


def make_warp_renderer(env: gymnasium.Env[Any, Any], count: int) -> BatchRenderer:
    """Make the ray-caster for `count` environments like this MujocoTask.

    Raises:
        UserError: For what it does not draw.
    """
    from vis_rpg.envs.rendering.warp_renderer import WarpRenderer  # it needs an optional extra

    task = env.unwrapped
    assert isinstance(task, MujocoTask)
    require(
        task.anamorphic <= 1,
        f"render.backend=warp renders no anamorphic pictures, as task={task.task.name} "
        "needs: use render.backend=egl",
    )
    renderer = WarpRenderer(task.render_model(FRAME), task.view, FRAME, count, sky=task.sky)
    return BatchRenderer(renderer, count, len(task.geom_poses()[0]))


def choose_renderer(
    env: gymnasium.Env[Any, Any], count: int, wanted: str
) -> tuple[BatchRenderer | None, str]:
    """Choose who renders `count` environments like this one.

    Args:
        env: One of them.
        count: How many there are.
        wanted: render.backend; auto takes the ray-caster on a GPU.

    Returns:
        The batch renderer, None where each environment renders its own frames; and whose frames
        those are.

    Raises:
        UserError: For a backend that cannot render this task.
    """
    task = env.unwrapped
    if not isinstance(task, MujocoTask):
        require(
            wanted == "auto",
            f"render.backend={wanted}: this task is no MuJoCo model of ours and is drawn "
            "by its own library; use auto",
        )
        return None, "auto (the task draws its own)"
    installed = importlib.util.find_spec("mujoco_warp") is not None
    if wanted == "egl" or (wanted == "auto" and not (installed and torch.cuda.is_available())):
        return None, "egl"
    require(
        installed,
        "render.backend=warp needs mujoco-warp: pip install 'vis-rpg[warp]', or use "
        "render.backend=egl",
    )
    try:
        return make_warp_renderer(task, count), "warp"
    except UserError as error:  # a scene that it does not draw
        if wanted == "warp":
            raise
        return None, f"egl ({error})"
