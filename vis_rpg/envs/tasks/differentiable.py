"""Tasks whose dynamics and rewards are known and differentiable, batched in torch.

Each has two modes of unequal worth: the one that gradients lead to from the start is the worse. The
dynamics serve `vis_rpg.pathwise`, which differentiates through them; the environments step one
state of the same dynamics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vis_rpg.envs.tasks.base import BaseTask
from vis_rpg.envs.tasks.task import Axes, Coverage, Task, draw_box

FLOOR, GOOD, FAIR, OBSTACLE = (40, 40, 46), (40, 150, 90), (60, 90, 160), (150, 150, 160)
BALL, BLOCK = (240, 80, 60), (240, 190, 60)


def bump(at: Tensor, centre: tuple[float, ...], width: float) -> Tensor:
    """Return exp(-d² / 2 width²) of the distance d of places (..., C) to a centre."""
    distance = at - at.new_tensor(centre)
    return torch.exp(-0.5 * (distance**2).sum(-1) / width**2)


class Dynamics:
    """A task as functions of torch: states (..., S), whose last number is the share of time gone.

    Attributes:
        task: The declaration of its environment; an episode has `task.episode_length` steps.
        state_dim: S.
        action_dim: A.
        places: Which numbers of the state say where the thing is that the reward is about.
        reach: About the largest absolute value of each number of the state where it is of use; the
            first is half the side of pictures.
    """

    task: Task
    state_dim: int
    action_dim: int
    places: tuple[int, ...] = (0, 1)
    reach: tuple[float, ...]

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw first states (*shape, S)."""
        raise NotImplementedError

    def step(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states (..., S) and rewards (...) of actions (..., A) in [-1, 1]."""
        raise NotImplementedError

    def success(self, s: Tensor) -> Tensor:
        """Whether states (..., S) lie in the better mode, (...)."""
        raise NotImplementedError

    def objects(self, s: np.ndarray) -> np.ndarray:
        """Return the places (N, 2) that are drawn and counted of a state (S,)."""
        raise NotImplementedError

    def picture(self, s: np.ndarray, canvas: Canvas) -> None:
        """Draw a state (S,)."""
        raise NotImplementedError

    def _tick(self, s: Tensor) -> Tensor:
        """Return the share of time gone after the next step, (..., 1)."""
        return s[..., -1:] + 1 / self.task.episode_length


class Canvas:
    """A picture of the square [-reach, reach]², y up.

    Args:
        size: Its side in pixels.
        reach: Half of its side in world units.
    """

    def __init__(self, size: int, reach: float) -> None:
        self.pixels = np.full((size, size, 3), FLOOR, np.uint8)
        self.scale = size / (2 * reach)
        self.reach = reach

    def _at(self, x: float, y: float) -> tuple[int, int]:
        """Pixels with 4 fractional bits; cv2 puts whole coordinates on their centres."""
        column, row = (x + self.reach) * self.scale - 0.5, (self.reach - y) * self.scale - 0.5
        return round(16 * column), round(16 * row)

    def disc(self, x: float, y: float, radius: float, colour: Any) -> None:
        """Draw a disc."""
        size = round(16 * radius * self.scale)
        cv2.circle(self.pixels, self._at(x, y), size, colour, -1, cv2.LINE_AA, 4)

    def box(self, x: float, y: float, half: float, colour: Any) -> None:
        """Draw a square."""
        corners = self._at(x - half, y + half), self._at(x + half, y - half)
        cv2.rectangle(self.pixels, *corners, colour, -1, cv2.LINE_AA, 4)

    def curve(self, points: np.ndarray, colour: Any) -> None:
        """Draw a line through points (N, 2)."""
        at = np.array([self._at(*point) for point in points], np.int32)
        cv2.polylines(self.pixels, [at], False, colour, 1, cv2.LINE_AA, 4)


class Peaks(Dynamics):
    """A point in the plane between a wide peak of height 0.5 and a narrow one of height 1."""

    STRIDE, WIDE, NARROW = 0.2, (1.2, 0.0), (-1.2, 0.9)
    WIDE_WIDTH, NARROW_WIDTH = 0.8, 0.3
    state_dim, action_dim, reach = 3, 2, (2.0, 2.0, 1.0)

    @staticmethod
    def draw(axes: Axes) -> None:
        """Draw both peaks and the start."""
        from matplotlib.patches import Circle  # only drawings need matplotlib

        for centre, width, colour in (
            (Peaks.WIDE, Peaks.WIDE_WIDTH, "tab:blue"),
            (Peaks.NARROW, Peaks.NARROW_WIDTH, "tab:green"),
        ):
            axes.add_patch(Circle(centre, width, fill=False, edgecolor=colour))
        axes.plot(0, 0, marker="x", color="black")
        axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")

    def __init__(self) -> None:
        self.task = Task(
            "peaks",
            ("point",),
            object_coordinates=lambda state: state[..., None, :2] / 2,
            state_scale=0.5,
            episode_length=20,
            coverage=Coverage(("point",), (-2.0, -2.0), (2.0, 2.0), (10, 10)),
            draw=self.draw,
        )

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw places near the origin."""
        at = 0.02 * torch.randn(*shape, 2, generator=generator)
        return torch.cat([at, torch.zeros(*shape, 1)], -1)

    def step(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Move by 0.2 x action within [-2, 2]²; the reward is the height there."""
        at = (s[..., :2] + self.STRIDE * a).clamp(-2, 2)
        worth = 0.5 * bump(at, self.WIDE, self.WIDE_WIDTH)
        worth = worth + bump(at, self.NARROW, self.NARROW_WIDTH)
        return torch.cat([at, self._tick(s)], -1), worth

    def success(self, s: Tensor) -> Tensor:
        """Whether the point is at the narrow peak."""
        return bump(s[..., :2], self.NARROW, self.NARROW_WIDTH) > math.exp(-0.5)

    def objects(self, s: np.ndarray) -> np.ndarray:
        """Return the point."""
        return s[None, :2]

    def picture(self, s: np.ndarray, canvas: Canvas) -> None:
        """Draw the peaks as discs of one width, and the point."""
        canvas.disc(*self.WIDE, self.WIDE_WIDTH, FAIR)
        canvas.disc(*self.NARROW, self.NARROW_WIDTH, GOOD)
        canvas.disc(s[0], s[1], 0.12, BALL)


class DoubleWell(Dynamics):
    """A mass in a potential of two wells, pushed too weakly to be brought over the hill at once.

    It starts in the well that is worth 0.5; the other is worth 1, and to reach it the mass must be
    swung.
    """

    HEIGHT, FORCE, DAMPING, DT, EFFORT = 0.8, 0.75, 0.05, 0.125, 0.05
    state_dim, action_dim, reach = 3, 1, (2.0, 2.0, 1.0)

    @staticmethod
    def draw(axes: Axes) -> None:
        """Draw where in the plane of place and velocity the wells are, and the start."""
        for x, colour in ((1.0, "tab:blue"), (-1.0, "tab:green")):
            axes.plot(x, 0, marker="o", markersize=12, fillstyle="none", color=colour)
        axes.plot(1, 0, marker="x", color="black")
        axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")

    def __init__(self) -> None:
        self.task = Task(
            "double_well",
            ("mass",),
            object_coordinates=lambda state: state[..., None, :2] / 2,
            state_scale=0.5,
            velocities=((1, 2),),
            episode_length=80,
            coverage=Coverage(("mass",), (-2.0, -2.0), (2.0, 2.0), (10, 10)),
            draw=self.draw,
        )

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw states near rest at the bottom of the right well."""
        near = 0.02 * torch.randn(*shape, 2, generator=generator) + torch.tensor([1.0, 0.0])
        return torch.cat([near, torch.zeros(*shape, 1)], -1)

    def step(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate v' = 0.75 a - 4 h x (x² - 1) - 0.05 v for 0.125 s (semi-implicit Euler)."""
        x, v = s[..., :1], s[..., 1:2]
        slope = 4 * self.HEIGHT * x * (x**2 - 1)
        v = v + self.DT * (self.FORCE * a - slope - self.DAMPING * v)
        x = x + self.DT * v
        worth = 0.5 * bump(x, (1.0,), 0.5) + bump(x, (-1.0,), 0.25)
        reward = worth - self.EFFORT * (a**2).sum(-1)
        return torch.cat([x, v, self._tick(s)], -1), reward

    def success(self, s: Tensor) -> Tensor:
        """Whether the mass is in the left well."""
        return s[..., 0] < -0.5

    def objects(self, s: np.ndarray) -> np.ndarray:
        """Return place and velocity."""
        return s[None, :2]

    def picture(self, s: np.ndarray, canvas: Canvas) -> None:
        """Draw the potential as a curve, and the mass on it."""
        x = np.linspace(-1.9, 1.9, 100)
        height = self.HEIGHT * (x**2 - 1) ** 2
        canvas.curve(np.stack([x, height - 1], 1)[height < 2.8], OBSTACLE)
        canvas.disc(-1.0, -1.25, 0.15, GOOD)
        canvas.disc(1.0, -1.25, 0.15, FAIR)
        canvas.disc(s[0], self.HEIGHT * (s[0] ** 2 - 1) ** 2 - 0.85, 0.15, BALL)


class PushAround(Dynamics):
    """A pusher brings a round block past an obstacle into one of two slots.

    The right slot is worth 0.5, the left one, which is narrower, 1. The obstacle stands a little to
    the left, so that a block that is pushed straight ahead slides off it to the right.

    All are discs. Pusher and block stop when nothing pushes them, and a contact pushes them apart
    with a force that grows smoothly with its depth.
    """

    OBSTACLE, OBSTACLE_RADIUS, PUSHER_RADIUS, BLOCK_RADIUS = (-0.03, 0.2), 0.15, 0.08, 0.12
    LEFT, RIGHT, LEFT_WIDTH, RIGHT_WIDTH = (-0.6, 0.6), (0.6, 0.6), 0.25, 0.5
    SPEED, DT, SUBSTEPS, STIFFNESS, SOFTNESS = 1.6, 0.1, 5, 30.0, 0.008
    """Of the pusher where nothing is in its way (m/s); of a step (s); the speed that a contact
    gives either side per depth (1/s); the depth (m) over which it sets in."""
    SHAPING = 0.1
    """Weight of the distance between pusher and block."""
    state_dim, action_dim, places, reach = 5, 2, (2, 3), (1.0, 1.0, 1.0, 1.0, 1.0)

    @staticmethod
    def draw(axes: Axes) -> None:
        """Draw obstacle, slots, and where pusher and block start."""
        from matplotlib.patches import Circle  # only drawings need matplotlib

        axes.add_patch(Circle(PushAround.OBSTACLE, PushAround.OBSTACLE_RADIUS, color="0.6"))
        for (x, y), colour in ((PushAround.LEFT, "tab:green"), (PushAround.RIGHT, "tab:blue")):
            draw_box(axes, (x - 0.15, y - 0.15), (x + 0.15, y + 0.15), colour)
        axes.add_patch(Circle((0, -0.2), PushAround.BLOCK_RADIUS, color="tab:orange"))
        axes.plot(0, -0.45, marker="x", color="black")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")

    def __init__(self) -> None:
        self.task = Task(
            "push_around",
            ("pusher", "block"),
            object_coordinates=lambda state: state[..., :4].unflatten(-1, (2, 2)),
            episode_length=40,
            coverage=Coverage(("block",), (-1.0, -1.0), (1.0, 1.0), (20, 20)),
            draw=self.draw,
        )

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw states near the block's start, the pusher behind it."""
        at = torch.tensor([0.0, -0.45, 0.0, -0.2]).expand(*shape, 4)
        noise = 0.01 * torch.randn(*shape, 4, generator=generator)
        return torch.cat([at + noise, torch.zeros(*shape, 1)], -1)

    def step(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Move the pusher for 0.1 s; the reward is the worth of where the block is."""
        pusher, block, _ = s.split([2, 2, 1], -1)
        obstacle, dt = s.new_tensor(self.OBSTACLE).expand_as(block), self.DT / self.SUBSTEPS
        wanted = self.SPEED * a
        radii = [self.PUSHER_RADIUS + self.BLOCK_RADIUS, self.OBSTACLE_RADIUS + self.BLOCK_RADIUS]
        radii += [self.PUSHER_RADIUS + self.OBSTACLE_RADIUS]
        touching = s.new_tensor(radii)[:, None]
        for _ in range(self.SUBSTEPS):
            # Block and pusher, block and obstacle, pusher and obstacle.
            one, other = torch.stack([block, block, pusher], -2), [pusher, obstacle, obstacle]
            away = one - torch.stack(other, -2)
            distance = (away**2).sum(-1, keepdim=True).add(1e-12).sqrt()
            depth = (touching - distance) / self.SOFTNESS
            apart = self.STIFFNESS * self.SOFTNESS * F.softplus(depth) * away / distance
            pushed, held, stopped = apart.unbind(-2)
            pusher = (pusher + dt * (wanted - pushed + stopped)).clamp(-1, 1)
            block = (block + dt * (pushed + held)).clamp(-0.9, 0.9)
        worth = bump(block, self.LEFT, self.LEFT_WIDTH)
        worth = worth + 0.5 * bump(block, self.RIGHT, self.RIGHT_WIDTH)
        gap = ((pusher - block) ** 2).sum(-1).add(1e-6).sqrt()
        after = torch.cat([pusher, block, self._tick(s)], -1)
        return after, worth - self.SHAPING * gap

    def success(self, s: Tensor) -> Tensor:
        """Whether the block is in the left slot, closer than 0.15."""
        return (s[..., 2:4] - s.new_tensor(self.LEFT)).norm(dim=-1) < 0.15

    def objects(self, s: np.ndarray) -> np.ndarray:
        """Return pusher and block."""
        return s[:4].reshape(2, 2)

    def picture(self, s: np.ndarray, canvas: Canvas) -> None:
        """Draw the slots, the obstacle, the block and the pusher."""
        canvas.box(*self.LEFT, 0.15, GOOD)
        canvas.box(*self.RIGHT, 0.15, FAIR)
        canvas.disc(*self.OBSTACLE, self.OBSTACLE_RADIUS, OBSTACLE)
        canvas.disc(s[2], s[3], self.BLOCK_RADIUS, BLOCK)
        canvas.disc(s[0], s[1], self.PUSHER_RADIUS, BALL)


DYNAMICS: dict[str, Callable[[], Dynamics]] = {
    "peaks": Peaks,
    "double_well": DoubleWell,
    "push_around": PushAround,
}
"""By the word in `task=...`."""


class DifferentiableTask(BaseTask):
    """One state of some dynamics as an environment.

    Args:
        dynamics: The task.
        obs: state | pixels.
        render_mode: Gymnasium's.

    Raises:
        UserError: For an unknown `obs`.
    """

    def __init__(self, dynamics: Dynamics, obs: str, render_mode: str | None) -> None:
        self.dynamics = dynamics
        limits = np.full(dynamics.state_dim, np.inf)
        super().__init__(dynamics.task, dynamics.action_dim, limits, obs, render_mode)
        self._now = torch.zeros(dynamics.state_dim, dtype=torch.float64)

    def _start(self) -> None:
        seed = int(self.np_random.integers(2**63))
        generator = torch.Generator().manual_seed(seed)
        self._now = self.dynamics.start((), generator).double()

    @torch.no_grad()
    def _move(self, action: np.ndarray) -> float:
        self._now, reward = self.dynamics.step(self._now, torch.from_numpy(action))
        return float(reward)

    def _success(self) -> bool:
        return bool(self.dynamics.success(self._now))

    def _state(self) -> np.ndarray:
        return self._now.numpy()

    def _objects(self) -> np.ndarray:
        return self.dynamics.objects(self._now.numpy()).copy()

    def _frame(self, size: int) -> np.ndarray:
        canvas = Canvas(size, self.dynamics.reach[0])
        self.dynamics.picture(self._now.numpy(), canvas)
        return canvas.pixels

    def _save(self) -> dict[str, Any]:
        return {"now": self._now.numpy().copy()}

    def _load(self, saved: dict[str, Any]) -> None:
        self._now = torch.from_numpy(np.array(saved["now"], np.float64))


class PeaksTask(DifferentiableTask):
    """`Peaks` as an environment; state (3,): x, y, and the share of time gone."""

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(Peaks(), obs, render_mode)


class DoubleWellTask(DifferentiableTask):
    """`DoubleWell` as an environment; state (3,): place, velocity, and the share of time gone."""

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(DoubleWell(), obs, render_mode)


class PushAroundTask(DifferentiableTask):
    """`PushAround` as an environment; state (5,): pusher, block, and the share of time gone."""

    def __init__(self, obs: str = "state", render_mode: str | None = None) -> None:
        super().__init__(PushAround(), obs, render_mode)
