"""Agents that learn through known dynamics: seeds side by side, and that they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vis_rpg.config import PathwiseAgentConfig
from vis_rpg.envs.tasks.differentiable import Peaks
from vis_rpg.pathwise.agent import PathwiseLearner, outcome


def settings(**changes: Any) -> PathwiseAgentConfig:
    own: dict[str, Any] = {
        "categories": 3,
        "pathwise": True,
        "batch_size": 16,
        "hidden_dim": 8,
        "std_scale": 1.0,
        "lr": 3e-3,
        "reward_weight": 1.0,
        "consistency": 0.1,
        "entropy_a": 0.01,
        "entropy_z": 0.1,
        "decay": 0.9,
    }
    return PathwiseAgentConfig(**own | changes)


@pytest.mark.parametrize("changes", [{}, {"categories": 0}, {"pathwise": False}])
def test_seeds_side_by_side_equal_each_alone(changes: dict[str, Any]) -> None:
    together = PathwiseLearner(Peaks(), settings(**changes), [3, 5])
    alone = PathwiseLearner(Peaks(), settings(**changes), [5])
    for learner in (together, alone):
        for _ in range(3):
            learner.update()
    assert together.weight == pytest.approx(0.9**3)
    for name, own in alone.state.items():
        torch.testing.assert_close(together.state[name][1], own[0], rtol=1e-3, atol=1e-5)
    name = "pi.net.layers.2.bias"
    assert not torch.equal(together.state[name][0], alone.state[name][0])


def test_each_network_follows_its_own_loss_alone() -> None:
    learner = PathwiseLearner(Peaks(), settings(), [0])
    before = {name: value.detach().clone() for name, value in learner.state.items()}
    found = learner.gradients()
    assert {part: len(own) for part, own in found.items()} == {"pi": 6, "pi_z": 6, "p_phi": 6}
    for _ in range(2):  # the last layer of π(z|s₁) begins with zeros
        learner.update()
    moved = {name for name, value in learner.state.items() if not torch.equal(value, before[name])}
    assert moved == set(before)


@pytest.mark.parametrize("pathwise", [True, False])
def test_it_learns(pathwise: bool) -> None:
    changes = {"categories": 0, "batch_size": 64, "lr": 1e-2, "entropy_a": 0.0}
    learner = PathwiseLearner(Peaks(), settings(pathwise=pathwise, **changes), [0, 1])
    before, _, states = learner.apply(200, outcome)
    assert states.shape == (2, 21, 200, 3)
    for _ in range(40):
        learner.update()
    after, success, _ = learner.apply(200, outcome)
    assert (after.mean(1) > before.mean(1) + 2).all()
    assert success.shape == (2, 200)


def test_the_pathwise_gradient_is_steadier_than_the_score_function() -> None:
    spread = {
        kind: PathwiseLearner(Peaks(), settings(pathwise=kind, entropy_a=0.0, consistency=0.0), [0])
        for kind in (True, False)
    }
    found = {kind: float(learner.noise_to_signal(16)) for kind, learner in spread.items()}
    assert 0 < found[True] < 0.5 * found[False]
