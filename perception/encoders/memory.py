"""A memory of the episode so far, for observations that do not show the whole state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perception.base import ObsSequence, Perception, RecurrentState, StorageSpec, StoredObs
from perception.gru import GRUCell

BURN_IN = 8
"""Observations before a segment that the GRU reads again, with gradient."""


class MemoryPerception(Perception):
    """Features of another perception, and the state of a GRU that has read them since the start.

    m_t = GRU(x_t, m_{t-1}), features (x_t, m_t). Replay stores m_{t-1} with each observation as
    acting had it; learning begins BURN_IN observations before a segment with the stored state and
    reads on, so that most of what is stale is gone (Kapturowski et al. 2019, R2D2).

    Args:
        unwrapped: Encodes single observations.
        width: M, of the GRU's state.
    """

    def __init__(self, unwrapped: Perception, width: int) -> None:
        super().__init__()
        self.inner, self.width = unwrapped, width
        inputs = math.prod(unwrapped.feature_shape)
        self.cell = GRUCell(inputs, width)
        self.history = unwrapped.history + BURN_IN
        self.feature_shape = (inputs + width,)
        self.rnd_input_dim, self.rnd_objects = unwrapped.rnd_input_dim, unwrapped.rnd_objects
        self.pretraining_frames = unwrapped.pretraining_frames
        self.storage = unwrapped.storage | {"memory": StorageSpec((width,), torch.float32)}

    @property
    def unwrapped(self) -> Perception:
        """The perception of single observations."""
        return self.inner

    def acting(self) -> Perception:
        """Keep of the other perception what acting needs."""
        self.inner = self.inner.acting()
        return self

    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        """Store what the other perception does; `encode` adds the memory."""
        return self.inner.to_storage(obs, previous_action, is_first, hidden)

    @torch.no_grad()
    def encode(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, state: RecurrentState
    ) -> tuple[Tensor, StoredObs, RecurrentState]:
        """Encode observations while acting, and carry the memory on."""
        features, stored, after = self.inner.encode(obs, previous_action, is_first, state)
        x = features.flatten(1)
        before = state.hidden.get("memory", x.new_zeros(len(x), self.width))
        before = before * ~is_first[:, None]
        memory = self.cell(self.cell.input(x), before)
        hidden = after.hidden | {"memory": memory}
        return (
            torch.cat([x, memory], -1),
            stored | {"memory": before},
            RecurrentState(hidden, after.previous),
        )

    def features(self, obs_sequence: ObsSequence) -> Tensor:
        """Read on from the state stored BURN_IN observations earlier: (T, B, D + M)."""
        x = self.inner.features(obs_sequence).flatten(2)
        stored = obs_sequence["memory"][-len(x) :]
        begun = (stored != 0).any(-1, keepdim=True)  # nothing was read before an episode's first
        memory, states = stored[0], []
        for inputs, carried in zip(self.cell.input(x), begun, strict=True):
            memory = self.cell(inputs, memory * carried)
            states.append(memory)
        return torch.cat([x, torch.stack(states)], -1)[BURN_IN:]

    @torch.no_grad()
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Return what the RND reads of the other perception: (T, B, M)."""
        return self.inner.rnd_input({k: value[BURN_IN:] for k, value in obs_sequence.items()})
