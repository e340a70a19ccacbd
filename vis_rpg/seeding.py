"""Independent streams of random numbers for one run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, use: int) -> int:
    """The seed of one of a run's streams of random numbers, which none of another run's shares."""
    return int(np.random.SeedSequence([seed, use]).generate_state(1)[0])


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue a stream of random numbers; one that another kind of device drew cannot go on here,
    and keeps its seed instead."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
