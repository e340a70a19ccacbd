"""The hinge between seeing and acting: what every kind of observation is turned into.

Shapes: T time steps, B batch, N objects, C coordinates of one object, K slots, D slot width, M
novelty width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

Window = dict[str, Tensor]
"""Stored observations in time order, each (history - 1 + T, B, ...)."""

Stored = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> (shape, dtype) of what replay keeps of one observation. "kept.x" is kept for perception's
own learning and is in no window; "fresh.x" is room for a new reading of x, as long as it is not
used yet: x may then be rewritten."""

Memory = dict[str, Tensor]
"""What seeing carries from one step to the next, each (B, ...)."""


def sampled(stored: Mapping[str, T]) -> dict[str, T]:
    """Of what is stored, that which windows hold."""
    return {name: value for name, value in stored.items() if "." not in name}


@dataclass
class Percept:
    """One observation, seen. Nothing after perception knows which kind of observation
    it came from."""

    features: Tensor
    """What the encoder f reads: (..., D) vectors, or (..., 2, K, D) slots of the last two frames.
    """
    objects: Tensor
    """(..., N, C) coordinates of the objects of interest, about [-1, 1], in a stable order; N may
    be 0."""
    presence: Tensor
    """(..., N) in [0, 1]: whether the object is seen."""
    novelty: Tensor
    """(..., M): the only thing that the exploration bonus reads."""


class Perception(nn.Module, ABC):
    """Turns observations into percepts, in two steps so that replay can lie between them.

    `observe` runs once for every observation collected and returns what replay stores of it;
    `features`, `objects` and `novelty` read a window of what was stored. A frozen slot model does
    all its work in `observe`; a perception that is trained on stores frames and does its work, with
    gradient, in `features`.
    """

    history: int = 1
    """Stored observations that one percept needs: 1, or 2 where features span two frames."""
    feature_shape: tuple[int, ...]
    """Shape of the features of one percept: (D,) or (2, K, D)."""
    novelty_dim: int
    """M."""
    object_count: int = 0
    """N where the novelty is one part of M / N numbers for each object, in the order of `objects`;
    0 where it knows no objects."""
    pretraining_frames: int = 0
    """Frames that perception was trained on beforehand: they count as interactions."""
    stored: Stored

    @abstractmethod
    def observe(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, memory: Memory
    ) -> tuple[Window, Memory]:
        """What replay stores of an observation.

        obs: (B, ...) as the environment gives it; previous_action: (B, A), zero at an episode's
        first step; is_first: (B,) bool; memory: what the call before returned, {} at the very
        first. Returns {name: (B, ...)} and the next memory. No gradient.
        """

    def seen(self, window: Window) -> Window:
        """What `features`, `objects` and `novelty` all need, worked out once; they take either."""
        return window

    @abstractmethod
    def features(self, window: Window) -> Tensor:
        """(T, B, *feature_shape) from a window of history - 1 + T stored observations."""

    @abstractmethod
    def objects(self, window: Window) -> tuple[Tensor, Tensor]:
        """Coordinates (T, B, N, C) and presence (T, B, N)."""

    @abstractmethod
    def novelty(self, window: Window) -> Tensor:
        """(T, B, M), without gradient."""

    def perceive(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, memory: Memory
    ) -> tuple[Percept, Window, Memory]:
        """See one observation while acting: its percept (B, ...), what replay stores of it, and the
        next memory."""
        with torch.no_grad():
            seen, carried = self.observe(obs, previous_action, is_first, memory)
            window = {}
            for name, now in sampled(seen).items():
                past = [self._before(now, memory.get(f"previous.{name}"), is_first)] * (
                    self.history - 1
                )
                window[name] = torch.stack([*past, now])
                if self.history > 1:
                    carried[f"previous.{name}"] = now
            window = self.seen(window)
            coordinates, presence = self.objects(window)
            percept = Percept(
                self.features(window)[0], coordinates[0], presence[0], self.novelty(window)[0]
            )
        return percept, seen, carried

    @staticmethod
    def _before(now: Tensor, previous: Tensor | None, is_first: Tensor) -> Tensor:
        """The observation before: at an episode's first step, the first one again."""
        if previous is None:
            return now
        return torch.where(is_first.view(-1, *[1] * (now.dim() - 1)), now, previous)
