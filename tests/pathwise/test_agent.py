"""Agents that learn through known dynamics: seeds side by side, and that they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vis_rpg.config import PathwiseAgentConfig
from vis_rpg.envs.tasks.differentiable import Peaks, PushAround
from vis_rpg.pathwise.agent import PathwiseAgent, PathwiseLearner, losses, outcome


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
        "posterior": "state_action",
    }
    return PathwiseAgentConfig(**own | changes)


@pytest.mark.parametrize(
    "changes", [{}, {"categories": 0}, {"pathwise": False}, {"posterior": "places"}]
)
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
    with torch.no_grad():  # as after some training: nothing is zero by symmetry
        learner.state["pi_z.net.layers.2.weight"].normal_(0, 0.5)
    own = PathwiseAgent(Peaks(), learner.config)
    own.load_state_dict({name: value[0] for name, value in learner.state.items()})
    found = learner.gradients([torch.Generator().manual_seed(1)])
    draws = own.draw(learner.config.batch_size, torch.Generator().manual_seed(1))
    alone = losses(own, 1.0, draws)
    for part, gradients in found.items():
        wanted = torch.autograd.grad(
            alone[part], list(getattr(own, part).parameters()), retain_graph=True
        )
        for g, expected in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(g[0], expected, rtol=1e-3, atol=1e-6)


def test_pi_z_prefers_what_returns_more_and_p_phi_learns_to_tell_z() -> None:
    """Two z: one goes to the wide peak, the other away from both; nothing else learns."""
    torch.manual_seed(0)
    agent = PathwiseAgent(Peaks(), settings(categories=2, entropy_z=0.0, consistency=0.0))
    with torch.no_grad():
        last = agent.pi.net.layers[2]
        last.weight.zero_()
        last.bias[2:] = -4.0
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*agent.pi_z.parameters(), *agent.p_phi.parameters()], lr=0.03)
    told, to_the_right = [], agent.pi.distribution

    def by_z(s: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = to_the_right(s, z)
        return mean + 2 * torch.stack([z[..., 0] - z[..., 1], 0 * z[..., 0]], -1), std

    agent.pi.distribution = by_z  # type: ignore[method-assign]
    for _ in range(60):
        found = losses(agent, 1.0, agent.draw(64, generator))
        told.append(float(found["p_phi"]))
        optimizer.zero_grad()
        (found["pi_z"] + found["p_phi"]).backward()
        optimizer.step()
    outputs = agent.pi_z.outputs(torch.zeros(1, 3))
    assert outputs is not None and float(outputs.softmax(-1)[0, 0]) > 0.9
    assert told[-1] < 0.3 < told[0]


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


def test_p_phi_of_places_sees_nothing_else() -> None:
    agent = PathwiseAgent(PushAround(), settings(posterior="places"))
    z = torch.eye(3)[[0, 1, 2, 0]]
    s, a = torch.randn(4, 5), torch.randn(4, 2)
    other = torch.randn(4, 5)
    other[:, 2:4] = s[:, 2:4]
    told = agent.p_phi.log_prob(z, s, a)
    assert torch.equal(told, agent.p_phi.log_prob(z, other, -a))
    assert not torch.equal(told, agent.p_phi.log_prob(z, s + 1, a))


def test_looking_changes_nothing() -> None:
    one, other = (PathwiseLearner(Peaks(), settings(), [0]) for _ in range(2))
    for learner in (one, other):
        for _ in range(2):
            learner.update()
            if learner is one:
                learner.apply(10, outcome)
                learner.noise_to_signal(2)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_the_pathwise_gradient_is_steadier_than_the_score_function() -> None:
    spread = {
        kind: PathwiseLearner(Peaks(), settings(pathwise=kind, entropy_a=0.0, consistency=0.0), [0])
        for kind in (True, False)
    }
    found = {kind: float(learner.noise_to_signal(16)) for kind, learner in spread.items()}
    assert 0 < found[True] < 0.5 * found[False]
