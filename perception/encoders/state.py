"""Seeing when the environment gives its state: the objects are those that the task names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from perception.base import Memory, Perception, Window
from perception.encoding import MAX_FREQUENCIES, encoded_width, positional_encoding


class StatePerception(Perception):
    """The scaled state beside the encoded coordinates of the task's objects of interest.

    state_dim: S; object_coordinates: state (..., S) -> coordinates (..., N, C) of the objects,
    about [-1, 1], N may be 0; state_scale: factor on the raw state. Features are (S + M,), or (S,)
    where the task names no objects; the novelty is the encoding alone, or the scaled state where
    there is none.
    """

    def __init__(
        self,
        state_dim: int,
        object_coordinates: Callable[[Tensor], Tensor],
        state_scale: float = 1.0,
        frequencies: int = MAX_FREQUENCIES,
    ) -> None:
        super().__init__()
        self.object_coordinates = object_coordinates
        self.state_scale = state_scale
        self.frequencies = frequencies
        count, coordinates = object_coordinates(torch.zeros(1, state_dim)).shape[-2:]
        encoded = count * encoded_width(coordinates, frequencies)
        self.stored = {"state": ((state_dim,), torch.float32)}
        self.feature_shape = (state_dim + encoded,)
        self.object_count = count
        self.novelty_dim = encoded or state_dim

    def observe(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, memory: Memory
    ) -> tuple[Window, Memory]:
        return {"state": obs.float()}, {}

    def features(self, window: Window) -> Tensor:
        state = window["state"]
        return torch.cat([state * self.state_scale, self._encoded(state)], dim=-1)

    def objects(self, window: Window) -> tuple[Tensor, Tensor]:
        coordinates = self.object_coordinates(window["state"])
        return coordinates, coordinates.new_ones(coordinates.shape[:-1])

    @torch.no_grad()
    def novelty(self, window: Window) -> Tensor:
        encoded = self._encoded(window["state"])
        return encoded if encoded.shape[-1] else window["state"] * self.state_scale

    def _encoded(self, state: Tensor) -> Tensor:
        return positional_encoding(self.object_coordinates(state), self.frequencies).flatten(-2)
