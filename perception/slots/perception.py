"""Perception from pixels with discovered objects: slots with positions and presence."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from perception.base import ObsSequence, Perception, StorageSpec, StoredObs
from perception.encoding import REACH, Reading, encoded_width, motion, positional_encoding
from perception.slots.model import SEEN, SlotModel


class SlotPerception(Perception):
    """Slots of frame pairs (t - 1, t), each with its encoded centroid, area and presence.

    The slot model is frozen: it runs once on each observation, and replay stores its slots. Slots
    keep the model's order, so a slot is the same object in every episode. An object that another
    one hides is where it was, until what is seen of it tells otherwise (`SlotModel.remember`).
    Observations are (B, 2, H, W, 3) uint8 stacks.

    Args:
        checkpoint: File of a slot model.
        reading: How the RND reads objects.
        frequencies: Of the positional encoding of centroids, at most the slot model's; None: those.
        frame_size: (H, W).

    Raises:
        ValueError: The model cannot be loaded, or its objects at rest are not still enough for so
            many frequencies.
    """

    history = 2

    def __init__(
        self,
        checkpoint: str | Path,
        reading: Reading = "all",
        frequencies: int | None = None,
        frame_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.reading = reading
        self.model, self.card = SlotModel.load(Path(checkpoint), frame_size)
        self.model.requires_grad_(False)
        config = self.model.config
        self.pretraining_frames = int(self.card.get("frames", 0))
        self.frequencies = config.frequencies if frequencies is None else frequencies
        if self.frequencies > config.frequencies:
            raise ValueError(
                f"perception.frequencies={frequencies}: objects at rest are still enough for "
                f"{config.frequencies} in {checkpoint}"
            )
        encoded = encoded_width(2, self.frequencies)
        self.feature_shape = (2, config.slots, config.width + encoded + 2)
        self.rnd_objects = config.slots
        self.rnd_input_dim = config.slots * (encoded + 1)
        self.storage = {
            "slots": StorageSpec((config.slots, config.width), torch.float16),
            "coordinates": StorageSpec((config.slots, 4), torch.float32),
        }
        if reading == "displaced":
            self.feature_shape = (2, config.slots, config.width + 2 * encoded + 2)
            self.rnd_input_dim = config.slots * encoded
            self.storage["displacement"] = StorageSpec((config.slots, 2), torch.float32)

    @torch.no_grad()
    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        """Store the slots of the newest frame and their coordinates; carry slots and masks."""
        output = self.model(obs[:, -1], hidden.get("slots"), is_first, skip=not obs.is_cuda)
        coordinates, carried = self.model.remember(output, hidden, is_first)
        stored = {"slots": output.slots.half(), "coordinates": coordinates}
        if self.reading == "displaced":
            centroid, there = coordinates[..., :2], coordinates[..., 3:] > SEEN
            known = hidden.get("known", torch.zeros_like(there)) & ~is_first.view(-1, 1, 1)
            start = torch.where(known, hidden.get("start", centroid), centroid)
            carried |= {"start": start, "known": known | there}
            stored["displacement"] = (centroid - start) / REACH
        return stored, {"slots": output.slots, **carried}

    def features(self, obs_sequence: ObsSequence) -> Tensor:
        """Pair the slots of the frames at t - 1 and t: (T, B, 2, K, D)."""
        slots, coordinates = obs_sequence["slots"].float(), obs_sequence["coordinates"]
        centroid, area, presence = coordinates.split([2, 1, 1], dim=-1)
        each = torch.cat([slots, self._encoded(centroid, presence), area, presence], dim=-1)
        if self.reading == "displaced":
            displaced = self._encoded(obs_sequence["displacement"], presence)
            each = torch.cat([each, displaced], dim=-1)
        return torch.stack([each[:-1], each[1:]], dim=2)

    @torch.no_grad()
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Compute encoded centroids and areas, (T, B, M), zero where a slot is empty.

        So only present objects can be new. They are also scaled by `motion`. Where displacement
        counts it alone is encoded: (T, B, K * encoded).
        """
        before, coordinates = obs_sequence["coordinates"].unfold(0, 2, 1).unbind(-1)
        centroid, area, presence = coordinates.split([2, 1, 1], dim=-1)
        presence = presence * motion(self.reading, centroid, before[..., :2], presence)
        if self.reading == "displaced":
            return self._encoded(obs_sequence["displacement"][1:], presence).flatten(-2)
        return torch.cat([self._encoded(centroid, presence), area * presence], dim=-1).flatten(-2)

    def _encoded(self, centroid: Tensor, presence: Tensor) -> Tensor:
        return positional_encoding(centroid, self.frequencies) * presence
