"""Online learning improves a copy; the model that an agent sees with stays as it is."""

from __future__ import annotations

import numpy as np
import torch

from perception.discovery.online import SlotLearner
from perception.discovery.train import DiscoveryConfig, discover
from perception.slots.model import SlotConfig
from tests.perception.scene import SIZE, roll_scene


def test_the_loss_falls_on_the_copy_and_nothing_changes_in_the_model_itself() -> None:
    frames = roll_scene(episodes=4, steps=20, objects=2, seed=0).frames
    untrained = discover(
        [frames],
        SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE)),
        DiscoveryConfig(steps=0),
    )
    model = untrained.requires_grad_(False)
    slots = model.config.slots
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = SlotLearner(model, rate=1e-3)
    rng, losses = np.random.default_rng(0), []
    for _ in range(60):
        episode, time = rng.integers(4, size=8), rng.integers(20, size=8)
        batch = torch.from_numpy(frames[episode, time])
        losses.append(
            float(learner.learn(batch, torch.zeros(8, slots, 16), torch.ones(8, dtype=torch.bool)))
        )
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
