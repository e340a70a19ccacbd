"""The gradient by wp.Tape, for the two simulators on Warp."""

from collections.abc import Callable
from typing import Any

import numpy as np
import warp as wp


def gradient(rollout: Callable[[np.ndarray], tuple[list[Any], Any]], a: np.ndarray) -> np.ndarray:
    """Return gradients (N, 50, 2) of losses in actions.

    Args:
        rollout: From actions to the arrays of each step's actions and that of losses.
        a: Actions (N, 50, 2).
    """
    with wp.Tape() as tape:
        moves, found = rollout(a)
    tape.backward(grads={found: wp.ones_like(found)})
    gradient = np.stack([move.grad.numpy() for move in moves], 1).astype(float)
    tape.zero()
    return gradient
