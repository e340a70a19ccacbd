"""Independent streams of random numbers for one run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vis_rpg import distributed


def stream(seed: int, use: int) -> int:
    """Return the seed of one random stream of a run in this process; no other shares it.

    Args:
        seed: The run's.
        use: Number of the stream.
    """
    rank = [distributed.rank()] if distributed.rank() else []
    return int(np.random.SeedSequence([seed, use, *rank]).generate_state(1)[0])


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue a random stream from its saved state.

    A state that another kind of device saved cannot be used: the generator then keeps its seed.
    """
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
