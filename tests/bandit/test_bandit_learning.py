"""Equation 2 on the bandit: which gradient goes where, and what RPG finds that a
Gaussian does not."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from vis_rpg.bandit.reinforce import GaussianReinforce, SoftmaxReinforce
from vis_rpg.bandit.rpg import BanditRPG, Modes, density, log_evidence, mean_reward, train
from vis_rpg.compose import compose
from vis_rpg.envs.tasks.bandit import REACH, bandit_reward


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return compose(config_name="bandit")


@pytest.fixture
def rpg(config: DictConfig) -> BanditRPG:
    torch.manual_seed(0)
    learner = BanditRPG(config.rpg)
    with (
        torch.no_grad()
    ):  # as after some training: π(z|s) no longer uniform, so that nothing is zero by symmetry
        learner.pi_z.net.layers[-1].weight.normal_(0, 0.5)
    return learner


def draws(rpg: BanditRPG, batch: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return rpg.pi_z(torch.ones(1, 1), rpg.space.noise((batch,), generator)), torch.randn(
        batch, 1, generator=generator
    )


def gradients(loss: Tensor, part: torch.nn.Module) -> list[Tensor | None]:
    return list(
        torch.autograd.grad(loss, list(part.parameters()), retain_graph=True, allow_unused=True)
    )


def test_only_the_action_policy_learns_by_the_pathwise_gradient(rpg: BanditRPG) -> None:
    policy, latent, _ = rpg.losses(*draws(rpg))
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(policy, rpg.pi))
    assert all(g is None for g in gradients(policy, rpg.pi_z))
    assert all(g is None for g in gradients(latent, rpg.pi))
    assert all(g is None for g in gradients(latent, rpg.p_phi))


def test_the_latent_policy_follows_the_score_function(rpg: BanditRPG) -> None:
    z, noise = draws(rpg)
    policy, latent, _ = rpg.losses(z, noise)
    s = torch.ones_like(noise)
    with torch.no_grad():
        a, log_pi = rpg.pi(s, z, noise)
        value = (
            0.1 * bandit_reward(REACH * a)[:, 0] + 0.8 * rpg.p_phi.log_prob(z, s, a) - 0.2 * log_pi
        )
    assert policy.item() == pytest.approx(-value.mean().item(), rel=1e-5)
    expected = torch.zeros(
        rpg.space.dim
    )  # of the logits: mean of advantage * (z - p), and the entropy's gradient
    p = rpg.modes().probability
    for i in range(len(z)):
        others = torch.cat([value[:i], value[i + 1 :]]).mean()
        expected -= (value[i] - others) * (z[i] - p) / len(z)
    expected += 0.8 * p * (p.log() - (p * p.log()).sum())
    torch.testing.assert_close(gradients(latent, rpg.pi_z)[-1], expected, rtol=1e-4, atol=1e-6)


def test_an_update_moves_the_posterior_by_its_own_cross_entropy_alone(config: DictConfig) -> None:
    """With another weight of consistency the policy is pulled harder, but φ takes the same step."""
    moved = []
    for consistency in (0.8, 80.0):
        torch.manual_seed(0)
        learner = BanditRPG(_with(config, consistency=consistency))
        learner.update(torch.Generator().manual_seed(0))
        moved.append(learner)
    for one, other in zip(moved[0].p_phi.parameters(), moved[1].p_phi.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(moved[0].modes().mean, moved[1].modes().mean)


def test_without_consistency_and_entropy_the_policy_climbs_the_exact_reward(
    config: DictConfig,
) -> None:
    learner = BanditRPG(_with(config, consistency=0.0, entropy_a=0.0, reward_weight=1.0))
    z, noise = draws(learner)
    policy, _, _ = learner.losses(z, noise)
    mean, std = learner.pi.distribution(torch.ones_like(noise), z)
    a = torch.tanh(mean + std * noise).detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(bandit_reward(REACH * a).mean(), a)
    pathwise = (slope * (1 - a**2)).sum()  # of the last bias, which shifts every mean alike
    assert -gradients(policy, learner.pi)[-1][0].item() == pytest.approx(pathwise.item(), rel=1e-4)


def test_the_modes_part_before_the_reward_chooses(config: DictConfig) -> None:
    torch.manual_seed(0)
    learner = BanditRPG(config.rpg)
    *_, (_, modes) = train(learner, 200, 200, torch.Generator().manual_seed(0))
    z, noise = draws(learner, 1000)
    _, _, cross_entropy = learner.losses(z, noise)
    assert cross_entropy < 0.5 * math.log(config.rpg.categories), "the action tells which z acted"
    assert modes.mean.min() < 0 < modes.mean.max(), "both sides are tried"
    assert modes.probability.min() > 0.1, "no z has been given up"


def test_the_same_seed_gives_the_same_policy(config: DictConfig) -> None:
    policies = []
    for _ in range(2):
        torch.manual_seed(3)
        *_, (_, modes) = train(BanditRPG(config.rpg), 5, 5, torch.Generator().manual_seed(3))
        policies.append(modes)
    assert torch.equal(policies[0].mean, policies[1].mean)
    assert torch.equal(policies[0].probability, policies[1].probability)


@pytest.mark.slow
def test_rpg_leaves_the_wide_mode_for_the_best_one(config: DictConfig) -> None:
    """The whole schedule; the wide mode alone could give 0.5."""
    torch.manual_seed(0)
    updates = config.updates
    *_, (_, modes) = train(
        BanditRPG(config.rpg), updates, updates, torch.Generator().manual_seed(0)
    )
    assert mean_reward(modes, 10_000, torch.Generator().manual_seed(1)) >= 1.0


def test_a_gaussian_moves_right_from_the_start_and_ends_in_the_wide_mode(
    config: DictConfig,
) -> None:
    policies = dict(
        train(GaussianReinforce(config.reinforce), 800, 50, torch.Generator().manual_seed(0))
    )
    assert policies[0].mean == 0
    assert policies[50].mean > 0.05
    assert 0.3 < mean_reward(policies[800], 10_000, torch.Generator().manual_seed(1)) < 0.55


def test_a_softmax_begins_uniform_and_finds_the_best_mode(config: DictConfig) -> None:
    learner = SoftmaxReinforce(config.softmax)
    policies = dict(train(learner, 800, 400, torch.Generator().manual_seed(0)))
    start = policies[0]
    assert (start.mean + 2 * start.std).tanh()[:-1] == pytest.approx(
        (start.mean - 2 * start.std).tanh()[1:], abs=0.02
    ), "bins lie side by side"
    x = torch.linspace(-REACH, REACH, 4801)[1:-1]
    uniform = torch.trapezoid(bandit_reward(x), x).item() / (2 * REACH)
    test = torch.Generator().manual_seed(1)
    assert mean_reward(start, 100_000, test) == pytest.approx(uniform, abs=0.01)
    assert mean_reward(policies[800], 10_000, test) > 0.9


def test_reinforce_estimates_the_gradient_of_the_expected_reward(config: DictConfig) -> None:
    learner = GaussianReinforce(config.reinforce)
    learner.loss(torch.randn(400_000, generator=torch.Generator().manual_seed(0))).backward()
    u = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    mean, std = (
        torch.zeros((), dtype=torch.float64, requires_grad=True),
        torch.tensor(config.reinforce.std, dtype=torch.float64),
    )
    p = torch.distributions.Normal(mean, std).log_prob(u).exp()
    expected = torch.trapezoid(p * bandit_reward(REACH * u.tanh()), u)
    expected.backward()
    assert learner.mean.grad is not None and mean.grad is not None
    assert -learner.mean.grad.item() == pytest.approx(mean.grad.item(), abs=0.005)
    assert mean.grad > 0.02, "the wide mode pulls a Gaussian in the middle to the right"


def test_the_density_is_that_of_the_sampled_actions() -> None:
    modes = Modes(torch.tensor([0.3, 0.7]), torch.tensor([-0.5, 0.8]), torch.tensor([0.2, 0.5]))
    x = torch.linspace(-REACH, REACH, 20_001)[1:-1]
    shares = torch.trapezoid(density(modes, x), x)
    torch.testing.assert_close(shares, modes.probability, rtol=1e-3, atol=1e-3)
    expected = torch.trapezoid(density(modes, x).sum(0) * bandit_reward(x), x).item()
    assert mean_reward(modes, 200_000, torch.Generator().manual_seed(0)) == pytest.approx(
        expected, abs=5e-3
    )


def test_training_reports_the_start_each_interval_and_the_end(config: DictConfig) -> None:
    learner = GaussianReinforce(config.reinforce)
    assert [update for update, _ in train(learner, 5, 2, torch.Generator().manual_seed(0))] == [
        0,
        2,
        4,
        5,
    ]


def _with(config: DictConfig, **changes: float) -> DictConfig:
    changed = config.rpg.copy()
    changed.update(changes)
    return changed


# The bound ----------------------------------------------------------------------------------------


def test_the_elbo_is_the_mean_of_what_it_is_made_of(rpg: BanditRPG) -> None:
    z, noise = draws(rpg, 200_000)
    s = torch.ones_like(noise)
    with torch.no_grad():
        a, log_pi = rpg.pi(s, z, noise)
        terms = rpg.config.reward_weight * bandit_reward(REACH * a).squeeze(-1) - math.log(2)
        terms += rpg.p_phi.log_prob(z, s, a) - log_pi
        terms -= rpg.space.log_prior(z, rpg.pi_z.outputs(s[:1]))
    error = float(terms.std()) / len(terms) ** 0.5
    assert rpg.modes().elbo == pytest.approx(float(terms.mean()), abs=4 * error)


@pytest.mark.parametrize("weight", [0.1, 5.0])
def test_the_evidence_is_that_of_uniform_actions(weight: float) -> None:
    a = torch.rand(400_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = (weight * bandit_reward(REACH * a)).exp().mean().log()
    assert log_evidence(weight) == pytest.approx(float(expected), abs=0.02 * weight)


@pytest.mark.parametrize("weight", [0.1, 5.0])
def test_the_elbo_never_exceeds_the_evidence(config: DictConfig, weight: float) -> None:
    torch.manual_seed(0)
    settings = copy.deepcopy(config.rpg)
    settings.reward_weight = weight
    settings.consistency = settings.entropy_a = settings.entropy_z = settings.decay = 1.0
    settings.lr = 0.01
    learner, evidence = BanditRPG(settings), log_evidence(weight)
    gaps = [
        evidence - modes.elbo
        for _, modes in train(learner, 200, 1, torch.Generator().manual_seed(0))
    ]
    assert min(gaps) > -1e-6
    # With a large reward the pathwise gradient, blind to the drop at 0.875, does not climb.
    assert weight > 1 or gaps[-1] < gaps[0] / 2
