"""The joint policy: a proper density on actions, reparameterized, and z from its prior."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from vis_rpg.agent.latent import CategoricalLatent, GaussianLatent, LatentSpace, NoLatent
from vis_rpg.agent.policy import ActionPolicy, LatentPolicy


@pytest.fixture
def pi() -> ActionPolicy:
    torch.manual_seed(0)
    return ActionPolicy(3, 2, 4, 16, std_scale=0.4).double()


def test_log_prob_equals_that_of_a_transformed_normal(pi: ActionPolicy) -> None:
    s, z, noise = (
        torch.randn(50, 3).double(),
        torch.randn(50, 4).double(),
        torch.randn(50, 2).double(),
    )
    a, log_pi = pi(s, z, noise)
    mean, std = pi.distribution(s, z)
    expected = Independent(TransformedDistribution(Normal(mean, std), [TanhTransform()]), 1)
    torch.testing.assert_close(log_pi, expected.log_prob(a), rtol=1e-6, atol=1e-6)


def test_the_density_of_one_action_integrates_to_one() -> None:
    torch.manual_seed(1)
    pi = ActionPolicy(3, 1, 0, 16, std_scale=1.0).double()
    s, nothing = torch.randn(1, 3).double(), torch.zeros(1, 0).double()
    mean, std = pi.distribution(s, nothing)
    a = torch.linspace(-1 + 1e-6, 1 - 1e-6, 200_001).double().unsqueeze(-1)
    noise = (torch.atanh(a) - mean) / std
    _, log_pi = pi(s.expand(len(a), -1), nothing.expand(len(a), -1), noise)
    assert float(torch.trapezoid(log_pi.exp(), a[:, 0]).detach()) == pytest.approx(1, abs=1e-3)


def test_saturated_actions_keep_a_finite_log_prob_and_gradient(pi: ActionPolicy) -> None:
    pi.float()
    noise = torch.tensor([[60.0, -60.0]], requires_grad=True)
    a, log_pi = pi(torch.zeros(1, 3), torch.zeros(1, 4), noise)
    assert (a.abs() <= 1).all()
    assert torch.isfinite(log_pi).all()
    assert torch.isfinite(torch.autograd.grad(log_pi.sum(), noise)[0]).all()


def test_the_std_is_bounded_and_scaled(pi: ActionPolicy) -> None:
    s, z = 1e3 * torch.randn(200, 3).double(), torch.randn(200, 4).double()
    _, std = pi.distribution(s, z)
    assert float(std.min()) >= 0.4 * torch.tensor(-5.0).exp() - 1e-9
    assert float(std.max()) <= 0.4 * torch.tensor(2.0).exp() + 1e-6
    half = ActionPolicy(3, 2, 4, 16, std_scale=0.2).double()
    half.load_state_dict(pi.state_dict())
    torch.testing.assert_close(half.distribution(s, z)[1] * 2, std)


def test_the_mean_action_is_the_one_without_noise(pi: ActionPolicy) -> None:
    s, z = torch.randn(5, 3).double(), torch.randn(5, 4).double()
    torch.testing.assert_close(pi.mean_action(s, z), pi(s, z, torch.zeros(5, 2).double())[0])


def test_the_action_depends_on_z(pi: ActionPolicy) -> None:
    s = torch.randn(1, 3).double().expand(6, -1)
    actions = pi.mean_action(s, torch.randn(6, 4).double())
    assert float(actions.std(0).min().detach()) > 1e-3


@pytest.mark.parametrize("space", [GaussianLatent(3, 0.38), CategoricalLatent(4)])
def test_a_learned_prior_starts_as_the_fixed_one(space: LatentSpace) -> None:
    torch.manual_seed(0)
    learned, fixed = (
        LatentPolicy(space, 5, 16, learned=True),
        LatentPolicy(space, 5, 16, learned=False),
    )
    s = torch.randn(40, 5)
    noise = space.noise((40,), torch.Generator().manual_seed(0))
    assert torch.equal(learned(s, noise), fixed(s, noise))
    assert fixed.outputs(s) is None
    assert torch.equal(learned.outputs(s), torch.zeros(40, space.prior_outputs))


def test_drawing_z_carries_no_gradient() -> None:
    space = GaussianLatent(3, 0.38)
    pi_z = LatentPolicy(space, 5, 16, learned=True)
    z = pi_z(torch.randn(4, 5, requires_grad=True), torch.randn(4, 3))
    assert not z.requires_grad


def test_the_empty_space_has_no_prior_to_learn() -> None:
    assert list(LatentPolicy(NoLatent(), 5, 16, learned=True).parameters()) == []
