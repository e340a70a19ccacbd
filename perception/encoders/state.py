"""Perception from the environment's state, with the objects that the task names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from perception.base import ObsSequence, Perception, StorageSpec, StoredObs
from perception.encoding import (
    MAX_FREQUENCIES,
    REACH,
    Reading,
    encoded_width,
    motion,
    positional_encoding,
)


class StatePerception(Perception):
    """The scaled state and the encoded coordinates of the task's objects of interest.

    Features are (S + M,), or (S,) where the task names no objects; the RND reads the encoding
    alone, or the scaled state without objects. Where it reads how far objects are displaced since
    the episode began, features hold that too.

    Args:
        state_dim: S.
        object_coordinates: State (..., S) -> coordinates (..., N, C) of the objects, about [-1, 1];
            N may be 0.
        state_scale: Factor on the raw state.
        frequencies: Frequencies of the positional encoding.
        reading: How the RND reads objects.

    Raises:
        ValueError: Objects with places of their own are asked for where the task names none,
            or only numbers.
    """

    def __init__(
        self,
        state_dim: int,
        object_coordinates: Callable[[Tensor], Tensor],
        state_scale: float = 1.0,
        frequencies: int = MAX_FREQUENCIES,
        reading: Reading = "all",
    ) -> None:
        super().__init__()
        self.reading = reading
        self.history = 2 if reading in ("moving", "scene") else 1
        self.object_coordinates = object_coordinates
        self.state_scale = state_scale
        self.frequencies = frequencies
        count, coordinates = object_coordinates(torch.zeros(1, state_dim)).shape[-2:]
        encoded = count * encoded_width(coordinates, frequencies)
        numbers = count > 1 and coordinates == 1
        if reading != "all" and (not count or numbers):
            raise ValueError(
                "exploration.rnd_input=moving_slots, moving_scene and displaced_slots: this task's "
                "state names no objects with places of their own; use exploration.rnd_input=slots"
            )
        self.storage = {"state": StorageSpec((state_dim,), torch.float32)}
        self.feature_shape = (state_dim + encoded,)
        self.rnd_objects = count if encoded else 1
        self.rnd_input_dim = encoded or state_dim
        if reading == "displaced":
            self.storage["displacement"] = StorageSpec((count, coordinates), torch.float32)
            self.feature_shape = (state_dim + 2 * encoded,)

    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        """Store the state (B, S) as float32, and what objects are displaced by, where it counts."""
        stored = {"state": obs.float()}
        if self.reading != "displaced":
            return stored, {}
        at = self.object_coordinates(stored["state"])
        start = torch.where(is_first.view(-1, 1, 1), at, hidden.get("start", at))
        return stored | {"displacement": (at - start) / REACH}, {"start": start}

    def features(self, obs_sequence: ObsSequence) -> Tensor:
        """Return the scaled state and the encoded coordinates, (T, B, S + M)."""
        state = obs_sequence["state"][self.history - 1 :]
        parts = [state * self.state_scale, self._encoded(state)]
        if self.reading == "displaced":
            parts.append(self._displacement(obs_sequence))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Return the encoded coordinates (T, B, M), or the scaled state if there are none.

        Each object's are scaled by `motion`; where displacement counts it alone is encoded.
        """
        if self.reading == "displaced":
            return self._displacement(obs_sequence)
        state = obs_sequence["state"]
        if self.reading != "all":
            at = self.object_coordinates(state)
            encoded = positional_encoding(at[1:], self.frequencies)
            return (encoded * motion(self.reading, at[1:], at[:-1])).flatten(-2)
        encoded = self._encoded(state)
        return encoded if encoded.shape[-1] else state * self.state_scale

    def _displacement(self, obs_sequence: ObsSequence) -> Tensor:
        return positional_encoding(obs_sequence["displacement"], self.frequencies).flatten(-2)

    def _encoded(self, state: Tensor) -> Tensor:
        return positional_encoding(self.object_coordinates(state), self.frequencies).flatten(-2)
