"""A Franka Panda's forward kinematics, from its published Denavit-Hartenberg parameters, and a
controller that moves its gripper."""

from __future__ import annotations

import numpy as np

# a, d, alpha of joints 1 to 7 and of the flange (Craig's convention), from the maker's
# documentation; metres, radians.
DH = [
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
    (0.0, 0.107, 0.0),
]
LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
TIP = 0.1034
"""From the flange to between the fingertips of the maker's hand, which is turned by -45 degrees."""


def frames(angles: np.ndarray) -> np.ndarray:
    """The frames (9, 4, 4) of joints 1 to 7, the flange and the fingertips, in the arm's base, at
    joint angles (7,)."""
    frame, found = np.eye(4), []
    for (a, d, alpha), theta in zip(DH, [*angles, 0.0], strict=True):
        ct, st, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
        frame = frame @ np.array(
            [
                [ct, -st, 0, a],
                [st * ca, ct * ca, -sa, -d * sa],
                [st * sa, ct * sa, ca, d * ca],
                [0, 0, 0, 1],
            ]
        )
        found.append(frame)
    half = np.sqrt(0.5)
    found.append(
        frame @ np.array([[half, half, 0, 0], [-half, half, 0, 0], [0, 0, 1, TIP], [0, 0, 0, 1]])
    )
    return np.array(found)


def jacobian(angles: np.ndarray) -> np.ndarray:
    """(6, 7) velocity and angular velocity of the fingertips, in the arm's base, per joint
    velocity."""
    found = frames(angles)
    axes, places = found[:7, :3, 2], found[:7, :3, 3]
    return np.concatenate([np.cross(axes, found[-1, :3, 3] - places), axes], axis=1).T


def towards(angles: np.ndarray, goal: np.ndarray, yaw: float, step: float) -> np.ndarray:
    """Joint velocities (7,) that bring the fingertips to `goal` (3,), in the arm's base, the hand
    level and turned to `yaw`, within `step` seconds or as fast as 1.2 m/s: damped least squares;
    what is left over draws the joints to the middle of their ranges."""
    tip = frames(angles)[-1]
    linear = (goal - tip[:3, 3]) / step
    linear *= min(1.0, 1.2 / max(float(np.linalg.norm(linear)), 1e-9))
    forward, down = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    turn = np.stack([down, np.cross(forward, down), forward], axis=1) @ tip[:3, :3].T
    angular = np.array(
        [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
    ) / (4 * step)
    angular *= min(1.0, 3.0 / max(float(np.linalg.norm(angular)), 1e-9))
    weights = np.array([1.0, 1.0, 1.0, 0.15, 0.15, 0.15])
    weighted = jacobian(angles) * weights[:, None]
    inverse = weighted.T @ np.linalg.inv(weighted @ weighted.T + 0.03**2 * np.eye(6))
    rest = -0.5 * (angles - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2) ** 2
    velocity = (
        inverse @ (np.concatenate([linear, angular]) * weights)
        + (np.eye(7) - inverse @ weighted) @ rest
    )
    return np.clip(velocity, (LOW + 0.02 - angles) / step, (HIGH - 0.02 - angles) / step)
