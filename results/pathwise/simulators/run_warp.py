"""Warp alone: the scene as one hand-written kernel, differentiated by wp.Tape.

It computes what run_torch.py does. In an environment with `warp-lang` and `numpy`:
python results/pathwise/simulators/run_warp.py
"""

import time
from functools import partial
from typing import Any

import numpy as np
import scene
import tape
import warp as wp
from scene import BATCHES, BLOCK_MASS, SUBSTEPS

wp.config.quiet = True


def kernels(real: Any) -> tuple[Any, Any]:
    """Return the kernels of a step and of the loss, of numbers of a type.

    A state is pusher, its velocity, block, its velocity, angle, spin.
    """
    vec, state = wp.types.vector(2, real), wp.types.vector(10, real)
    dt, half, radius = real(scene.DT / SUBSTEPS), real(scene.HALF), real(scene.RADIUS)
    stiffness, damper, slope = real(scene.STIFFNESS), real(scene.DAMPER), real(scene.SLOPE)
    mu, soft, grip = real(scene.MU), real(0.0005), real(scene.MU * BLOCK_MASS * scene.GRAVITY / 4)
    force, damping, inertia = real(scene.FORCE), real(scene.DAMPING), real(scene.INERTIA)
    pusher_mass, block_mass = real(scene.PUSHER_MASS), real(BLOCK_MASS)
    target = vec(*scene.TARGET)
    zero, one, two, tiny = real(0.0), real(1.0), real(2.0), real(1e-6)

    @wp.func
    def turned(arm: vec):
        return vec(-arm[1], arm[0])

    @wp.func
    def friction(limit: real, slip: vec):
        return slip * (-limit / wp.sqrt(wp.dot(slip, slip) + (limit / slope) * (limit / slope)))

    @wp.kernel
    def step(before: wp.array(dtype=state), a: wp.array(dtype=vec), after: wp.array(dtype=state)):
        i = wp.tid()
        s, action = before[i], a[i]
        pusher, speed = vec(s[0], s[1]), vec(s[2], s[3])
        block, velocity = vec(s[4], s[5]), vec(s[6], s[7])
        angle, spin = s[8], s[9]
        for _ in range(wp.static(SUBSTEPS)):
            x, away = vec(wp.cos(angle), wp.sin(angle)), pusher - block
            y = turned(x)
            arm = x * wp.clamp(wp.dot(away, x), -half, half)
            arm += y * wp.clamp(wp.dot(away, y), -half, half)
            gap = away - arm
            distance = wp.sqrt(wp.dot(gap, gap) + tiny * tiny)
            normal, slip = gap / distance, speed - velocity - turned(arm) * spin
            closing = wp.dot(slip, normal)
            depth = (radius - distance) / soft
            softplus = wp.max(depth, zero) + wp.log(one + wp.exp(-wp.abs(depth)))
            sigmoid = (one + wp.tanh(depth / two)) / two
            push = stiffness * soft * softplus + damper * sigmoid * wp.max(-closing, zero)
            contact = normal * push + friction(mu * push + tiny, slip - normal * closing)
            total, torque = -contact, -wp.dot(turned(arm), contact)
            for k in range(4):
                corner = x * half * real(1 - 2 * (k // 2)) + y * half * real(1 - 2 * (k % 2))
                ground = friction(grip, velocity + turned(corner) * spin)
                total += ground
                torque += wp.dot(turned(corner), ground)
            speed = speed + (action * force + contact - speed * damping) * (dt / pusher_mass)
            velocity = velocity + total * (dt / block_mass)
            spin = spin + torque * (dt / inertia)
            pusher, block, angle = pusher + speed * dt, block + velocity * dt, angle + spin * dt
        after[i] = state(
            pusher[0], pusher[1], speed[0], speed[1],
            block[0], block[1], velocity[0], velocity[1], angle, spin,
        )  # fmt: skip

    @wp.kernel
    def loss(s: wp.array(dtype=state), found: wp.array(dtype=real)):
        i = wp.tid()
        gap = vec(s[i][4], s[i][5]) - target
        found[i] = wp.dot(gap, gap)

    return step, loss


class Simulator:
    """Rolls out from one state; arrays are made once for each number of environments."""

    def __init__(self, real: Any, gap: float, made: tuple[Any, Any]) -> None:
        self.types = real, wp.types.vector(2, real), wp.types.vector(10, real)
        (self.step, self.loss), self.held = made, {}
        self.start = [-scene.HALF - scene.RADIUS - gap, scene.OFFSET, *[0.0] * 8]

    def _run(self, record: bool, a: np.ndarray) -> tuple[Any, Any]:
        n, (real, vec, state) = len(a), self.types
        if (n, record) not in self.held:
            kind = {"requires_grad": record, "device": "cpu"}
            states = [wp.array(np.tile(self.start, (n, 1)), state, **kind)]
            states += [wp.zeros(n, state, **kind) for _ in range(scene.STEPS)]
            moves = [wp.zeros(n, vec, **kind) for _ in range(scene.STEPS)]
            self.held[n, record] = states, moves, wp.zeros(n, real, **kind)
        states, moves, found = self.held[n, record]
        for t, move in enumerate(moves):
            move.assign(a[:, t])
            wp.launch(self.step, n, [states[t], move], [states[t + 1]], device="cpu")
        wp.launch(self.loss, n, [states[-1]], [found], device="cpu")
        return moves, found

    def losses(self, a: np.ndarray) -> np.ndarray:
        """Return losses (N,) of actions (N, 50, 2)."""
        return self._run(False, a)[1].numpy().astype(float)

    def gradient(self, a: np.ndarray) -> np.ndarray:
        """Return their gradients (N, 50, 2)."""
        return tape.gradient(partial(self._run, True), a)


def main() -> None:
    """Measure in both precisions."""
    for real, fd_steps in ((wp.float64, scene.DOUBLE_STEPS), (wp.float32, scene.SINGLE_STEPS)):
        rows, made = scene.Rows("warp", real.__name__), kernels(real)
        for name, gap in scene.GAPS.items():
            simulator, began = Simulator(real, gap, made), time.perf_counter()
            simulator.gradient(scene.actions()[None])
            if name == "touching":
                rows.add("", "compile_s", time.perf_counter() - began)
            scene.measure(rows, name, simulator.losses, simulator.gradient, fd_steps, BATCHES)
        rows.write()


if __name__ == "__main__":
    main()
