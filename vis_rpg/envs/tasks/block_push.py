"""BlockPush: push two blocks (or one) to their goals.

The reward is 1 only while all of them are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any, Literal

import numpy as np
from torch import Tensor

from vis_rpg.envs.tasks.mujoco_task import MujocoTask
from vis_rpg.envs.tasks.task import Axes, Coverage, Milestone, Task, draw_box
from vis_rpg.errors import require
from vis_rpg.resources import ASSETS

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

LIMIT = 1.8
"""Centres move within +-1.8; the walls' inner faces are at +-2."""
SPEED = 4.0
"""Speed of the pusher along an axis at action 1, in units per second."""
STEP = 0.08
"""Seconds of one control step: 8 substeps of 0.01 s."""
NEAR = 0.2
"""A block is at its goal if its centre is strictly closer than this."""
NAMES = ("pusher", "green", "blue")
STARTS = np.array([[0.0, -1.4], [-1.2, 0.0], [0.0, 0.0]])
GOALS = np.array([[-1.4, 1.4], [0.0, 1.4]])
COLOURS = ("tab:red", "tab:green", "tab:blue")
SIDES, UNLIKE = (0.3, 0.6), 0.35
"""Of blocks with other looks: what their sides are drawn from, and how far their colours are at
least from any other in the RGB cube."""


Looks = int | Literal["twins", "striped"]
NAMED_LOOKS = ("twins", "striped")


@cache
def load_model(blocks: int, looks: Looks = 0) -> mujoco.MjModel:
    """The compiled MJCF; with one block, the blue block and its goal are left out.

    Stepping leaves it as it is: environments share it.

    looks: 0 for green and blue blocks, or the seed of colours and sizes of other blocks, or twins
    for two green ones, or striped for a pattern of dark stripes on both.
    """
    spec = mujoco.MjSpec.from_file(str(ASSETS / "block_push.xml"))
    for name in NAMES[1 + blocks :]:
        spec.delete(spec.body(name))
        spec.delete(spec.body(f"{name}_goal"))
    if looks == "twins":
        for name in NAMES[1 : 1 + blocks]:
            spec.geom(name).rgba = spec.geom(NAMES[1]).rgba
    elif looks == "striped":
        _add_stripes(spec, NAMES[1 : 1 + blocks])
    elif looks:
        rng, taken = np.random.default_rng(looks), [geom.rgba[:3].copy() for geom in spec.geoms]
        for name in NAMES[1 : 1 + blocks]:
            geom, colour = spec.geom(name), rng.uniform(0, 1, 3)
            while min(np.linalg.norm(colour - other) for other in taken) < UNLIKE:
                colour = rng.uniform(0, 1, 3)
            taken.append(colour)
            geom.rgba[:3], geom.size[:2] = colour, rng.uniform(*SIDES) / 2
    return spec.compile()


def _add_stripes(spec: mujoco.MjSpec, names: Sequence[str]) -> None:
    """Give geoms stripes across x, a quarter of a side wide, each other one half as bright."""
    stripes = np.full((4, 4, 3), 255, np.uint8)
    stripes[:, 1::2] //= 2
    texture = spec.add_texture(
        name="stripes", type=mujoco.mjtTexture.mjTEXTURE_2D, width=4, height=4, nchannel=3
    )
    texture.data = stripes.tobytes()
    material = spec.add_material(name="striped", texuniform=False)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "stripes"
    for name in names:
        spec.geom(name).material = "striped"


def object_coordinates(state: Tensor) -> Tensor:
    """State (..., 2 N) -> coordinates (..., N, 2) of pusher and blocks, scaled to [-1, 1]."""
    return state.unflatten(-1, (-1, 2)) / LIMIT


def make_task(blocks: int) -> Task:
    """The declaration for one block (the left, green one) or two."""

    def draw(axes: Axes) -> None:
        for (x, y), colour in zip(STARTS[: 1 + blocks], COLOURS, strict=False):
            axes.plot(x, y, marker="x", color=colour)
        for goal, colour in zip(GOALS[:blocks], COLOURS[1:], strict=False):
            draw_box(axes, goal - 0.2, goal + 0.2, colour)
        draw_box(axes, (-2.0, -2.0), (2.0, 2.0), "black")
        axes.set(xlim=(-2.05, 2.05), ylim=(-2.05, 2.05), aspect="equal")

    def at_goal(index: int) -> Milestone:
        return lambda at: np.linalg.norm(at[..., 1 + index, :2] - GOALS[index], axis=-1) < NEAR

    coverage = Coverage(NAMES[1 : 1 + blocks], (-LIMIT, -LIMIT), (LIMIT, LIMIT), (20, 20))
    names = NAMES[: 1 + blocks]
    return Task(
        "block_push",
        names,
        object_coordinates,
        state_scale=0.5,
        episode_length=60,
        sparse=True,
        coverage=coverage,
        draw=draw,
        milestones={f"{NAMES[1 + index]}_at_goal": at_goal(index) for index in range(blocks)},
    )


class BlockPush(MujocoTask):
    """The pusher is driven at 4 x action for 0.08 s; blocks stop when they are not pushed.

    They hold it back as in the authors' simulator: it pushes one block at 0.62 of its speed, two in
    a row at 0.44 (there 0.43).

    State: x and y of pusher, green block (, blue block). Every step starts from rest, so positions
    are the whole state. looks: 0, or the seed of other colours and sizes of the blocks, to test
    perception on what it was not trained on, or twins or striped.

    Raises:
        UserError: For an unknown `obs`, for `blocks` other than 1 or 2, for other `looks`, and
            where pictures cannot be rendered.
    """

    def __init__(
        self, obs: str = "state", blocks: int = 2, render_mode: str | None = None, looks: Looks = 0
    ) -> None:
        require(
            blocks in (1, 2),
            f"blocks={blocks} for vis_rpg/BlockPush-v0: it is played with 1 or 2 blocks",
        )
        require(
            looks in NAMED_LOOKS or (isinstance(looks, int) and looks >= 0),
            f"looks={looks} for vis_rpg/BlockPush-v0: 0 for green and blue, the seed of other "
            f"looks, from 1, or {' or '.join(NAMED_LOOKS)}",
        )
        self._blocks = blocks
        self.twins = tuple(range(1, 1 + blocks)) if looks == "twins" and blocks > 1 else ()
        """The objects of interest that look alike."""
        task, model = make_task(blocks), load_model(blocks, looks)
        parts = {name: (name,) for name in task.object_names}
        limits = np.full(2 + 2 * blocks, LIMIT)
        super().__init__(
            task,
            model,
            mujoco.MjData(model),
            f"block_push {blocks} {looks}",
            "top",
            parts,
            limits,
            obs,
            render_mode,
        )
        self.substeps = round(STEP / model.opt.timestep)
        self._side = 2 * max(model.geom(name).size[0] for name in task.object_names)

    def _start(self) -> None:
        self._place(STARTS[: 1 + self._blocks].ravel())

    def _randomize(self) -> None:
        while True:
            places = self.np_random.uniform(-LIMIT, LIMIT, (1 + self._blocks, 2))
            apart = [np.abs(one - other).max() for one, other in combinations(places, 2)]
            if min(apart) > self._side:
                return self._place(places.ravel())

    def _place(self, positions: np.ndarray) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = positions
        self._expose()

    def _expose(self) -> None:
        """Bring all that a picture shows in line with the positions."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _push(self, action: np.ndarray) -> None:
        data = self.data
        data.ctrl[:] = SPEED * action
        data.qvel[:] = 0.0
        data.qvel[:2] = SPEED * action

    def _settle(self) -> float:
        np.clip(self.data.qpos, -LIMIT, LIMIT, out=self.data.qpos)  # walls are slightly soft
        self._expose()
        return 0.0

    def _success(self) -> bool:
        distance = np.linalg.norm(self._objects()[1:] - GOALS[: self._blocks], axis=1)
        return bool((distance < NEAR - 1e-9).all())  # strictly: rounding may not let exactly 0.2 in

    def _state(self) -> np.ndarray:
        return self.data.qpos

    def _objects(self) -> np.ndarray:
        return self.data.qpos.reshape(-1, 2).copy()

    def _save(self) -> dict[str, Any]:
        return {"positions": self.data.qpos.copy()}

    def _load(self, saved: dict[str, Any]) -> None:
        self._place(np.array(saved["positions"], np.float64))
