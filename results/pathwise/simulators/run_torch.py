"""Batched torch: the scene in fifty lines, and `push_around` as vis_rpg has it.

From the repository: PYTHONPATH=. OMP_NUM_THREADS=1 python results/pathwise/simulators/run_torch.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scene
import torch
from scene import DAMPER, DAMPING, DT, HALF, INERTIA, MU, RADIUS, SLOPE, STIFFNESS, SUBSTEPS
from torch import Tensor
from torch.nn import functional as F

from vis_rpg.envs.tasks.differentiable import PushAround

SOFT = 0.0005
"""Depth over which a contact sets in (m)."""
GRIP = MU * scene.BLOCK_MASS * scene.GRAVITY / 4
"""The friction at each corner of the block (N)."""
CORNERS = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * HALF


def turned(arm: Tensor) -> Tensor:
    """Return arms (..., 2) turned by 90 degrees."""
    return torch.stack([-arm[..., 1], arm[..., 0]], -1)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the scalar product of (..., 2), (..., 1)."""
    return (one * other).sum(-1, keepdim=True)


def step(s: Tensor, a: Tensor) -> Tensor:
    """Return the next states (B, 10): pusher, its velocity, block, its velocity, angle, spin."""
    pusher, speed, block, velocity, angle, spin = s.split([2, 2, 2, 2, 1, 1], -1)
    dt, corners = DT / SUBSTEPS, CORNERS.to(s)
    for _ in range(SUBSTEPS):
        x = torch.cat([angle.cos(), angle.sin()], -1)
        axes = torch.stack([x, turned(x)], -2)  # rows, (B, 2, 2)
        away = (axes @ (pusher - block).unsqueeze(-1)).squeeze(-1)  # in the block's frame
        nearest = away.clamp(-HALF, HALF)
        distance = (dot(away - nearest, away - nearest) + 1e-12).sqrt()
        local = torch.stack([(away - nearest) / distance, nearest], -2)
        normal, arm = (local @ axes).unbind(-2)
        slip = speed - velocity - spin * turned(arm)
        closing = dot(slip, normal)
        slip = slip - closing * normal
        depth = (RADIUS - distance) / SOFT
        push = STIFFNESS * SOFT * F.softplus(depth) + DAMPER * depth.sigmoid() * F.relu(-closing)
        limit = MU * push + 1e-6  # float32 has no smaller square than that of 1e-22
        force = push * normal - limit * slip / (dot(slip, slip) + (limit / SLOPE) ** 2).sqrt()
        arms = corners @ axes
        sliding = velocity.unsqueeze(-2) + spin.unsqueeze(-2) * turned(arms)
        ground = -GRIP * sliding / (dot(sliding, sliding) + (GRIP / SLOPE) ** 2).sqrt()
        torque = dot(turned(arms), ground).sum(-2) - dot(turned(arm), force)
        speed = speed + dt / scene.PUSHER_MASS * (scene.FORCE * a + force - DAMPING * speed)
        velocity = velocity + dt / scene.BLOCK_MASS * (ground.sum(-2) - force)
        spin = spin + dt / INERTIA * torque
        pusher, block, angle = pusher + dt * speed, block + dt * velocity, angle + dt * spin
    return torch.cat([pusher, speed, block, velocity, angle, spin], -1)


def simulator(
    start: Tensor, move: Callable[[Tensor, Tensor], Tensor], block: slice, target: tuple[float, ...]
) -> tuple[scene.Losses, scene.Gradient]:
    """Return losses and gradients of a rollout from one state (S,)."""

    def losses(a: Tensor) -> Tensor:
        s = start.expand(len(a), -1)
        for own in a.unbind(1):
            s = move(s, own)
        return (s[:, block] - s.new_tensor(target)).square().sum(-1)

    @torch.no_grad()
    def forward(a: np.ndarray) -> np.ndarray:
        return losses(torch.from_numpy(a).to(start)).double().numpy()

    def gradient(a: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(a).to(start).requires_grad_()
        return torch.autograd.grad(losses(at).sum(), at)[0].double().numpy()

    return forward, gradient


def main() -> None:
    """Measure in both precisions."""
    torch.set_num_threads(1)
    task = PushAround()
    for dtype, fd_steps in (
        (torch.float64, scene.DOUBLE_STEPS),
        (torch.float32, scene.SINGLE_STEPS),
    ):
        simulators = {}
        for name, gap in scene.GAPS.items():
            start = torch.tensor([-HALF - RADIUS - gap, scene.OFFSET, *[0] * 8], dtype=dtype)
            simulators[name] = simulator(start, step, slice(4, 6), scene.TARGET)
        start = torch.tensor([-0.45, 0.0, -0.2, 0.0, 0.0], dtype=dtype)[[1, 0, 3, 2, 4]]
        simulators["push_around"] = simulator(
            # The pusher goes up, at a speed that brings the block past the obstacle.
            start,
            lambda s, a: task.step(s, 0.4 * a.flip(-1))[0],
            slice(2, 4),
            task.RIGHT,
        )
        rows = scene.Rows("torch", str(dtype).removeprefix("torch."))
        for name, (forward, gradient) in simulators.items():
            scene.measure(rows, name, forward, gradient, fd_steps, scene.BATCHES)
        rows.write()


if __name__ == "__main__":
    main()
