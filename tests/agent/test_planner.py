"""Planning: the value of a sequence is worked out term by term, and rounds climb to the best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vis_rpg
from tests.runs import trained
from tests.small import agent
from vis_rpg.agent import planner
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.planner import plan, policy_sequences, sequence_values
from vis_rpg.agent.rpg import Agent

TINY = ("agent.planner.samples=64", "agent.planner.policy_samples=4", "agent.planner.elites=8")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("words", [(), ("agent.critic=v",), ("agent=tdmpc",)], ids=str)
def test_the_value_of_a_sequence_is_its_rewards_and_the_critics_after_it(
    words: tuple[str, ...],
) -> None:
    of = agent(*words, terminates=True).double()
    model, H, B = of.model, of.config.horizon, 5
    dims = (of.model.state_dim, of.space.dim, 2)
    s, z, noise = (torch.randn(B, dim, generator=generator(dim)).double() for dim in dims)
    a = torch.randn(H, B, 2, generator=generator()).double().tanh()
    h, at, value, alive = model.initial(s), s, torch.zeros(B), torch.ones(B)
    for k in range(H):
        h, at, embedding = model.step(h, a[k])
        value = value + of.config.gamma**k * alive * model.reward(at, embedding)
        alive = alive * torch.sigmoid(model.continues(at)).squeeze(-1)
    last, _ = of.pi(at, z, noise)
    inputs = (at, last, z) if of.config.critic == "q" else (at, z)
    value = value + of.config.gamma**H * alive * model.Q(torch.cat(inputs, -1)).min(0).values
    torch.testing.assert_close(sequence_values(of, s, z, a, noise), value)


def test_the_policy_proposes_what_it_would_do_in_the_model() -> None:
    of = agent("agent=tdmpc")
    s, noise = torch.randn(3, of.model.state_dim), torch.randn(of.config.horizon, 3, 2)
    a = policy_sequences(of, s, torch.zeros(3, 0), noise)
    states, _ = of.model.unroll(s, a)
    for k, at in enumerate([s, *states[:-1]]):
        torch.testing.assert_close(a[k], of.pi(at, torch.zeros(3, 0), noise[k])[0])


@pytest.mark.parametrize("kind", ["tdmpc", "cem"])
@pytest.mark.parametrize("explore", [False, True])
def test_rounds_climb_to_the_sequence_of_the_greatest_value(
    kind: str, explore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = agent(f"agent={kind}")
    H = of.config.horizon
    best = torch.tensor([[0.6, -0.3], [-0.8, 0.1]])  # of two environments

    def value(of: Agent, s: Tensor, z: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        return -10 * ((a.unflatten(1, (2, -1)) - best[:, None]) ** 2).sum((0, 3)).flatten()

    monkeypatch.setattr(planner, "sequence_values", value)
    s, z, mean = torch.zeros(2, of.model.state_dim), torch.zeros(2, 0), torch.zeros(H, 2, 2)
    action, following = plan(of, s, z, mean, generator(), explore)
    assert (action - best).abs().max() < (0.25 if explore else 0.1)
    assert (following[:-1] - best).abs().max() < 0.2
    assert not following[-1].any()


def test_a_sequence_that_only_the_policy_proposes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    of = agent("agent=tdmpc", *TINY, "agent.planner.temperature=1000")
    s, z = torch.zeros(1, of.model.state_dim), torch.zeros(1, 0)

    def first_only(of: Agent, s: Tensor, z: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        return -torch.arange(a.shape[1]).float()

    monkeypatch.setattr(planner, "sequence_values", first_only)
    mean = torch.zeros(of.config.horizon, 1, 2)
    action, _ = plan(of, s, z, mean, generator(), False)
    noise = torch.randn(of.config.horizon, 4, 2, generator=generator())
    expected = policy_sequences(of, s.expand(4, -1), z.expand(4, -1), noise)[0, :1]
    torch.testing.assert_close(action, expected)


def test_a_new_episode_begins_with_a_new_plan() -> None:
    of = agent("agent=tdmpc", *TINY)
    actor = Actor(of, 2, seed=0)
    actor.observe(torch.randn(2, 5).numpy())
    actor.select_action(True)
    assert actor.planned[:-1].any()
    actor.on_reset(torch.tensor([1]).numpy())
    given: list[Tensor] = []

    def record(of: Agent, s: Tensor, z: Tensor, mean: Tensor, *more: object) -> tuple:
        given.append(mean)
        return s[:, :2], mean

    before = actor.planned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vis_rpg.agent.actor.plan", record)
        actor.select_action(True)
    assert torch.equal(given[0][:, 0], before[:, 0]) and not given[0][:, 1].any()


def test_it_trains_is_loaded_and_acts() -> None:
    actor, env = vis_rpg.load(trained("task=maze", "agent=tdmpc", *TINY))
    obs, _ = env.reset(seed=0)
    first = actor.act(obs)
    assert env.action_space.contains(first) and actor.planned.any()
    env.close()
