"""Newton on Warp: a box on a plane, pushed by a ball.

The ball is a rigid body (`sphere`) or a particle (`particle`): Newton holds the normal and the
points of a contact of rigid bodies constant in the gradient, those of a particle not. In an
environment with `newton`: python results/pathwise/simulators/run_newton.py
"""

import time
from functools import cache, partial
from typing import Any

import newton
import numpy as np
import scene
import tape
import warp as wp
from scene import DAMPING, FORCE, GRAVITY, HALF, PUSHER_MASS, RADIUS, SUBSTEPS

WEIGHT = PUSHER_MASS * GRAVITY
"""The pusher hovers: it is held up by this force."""
TARGET = wp.vec2(*scene.TARGET)
PAIRS = ("sphere", "SemiImplicit"), ("particle", "SemiImplicit"), ("sphere", "Featherstone")


@wp.kernel
def push_body(a: wp.array[wp.vec2], v: wp.array[wp.spatial_vector], f: wp.array[wp.spatial_vector]):
    """Add the forces on balls that are bodies, the second of each world."""
    i = wp.tid()
    up = wp.vec3(FORCE * a[i][0], FORCE * a[i][1], WEIGHT) - DAMPING * wp.spatial_top(v[2 * i + 1])
    f[2 * i + 1] = wp.spatial_vector(up, wp.vec3(0.0))


@wp.kernel
def push_particle(a: wp.array[wp.vec2], v: wp.array[wp.vec3], f: wp.array[wp.vec3]):
    """Add the forces on particles."""
    i = wp.tid()
    f[i] = wp.vec3(FORCE * a[i][0], FORCE * a[i][1], WEIGHT) - DAMPING * v[i]


@wp.kernel
def loss(q: wp.array[wp.transform], stride: int, found: wp.array[float]):
    """Put the squared distance of each world's block into `found`."""
    i = wp.tid()
    at = wp.transform_get_translation(q[stride * i])
    gap = wp.vec2(at[0], at[1]) - TARGET
    found[i] = wp.dot(gap, gap)


class Worlds:
    """As many scenes side by side as there are environments."""

    def __init__(self, gap: float, pusher: str, solver: str, count: int) -> None:
        one, self.rigid, self.count = newton.ModelBuilder(), pusher == "sphere", count
        shape = newton.ModelBuilder.ShapeConfig(
            ke=scene.STIFFNESS, kd=scene.DAMPER, kf=scene.SLOPE, mu=scene.MU, gap=0.02
        )
        shape.density = scene.BLOCK_MASS / (2 * HALF) ** 3
        height = HALF - scene.BLOCK_MASS * GRAVITY / (4 * scene.STIFFNESS)
        block = one.add_body(xform=wp.transform((0.0, 0.0, height), wp.quat_identity()))
        one.add_shape_box(block, hx=HALF, hy=HALF, hz=HALF, cfg=shape)
        at = (-HALF - RADIUS - gap, scene.OFFSET, height)
        if self.rigid:  # which does not roll, as in the other simulators
            pose, inertia = wp.transform(at, wp.quat_identity()), wp.mat33(np.eye(3) * 1e3)
            ball = one.add_body(xform=pose, mass=PUSHER_MASS, inertia=inertia, lock_inertia=True)
            one.add_shape_sphere(ball, radius=RADIUS, cfg=shape)
        else:
            one.add_particle(at, (0.0, 0.0, 0.0), PUSHER_MASS, RADIUS)
        builder = newton.ModelBuilder()
        for _ in range(count):
            builder.add_world(one)
        builder.add_ground_plane(cfg=shape)
        self.model = model = builder.finalize(device="cpu", requires_grad=True)
        model.set_gravity((0.0, 0.0, -GRAVITY))
        model.soft_contact_ke, model.soft_contact_kd = scene.STIFFNESS, scene.DAMPER
        model.soft_contact_kf, model.soft_contact_mu = scene.SLOPE, scene.MU
        model.particle_grid = None  # Newton's advice for gradients
        self.solver = getattr(newton.solvers, f"Solver{solver}")(model, angular_damping=0.0)
        self.pipeline = newton.CollisionPipeline(model, broad_phase="explicit", requires_grad=True)
        total, kind = scene.STEPS * SUBSTEPS, {"device": "cpu", "requires_grad": True}
        self.states = [model.state() for _ in range(total + 1)]
        self.contacts = [self.pipeline.contacts() for _ in range(total)]
        self.moves = [wp.zeros(count, wp.vec2, **kind) for _ in range(scene.STEPS)]
        self.found = wp.zeros(count, float, **kind)

    def rollout(self, a: np.ndarray) -> tuple[list[Any], Any]:
        """Return the arrays of actions (N, 50, 2) and of losses."""
        for t, move in enumerate(self.moves):
            move.assign(a[:, t])
        for t, contacts in enumerate(self.contacts):
            now, after = self.states[t : t + 2]
            now.clear_forces()
            self.pipeline.collide(now, contacts)
            kernel, v, f = push_particle, now.particle_qd, now.particle_f
            if self.rigid:
                kernel, v, f = push_body, now.body_qd, now.body_f
            wp.launch(kernel, self.count, [self.moves[t // SUBSTEPS], v], [f], device="cpu")
            self.solver.step(now, after, None, contacts, scene.DT / SUBSTEPS)
        inputs = [self.states[-1].body_q, 1 + self.rigid]
        wp.launch(loss, self.count, inputs, [self.found], device="cpu")
        return self.moves, self.found


def main() -> None:
    """Measure with both kinds of ball, and with another solver."""
    for pusher, solver in PAIRS:
        rows = scene.Rows(f"newton, {pusher}, {solver}", "float32")
        for name, gap in scene.GAPS.items():
            worlds, began = cache(partial(Worlds, gap, pusher, solver)), time.perf_counter()

            def losses(a: np.ndarray, worlds: Any = worlds) -> np.ndarray:
                return worlds(len(a)).rollout(a)[1].numpy().astype(float)

            def gradient(a: np.ndarray, worlds: Any = worlds) -> np.ndarray:
                return tape.gradient(worlds(len(a)).rollout, a)

            gradient(scene.actions()[None])
            if name == "touching":
                rows.add("", "compile_s", time.perf_counter() - began)
            scene.measure(rows, name, losses, gradient, scene.SINGLE_STEPS)
        rows.write()


if __name__ == "__main__":
    main()
