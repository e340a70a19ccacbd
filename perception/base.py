"""The interface between perception and agents: encode observations, store them, read them again.

Shapes: T time steps, B batch, K slots, D slot width, M width of the RND's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ObsSequence = dict[str, Tensor]
"""Stored observations in time order, each (history - 1 + T, B, ...)."""

StoredObs = dict[str, Tensor]
"""Columns that replay stores of one observation, each (B, ...)."""


@dataclass(frozen=True)
class StorageSpec:
    """One column of a stored observation.

    Attributes:
        shape: Shape of one entry.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class RecurrentState:
    """State that encoding carries between steps, each tensor (B, ...); empty before the first.

    Attributes:
        hidden: The state of a recurrent perception, such as slots.
        previous: The stored observation of the step before, where features span two steps.
    """

    hidden: dict[str, Tensor] = field(default_factory=dict)
    previous: StoredObs = field(default_factory=dict)


class Perception(nn.Module, ABC):
    """Turns observations into features and the input of the RND.

    Replay lies between two steps: `to_storage` runs once on each observation collected and returns
    what replay stores; `features` and `rnd_input` read sequences of stored observations.
    Nothing after perception knows the kind of observation.

    Attributes:
        history: Stored observations that features of one step need: 1, 2, or more with a memory.
        feature_shape: Features of one step: (D,), or (2, K, D) slots of the last two frames.
        rnd_input_dim: M.
        rnd_objects: Objects that the RND's input lists, each in a part of equal width; 1 where
            it lists none.
        pretraining_frames: Frames that perception was trained on; they count as interactions.
        storage: Columns that replay stores of one observation.
    """

    history: int = 1
    feature_shape: tuple[int, ...]
    rnd_input_dim: int
    rnd_objects: int = 1
    pretraining_frames: int = 0
    storage: dict[str, StorageSpec]

    @property
    def unwrapped(self) -> Perception:
        """The perception of single observations, without a memory about it."""
        return self

    def acting(self) -> Perception:
        """Return what acting needs of it: all but what only the bonus reads."""
        return self

    @abstractmethod
    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        """Turn observations into what replay stores, without gradient.

        Args:
            obs: (B, ...) as the environment gives them.
            previous_action: (B, A), zero at an episode's first step.
            is_first: (B,) bool.
            hidden: Returned by the previous call, {} at the very first.

        Returns:
            The columns that replay stores, and the next hidden state.
        """

    @abstractmethod
    def features(self, obs_sequence: ObsSequence) -> Tensor:
        """Compute features for the encoder f, (T, B, *feature_shape), with gradient."""

    @abstractmethod
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Compute the only input of the exploration bonus, (T, B, M), without gradient."""

    @torch.no_grad()
    def encode(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, state: RecurrentState
    ) -> tuple[Tensor, StoredObs, RecurrentState]:
        """Encode observations while acting.

        Args:
            obs: (B, ...) as the environment gives them.
            previous_action: (B, A), zero at an episode's first step.
            is_first: (B,) bool.
            state: Returned by the previous call.

        Returns:
            Features (B, *feature_shape), the columns that replay stores, and the next state.
        """
        stored, hidden = self.to_storage(obs, previous_action, is_first, state.hidden)
        sequence, previous = {}, {}
        for name, now in stored.items():
            sequence[name] = now[None]
            if self.history > 1:
                before = state.previous.get(name, now)
                # An episode's first observation also stands for the one before it.
                first = is_first.view(-1, *[1] * (now.dim() - 1))
                sequence[name] = torch.stack([torch.where(first, now, before), now])
                previous[name] = now
        return self.features(sequence)[0], stored, RecurrentState(hidden, previous)
