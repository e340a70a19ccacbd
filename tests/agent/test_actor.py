"""Acting: one z an episode, a clean memory at its start, and side by side as alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from perception.base import StoredObs
from tests.small import Seen, agent
from vis_rpg.agent.actor import Actor


class Counting(Seen):
    """Remembers how many observations of its episode it has seen."""

    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        before = hidden.get("count", torch.zeros(len(obs)))
        count = torch.where(is_first, 0.0, before) + 1
        self.previous_action = previous_action.clone()
        return {"x": obs}, {"count": count}


@pytest.fixture
def actor() -> Actor:
    return Actor(agent(perception=Counting((5,))), envs=3)


OBS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def test_z_is_drawn_at_the_first_step_and_stays_through_the_episode(actor: Actor) -> None:
    actor.observe(OBS)
    actor.select_action(explore=True)
    first = actor.z.clone()
    for _ in range(4):
        actor.observe(OBS)
        actor.select_action(explore=True)
        assert torch.equal(actor.z, first)
    actor.on_reset(np.array([1]))
    actor.observe(OBS[1:2], np.array([1]))
    actor.select_action(explore=True)
    assert torch.equal(actor.z[[0, 2]], first[[0, 2]])
    assert not torch.equal(actor.z[1], first[1])


def test_memory_begins_anew_with_an_episode_and_goes_on_elsewhere(actor: Actor) -> None:
    actor.observe(OBS)
    actor.select_action(explore=True)
    actor.observe(OBS)
    actor.on_reset(np.array([2]))
    actor.observe(OBS[2:], np.array([2]))
    assert actor.state.hidden["count"].tolist() == [2, 2, 1]


def test_perception_is_told_the_previous_action_and_zero_at_a_start(actor: Actor) -> None:
    actor.observe(OBS)
    assert not actor.agent.model.perception.previous_action.any()
    action = actor.select_action(explore=True)
    actor.observe(OBS)
    assert torch.equal(actor.agent.model.perception.previous_action, action)
    actor.on_reset(np.array([0]))
    actor.observe(OBS[:1], np.array([0]))
    assert not actor.agent.model.perception.previous_action.any()


def test_an_action_that_was_handed_out_never_changes(actor: Actor) -> None:
    alone = Actor(actor.agent)
    alone.reset()
    action = alone.act(OBS[0])
    kept = action.copy()
    alone.reset()
    assert np.array_equal(action, kept)
    actor.observe(OBS)
    actions = actor.select_action(explore=True)
    before = actions.clone()
    actor.on_reset(np.array([0, 1, 2]))
    assert torch.equal(actions, before)


def test_information_is_the_mean_over_an_episode_of_what_p_phi_tells_beyond_the_prior(
    actor: Actor,
) -> None:
    actor = Actor(actor.agent, envs=3, measure_z=True)
    own, told = actor.agent, []
    actor.observe(OBS)
    actor.select_action(explore=True)
    actor.on_reset(np.array([1]))
    taken = torch.full((3, own.action_dim), 0.3)
    for instead in (None, taken, None):
        actor.observe(OBS)
        action = actor.select_action(explore=True, instead=instead)
        s = own.model.f(actor.features)
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(actor.z).sum(-1)
        told.append((own.p_phi.log_prob(actor.z, s, action) - prior).detach())
    assert actor.z_information(1) == pytest.approx(float(torch.stack(told)[:, 1].mean()), rel=1e-5)
    assert actor.z_information(0) != pytest.approx(float(torch.stack(told)[:, 0].mean()), rel=1e-3)
    actor.select_action(explore=True, instead=taken)
    assert torch.equal(actor.previous_action, taken)


def test_side_by_side_equals_alone(actor: Actor) -> None:
    z = torch.randn(3, 12)
    actor.reset(z)
    actor.observe(OBS)
    together = actor.select_action(explore=False)
    for row in range(3):
        alone = Actor(actor.agent)
        alone.reset(z[row])
        np.testing.assert_allclose(alone.act(OBS[row]), together[row].numpy(), rtol=1e-5, atol=1e-6)


def test_the_mean_action_repeats_and_exploring_does_not(actor: Actor) -> None:
    alone = Actor(actor.agent)
    alone.reset(np.zeros(12))
    assert np.array_equal(alone.act(OBS[0]), alone.act(OBS[0]))
    assert not np.array_equal(alone.act(OBS[0], explore=True), alone.act(OBS[0], explore=True))


def test_a_given_z_holds_until_the_next_reset(actor: Actor) -> None:
    alone = Actor(actor.agent)
    given = np.arange(12.0)
    alone.reset(given)
    alone.act(OBS[0])
    alone.act(OBS[0])
    assert alone.z[0].tolist() == given.tolist()
    alone.reset()
    alone.act(OBS[0])
    assert alone.z[0].tolist() != given.tolist()


def test_the_same_seed_acts_the_same() -> None:
    first, second, other = (Actor(agent(), seed=seed) for seed in (4, 4, 5))
    for actor in (first, second, other):
        actor.reset()
    for _ in range(3):
        action = first.act(OBS[0], explore=True)
        assert np.array_equal(action, second.act(OBS[0], explore=True))
        assert not np.array_equal(action, other.act(OBS[0], explore=True))


def test_actions_and_observations_of_any_number_type_are_understood() -> None:
    actor = Actor(agent())
    actor.reset()
    action = actor.act(OBS[0].astype(np.float64))
    assert action.shape == (2,)
    assert action.dtype == np.float32
    assert (np.abs(action) <= 1).all()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_an_actor_goes_on_from_its_saved_state(shape: tuple[int, ...]) -> None:
    of = agent(perception=Seen(shape))
    obs = (
        np.random.default_rng(1)
        .normal(size=(6, 3, *of.model.perception.storage["x"].shape))
        .astype(np.float32)
    )
    first, second = Actor(of, 3, seed=0), Actor(of, 3, seed=1)
    for step in range(3):
        first.observe(obs[step])
        first.select_action(explore=True)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        for actor in (first, second):
            actor.observe(obs[step])
        assert torch.equal(first.select_action(explore=True), second.select_action(explore=True))


def test_an_actor_goes_on_where_the_random_numbers_are_of_another_device() -> None:
    """A CPU's generator has 5056 bytes of state, a GPU's 16: the noise then begins anew, everything
    else goes on."""
    of = agent()
    first = Actor(of, 3)
    first.observe(OBS)
    first.select_action(explore=True)
    state = first.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}
    second = Actor(of, 3)
    second.load_state_dict(state)
    assert torch.equal(second.z, first.z)
    assert torch.isfinite(second.select_action(explore=True)).all()


def test_mbsac_acts_without_z() -> None:
    actor = Actor(agent("agent=mbsac"))
    actor.reset()
    assert actor.act(OBS[0]).shape == (2,)
    assert actor.z.shape == (1, 0)
