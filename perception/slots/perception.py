"""Seeing with discovered objects: slots, their places, and whether they are there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from perception.base import Memory, Perception, Stored, Window
from perception.encoders.cnn import GlobalToken
from perception.encoding import encoded_width, positional_encoding
from perception.slots.model import SlotModel, SlotOutput

MOVED = 0.02
"""How far a centroid goes from one frame to the next that surely moves, in units of half a picture:
0.6 pixels of 64."""


class SlotPerception(Perception):
    """Slots of frame pairs (t - 1, t), each with its encoded centroid, area and presence.

    checkpoint: file of a slot model; train: whether it is trained on with the agent, by the agent's
    losses; learn: whether it is to go on with its own discovery; moving:
    whether an object can be new only while it moves; token: whether the features hold one of the
    whole frame beside the slots, by a random CNN drawn by `seed`. Frozen, the model runs once on
    each observation and replay stores what it saw; so it does where it learns on its own, and
    replay stores frames too; trained on with the agent, replay stores frames alone and `features`
    runs the model, and the CNN, with gradient. Slots keep the model's order, so a slot is the same
    object in every episode. Observations are (B, 2, H, W, 3) uint8 stacks.
    """

    history = 2

    def __init__(
        self,
        checkpoint: str | Path,
        train: bool = False,
        learn: bool = False,
        moving: bool = False,
        token: bool = False,
        seed: int = 0,
        frame_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.moving = moving
        self.model, self.card = SlotModel.load(Path(checkpoint), frame_size)
        self.model.requires_grad_(train)
        self.pretraining_frames = int(self.card.get("frames", 0))
        self.train_model = train
        config = self.model.config
        encoded = encoded_width(2, config.frequencies)
        width = config.width + encoded + 2
        self.token = GlobalToken(width, frame_size, seed).requires_grad_(train) if token else None
        self.feature_shape = (2, config.slots + token, width)
        self.object_count = config.slots
        self.novelty_dim = config.slots * (encoded + 1)
        self.learns = learn
        slots: Stored = {
            "slots": ((config.slots, config.width), torch.float16),
            "coordinates": ((config.slots, 4), torch.float32),
        }
        whole: Stored = {"token": ((width,), torch.float16)} if token else {}
        frame: Stored = {"frame": ((*frame_size, 3), torch.uint8)}
        self.stored = frame if train else slots | whole
        if learn:
            self.stored |= {f"fresh.{name}": spec for name, spec in slots.items()} | {
                "kept.frame": frame["frame"]
            }

    def observe(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, memory: Memory
    ) -> tuple[Window, Memory]:
        frame = obs[:, -1]
        if self.train_model:
            return {"frame": frame}, {}
        with torch.no_grad():
            sight = self.model(frame, memory.get("slots"), is_first)
            whole = {} if self.token is None else {"token": self.token(frame).half()}
        return self.reading(sight) | whole | ({"kept.frame": frame} if self.learns else {}), {
            "slots": sight.slots
        }

    @staticmethod
    def reading(sight: SlotOutput) -> Window:
        """What replay stores of a sight."""
        return {"slots": sight.slots.half(), "coordinates": sight.coordinates}

    def seen(self, window: Window) -> Window:
        """Slots (history - 1 + T, B, K, D), coordinates (history - 1 + T, B, K, 4) and the token of
        the whole, from frames where the model is trained on."""
        if "slots" in window:
            return window
        sights = self.model.encode_video(window["frame"])
        whole = {} if self.token is None else {"token": self.token(window["frame"])}
        return {
            "slots": torch.stack([s.slots for s in sights]),
            "coordinates": torch.stack([s.coordinates for s in sights]),
        } | whole

    def features(self, window: Window) -> Tensor:
        window = self.seen(window)
        slots, coordinates = window["slots"].float(), window["coordinates"]
        centroid, area, presence = coordinates[..., :2], coordinates[..., 2:3], coordinates[..., 3:]
        each = torch.cat([slots, self._encoded(centroid, presence), area, presence], dim=-1)
        if self.token is not None:
            each = torch.cat([each, window["token"].float().unsqueeze(-2)], dim=-2)
        return torch.stack([each[:-1], each[1:]], dim=2)

    @torch.no_grad()
    def objects(self, window: Window) -> tuple[Tensor, Tensor]:
        coordinates = self.seen(window)["coordinates"][1:]
        return coordinates[..., :3], coordinates[..., 3]

    @torch.no_grad()
    def novelty(self, window: Window) -> Tensor:
        """Encoded centroids and areas, zero where a slot sees nothing, so that only present objects
        can be new; with `moving`, zero too where what it sees is at rest, and in between while it
        moves by less than MOVED."""
        before, coordinates = self.seen(window)["coordinates"].unfold(0, 2, 1).unbind(-1)
        centroid, area, presence = coordinates[..., :2], coordinates[..., 2:3], coordinates[..., 3:]
        if self.moving:
            presence = presence * (
                (centroid - before[..., :2]).norm(dim=-1, keepdim=True) / MOVED
            ).clamp(max=1.0)
        return torch.cat([self._encoded(centroid, presence), area * presence], dim=-1).flatten(-2)

    def _encoded(self, centroid: Tensor, presence: Tensor) -> Tensor:
        return positional_encoding(centroid, self.model.config.frequencies) * presence
