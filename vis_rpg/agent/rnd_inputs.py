"""Novelties to compare with perception's own: what the bonus reads is then another thing than what
the agent sees.

Each is worked out once, when an observation is collected, and stored beside what perception stores,
so that runs that compare them differ in the bonus alone and cost the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from perception.base import Window
from perception.encoders.cnn import STACK, FrozenCnn
from perception.encoding import MAX_FREQUENCIES, encoded_width, positional_encoding
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError

NOVELTY = "novelty"
"""Its name in replay."""


class Novelty(nn.Module, ABC):
    """What a random network distillation reads in place of `Perception.novelty`."""

    novelty_dim: int
    """M."""
    object_count: int = 0
    """Parts of M / object_count numbers each, one an object; 0 where it knows no objects."""
    name: str = NOVELTY
    """In replay; where perception stores something of this name, that is read."""
    dtype: torch.dtype = torch.float32
    """In replay."""
    needs_positions: bool = True
    """Otherwise it is stored of an episode's first observation too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one, in replay."""
        return (self.novelty_dim,)

    @abstractmethod
    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        """(B, *shape) of observations (B, ...) as the environment gives them, and of true positions
        (B, N, 2 or 3)."""

    def read(self, window: Window, history: int) -> Tensor:
        """What the RND reads in a window of history - 1 + T stored observations: (T, B, M)."""
        return window[self.name][history - 1 :].float()


class GlobalNovelty(Novelty):
    """The embedding of the two newest frames (B, 2, H, W, 3) by a frozen, random CNN: what
    `CnnPerception` calls novelty."""

    dtype = torch.float16

    def __init__(self, frame_size: tuple[int, int] = (64, 64), seed: int = 0) -> None:
        super().__init__()
        self.frozen = FrozenCnn(seed)
        self.novelty_dim = self.frozen.width(frame_size)

    @torch.no_grad()
    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        return self.frozen.embed(obs.transpose(0, 1))[0]


class FrameNovelty(Novelty):
    """The frames themselves, for a random network distillation whose networks are convolutional:
    the paper's, from pixels."""

    name = "frame"
    dtype = torch.uint8
    needs_positions = False

    def __init__(self, frame_size: tuple[int, int] = (64, 64)) -> None:
        super().__init__()
        self.frame_size = frame_size

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.frame_size, 3)

    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        return obs[:, -1]

    def read(self, window: Window, history: int) -> Tensor:
        """(1 + T, B, H, W, 3): of each pair the second is what is new."""
        return window[self.name][history - STACK :]


class TrueNovelty(Novelty):
    """The encoded true positions of the task's objects, which no agent that sees pixels can know:
    for comparison only.

    They are read in the plane of the task's coverage and in its scale: [-1, 1] is the grid. Raises
    UserError where the task has none.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        if task.coverage is None:
            raise UserError(
                f"exploration.rnd_input=oracle_positions: task={task.name} declares no plane to "
                "read true positions in; use slots"
            )
        self.plane = list(task.plane)
        self.object_count = len(task.object_names)
        self.novelty_dim = self.object_count * encoded_width(2, MAX_FREQUENCIES)
        for name, corner in (("low", task.coverage.low), ("high", task.coverage.high)):
            self.register_buffer(name, torch.tensor(corner, dtype=torch.float32), persistent=False)
        self.low: Tensor
        self.high: Tensor

    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        places = positions[..., self.plane].to(self.low)
        return positional_encoding(
            2 * (places - self.low) / (self.high - self.low) - 1, MAX_FREQUENCIES
        ).flatten(-2)


def make_novelty(kind: str, task: Task, seed: int) -> Novelty | None:
    """Of `exploration.rnd_input`: frame_embedding | frames | oracle_positions, or None for slots
    and moving_slots, which is what perception itself calls novel."""
    if kind == "frames":
        return FrameNovelty()
    if kind == "frame_embedding":
        return GlobalNovelty(seed=seed)
    return TrueNovelty(task) if kind == "oracle_positions" else None
