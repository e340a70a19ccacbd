"""The joint policy: a proper density on actions, reparameterized, and z from its prior."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import TanhTransform

from tests.runs import facts, trained
from vis_rpg.agent.latent import CategoricalLatent, GaussianLatent, LatentSpace, NoLatent
from vis_rpg.agent.policy import (
    POLICIES,
    FlowPolicy,
    GaussianPolicy,
    LatentPolicy,
    MixturePolicy,
    log_slope,
)


@pytest.fixture
def pi() -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(3, 2, 4, 16, std_scale=0.4).double()


def test_log_prob_equals_that_of_a_transformed_normal(pi: GaussianPolicy) -> None:
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
    pi = GaussianPolicy(3, 1, 0, 16, std_scale=1.0).double()
    s, nothing = torch.randn(1, 3).double(), torch.zeros(1, 0).double()
    mean, std = pi.distribution(s, nothing)
    a = torch.linspace(-1 + 1e-6, 1 - 1e-6, 200_001).double().unsqueeze(-1)
    noise = (torch.atanh(a) - mean) / std
    _, log_pi = pi(s.expand(len(a), -1), nothing.expand(len(a), -1), noise)
    assert float(torch.trapezoid(log_pi.exp(), a[:, 0]).detach()) == pytest.approx(1, abs=1e-3)


def test_saturated_actions_keep_a_finite_log_prob_and_gradient(pi: GaussianPolicy) -> None:
    pi.float()
    noise = torch.tensor([[60.0, -60.0]], requires_grad=True)
    a, log_pi = pi(torch.zeros(1, 3), torch.zeros(1, 4), noise)
    assert (a.abs() <= 1).all()
    assert torch.isfinite(log_pi).all()
    assert torch.isfinite(torch.autograd.grad(log_pi.sum(), noise)[0]).all()


def test_the_std_is_bounded_and_scaled(pi: GaussianPolicy) -> None:
    s, z = 1e3 * torch.randn(200, 3).double(), torch.randn(200, 4).double()
    _, std = pi.distribution(s, z)
    assert float(std.min()) >= 0.4 * torch.tensor(-5.0).exp() - 1e-9
    assert float(std.max()) <= 0.4 * torch.tensor(2.0).exp() + 1e-6
    half = GaussianPolicy(3, 2, 4, 16, std_scale=0.2).double()
    half.load_state_dict(pi.state_dict())
    torch.testing.assert_close(half.distribution(s, z)[1] * 2, std)


def test_the_mean_action_is_the_one_without_noise(pi: GaussianPolicy) -> None:
    s, z = torch.randn(5, 3).double(), torch.randn(5, 4).double()
    torch.testing.assert_close(pi.mean_action(s, z), pi(s, z, torch.zeros(5, 2).double())[0])


def test_the_action_depends_on_z(pi: GaussianPolicy) -> None:
    s = torch.randn(1, 3).double().expand(6, -1)
    actions = pi.mean_action(s, torch.randn(6, 4).double())
    assert float(actions.std(0).min().detach()) > 1e-3


def head(kind: str, actions: int = 2) -> GaussianPolicy | MixturePolicy | FlowPolicy:
    """A policy of this kind with weights as after some training."""
    torch.manual_seed(0)
    made = POLICIES[kind](3, actions, 4, 16, 0.3).double()
    for p in made.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return made


def asked(of: GaussianPolicy | MixturePolicy | FlowPolicy, rows: int) -> list[torch.Tensor]:
    return [torch.randn(rows, width).double() for width in (3, 4, of.noise_dim)]


@pytest.mark.parametrize("kind", sorted(POLICIES))
@pytest.mark.parametrize("actions", [1, 2, 5])
def test_every_policy_knows_the_density_of_its_own_and_of_given_actions(
    kind: str, actions: int
) -> None:
    of = head(kind, actions)
    s, z, noise = asked(of, 30)
    a, log_pi = of(s, z, noise)
    assert a.shape == (30, actions) and (a.abs() < 1).all()
    torch.testing.assert_close(of.log_prob(s, z, a), log_pi)
    assert of.mean_action(s, z).shape == (30, actions)


@pytest.mark.parametrize("kind", sorted(POLICIES))
def test_the_density_of_every_policy_integrates_to_one(kind: str) -> None:
    of = head(kind)
    s, z, _ = asked(of, 1)
    along = torch.linspace(-6, 6, 241).double()
    u = torch.cartesian_prod(along, along)
    rows = [x.expand(len(u), -1) for x in (s, z)]
    # Over u, since densities of actions rise at the bounds: p(u) = p(a) da / du.
    density = (of.log_prob(*rows, u.tanh()) + log_slope(u).sum(-1)).exp()
    assert float(density.sum() * (along[1] - along[0]) ** 2) == pytest.approx(1, abs=0.01)


def test_a_mixture_is_that_of_torch_and_chooses_components_by_their_weights() -> None:
    of = head("gmm")
    s, z, _ = asked(of, 1)
    log_weight, mean, std = of.distribution(s, z)
    expected = TransformedDistribution(
        MixtureSameFamily(Categorical(logits=log_weight), Independent(Normal(mean, std), 1)),
        [TanhTransform()],
    )
    noise = torch.randn(4000, of.noise_dim).double()
    rows = [x.expand(4000, -1) for x in (s, z)]
    a, log_pi = of(*rows, noise)
    # The mixture has an event of two numbers, which the tanh maps one by one.
    torch.testing.assert_close(log_pi, expected.log_prob(a))
    near = (torch.atanh(a)[:, None] - mean[0] - std[0] * noise[:, None, :2]).abs().sum(-1).argmin(1)
    shares = torch.bincount(near, minlength=of.COMPONENTS) / 4000
    torch.testing.assert_close(shares, log_weight[0].exp().float(), rtol=0, atol=0.03)


def test_logits_of_a_mixture_learn_from_the_value_of_actions() -> None:
    of = head("gmm")
    for _ in range(300):
        s, z, noise = asked(of, 64)
        loss = ((of(s, z, noise)[0] - 0.5) ** 2).sum(-1).mean()
        gradients = torch.autograd.grad(loss, list(of.parameters()))
        for p, gradient in zip(of.parameters(), gradients, strict=True):
            p.data -= 0.05 * gradient
    log_weight, mean, std = of.distribution(*asked(of, 1)[:2])
    off = ((mean.tanh() - 0.5) ** 2).sum(-1) + std.square().sum(-1)
    rank = log_weight[0].argsort(descending=True)
    assert off[0, rank[:3]].mean() < off[0, rank[-3:]].mean()


def test_a_flow_is_autoregressive_and_begins_as_a_normal() -> None:
    torch.manual_seed(0)
    fresh = FlowPolicy(3, 4, 4, 16, 1.0).double()
    s, z, noise = asked(fresh, 5)
    mean, std, _ = fresh.distribution(s, z)
    torch.testing.assert_close(fresh(s, z, noise)[0], torch.tanh(mean + std * noise))
    of = head("flow", 4)
    context = torch.randn(16).double()
    layer = of.flow[0]
    shift, scale = (
        torch.autograd.functional.jacobian(
            lambda u, i=i: layer(u, context)[i], torch.ones(4).double()
        )
        for i in range(2)
    )
    for slope in (shift, scale):
        assert not slope.triu().any() and slope.tril(-1)[1:].abs().sum(1).min() > 0


@pytest.mark.parametrize("kind", ["gmm", "flow"])
@pytest.mark.parametrize("words", [(), ("agent=sac",), ("agent=tdmpc",), ("seeds=2",)], ids=str)
def test_every_policy_trains_with_every_agent(kind: str, words: tuple[str, ...]) -> None:
    run = trained("task=maze", *words, f"agent.policy.kind={kind}", "steps=150")
    run = run / "seed-1" if "seeds=2" in words else run
    assert math.isfinite(facts(run)[-1]["entropy"])


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
