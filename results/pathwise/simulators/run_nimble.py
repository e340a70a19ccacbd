"""nimblephysics: a box on a floor, pushed by a ball; contacts by complementarity (an LCP).

In an environment with `nimblephysics` and `numpy<2` (with numpy 2 its first array ends the
process): python results/pathwise/simulators/run_nimble.py
"""

from __future__ import annotations

import nimblephysics as nimble
import numpy as np
import scene
import torch
from scene import BLOCK_MASS, DAMPING, FORCE, GRAVITY, HALF, INERTIA, PUSHER_MASS, RADIUS, SUBSTEPS
from torch import Tensor

SUNK = 1e-4
"""Depth of the box in the floor at the start: where both just touch, corners come and go (m)."""


def place(joint: nimble.dynamics.Joint, at: tuple[float, ...]) -> None:
    """Put a joint where it belongs in the world."""
    pose = nimble.math.Isometry3()
    pose.set_translation(at)
    joint.setTransformFromParentBodyNode(pose)


def skeleton(kind: str, shape: nimble.dynamics.Shape, mass: float) -> tuple:
    """Return a skeleton of one body, its joint and its body."""
    made = nimble.dynamics.Skeleton()
    joint, body = getattr(made, f"create{kind}AndBodyNodePair")()
    body.createShapeNode(shape).createCollisionAspect()
    body.setFrictionCoeff(scene.MU)
    body.setMass(mass)
    return made, joint, body


def world() -> nimble.simulation.World:
    """Return a world whose action is the force of the pusher, which moves in the plane."""
    made = nimble.simulation.World()
    made.setGravity([0, 0, -GRAVITY])
    made.setTimeStep(scene.DT / SUBSTEPS)
    floor, joint, _ = skeleton("WeldJoint", nimble.dynamics.BoxShape([6.0, 6.0, 1.0]), 1.0)
    place(joint, (0, 0, -0.5))
    block, _, body = skeleton("FreeJoint", nimble.dynamics.BoxShape([2 * HALF] * 3), BLOCK_MASS)
    body.setMomentOfInertia(INERTIA, INERTIA, INERTIA, 0, 0, 0)
    shape = nimble.dynamics.SphereShape(RADIUS)
    pusher, joint, _ = skeleton("TranslationalJoint2D", shape, PUSHER_MASS)
    joint.setXYPlane()
    place(joint, (0, 0, HALF))
    for axis in range(2):
        joint.setDampingCoefficient(axis, DAMPING)
    for each in (floor, block, pusher):
        made.addSkeleton(each)
    made.setActionSpace([6, 7])  # after the six numbers of the block
    return made


class Simulator:
    """Rolls out environments one after another: a world holds one."""

    def __init__(self, gap: float) -> None:
        self.world, self.start = world(), np.zeros(16)
        self.start[5] = HALF - SUNK
        self.start[6:8] = -HALF - RADIUS - gap, scene.OFFSET

    def loss(self, a: Tensor) -> Tensor:
        """Return the loss of actions (50, 2)."""
        s = torch.from_numpy(self.start)
        for force in FORCE * a:
            for _ in range(SUBSTEPS):
                s = nimble.timestep(self.world, s, force)
        return (s[3:5] - s.new_tensor(scene.TARGET)).square().sum()

    @torch.no_grad()
    def losses(self, a: np.ndarray) -> np.ndarray:
        """Return losses (N,) of actions (N, 50, 2)."""
        return np.array([self.loss(own).item() for own in torch.from_numpy(a)])

    def gradient(self, a: np.ndarray) -> np.ndarray:
        """Return their gradients (N, 50, 2)."""
        found = []
        for own in torch.from_numpy(a):
            at = own.clone().requires_grad_()
            found.append(torch.autograd.grad(self.loss(at), at)[0].numpy())
        return np.stack(found)


def main() -> None:
    """Measure."""
    torch.set_num_threads(1)
    rows = scene.Rows("nimblephysics", "float64")
    for name, gap in scene.GAPS.items():
        simulator = Simulator(gap)
        scene.measure(rows, name, simulator.losses, simulator.gradient, scene.DOUBLE_STEPS, (1,))
    rows.write()


if __name__ == "__main__":
    main()
