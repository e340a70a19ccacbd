"""Spaces of z: their densities are those of torch.distributions, and what they draw
follows them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from tests.runs import facts, trained
from vis_rpg.agent.latent import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    CategoricalLatent,
    GaussianLatent,
    MixedLatent,
    NoLatent,
    Posterior,
    SphereLatent,
    bounded_log_std,
    make_latent,
)
from vis_rpg.agent.policy import LatentPolicy


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_gaussian_densities_equal_torch_distributions() -> None:
    torch.manual_seed(0)
    space = GaussianLatent(4, posterior_std=0.38)
    z, outputs, mean = torch.randn(7, 4), torch.randn(7, 8), torch.randn(7, 4)
    prior = Independent(Normal(outputs[:, :4], bounded_log_std(outputs[:, 4:]).exp()), 1)
    torch.testing.assert_close(space.log_prior(z, outputs), prior.log_prob(z))
    torch.testing.assert_close(space.entropy(outputs), prior.entropy())
    fixed = Independent(Normal(torch.zeros(7, 4), 1.0), 1)
    torch.testing.assert_close(space.divergence(outputs), kl_divergence(prior, fixed))
    posterior = Independent(Normal(mean, 0.38), 1)
    torch.testing.assert_close(space.log_posterior(z, mean), posterior.log_prob(z))


def test_a_mixed_space_is_the_product_of_its_halves(draws: torch.Generator) -> None:
    space, categories, normal = MixedLatent(5, 0.38), CategoricalLatent(3), GaussianLatent(2, 0.38)
    z = space.sample(space.noise((50,), draws))
    assert (
        torch.equal(z[:, :3].sum(1), torch.ones(50)) and ((z[:, :3] == 0) | (z[:, :3] == 1)).all()
    )
    prior, mean = torch.randn(50, 7), torch.randn(50, 5)
    for name in ("log_prior", "log_posterior"):
        outputs = prior if name == "log_prior" else mean
        first = getattr(categories, name)(z[:, :3], outputs[:, :3])
        second = getattr(normal, name)(z[:, 3:], outputs[:, 3:])
        torch.testing.assert_close(getattr(space, name)(z, outputs), first + second)
    for name in ("entropy", "divergence"):
        both = getattr(categories, name)(prior[:, :3]) + getattr(normal, name)(prior[:, 3:])
        torch.testing.assert_close(getattr(space, name)(prior), both)
    drawn = space.sample(space.noise((4000,), draws), torch.tensor([2.0, 0, 0, 3, 0, -1, -1]))
    assert drawn[:, 0].mean() == pytest.approx(math.exp(2) / (math.exp(2) + 2), abs=0.03)
    assert drawn[:, 3].mean() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("std", [0.38, 1.0])
def test_the_density_on_a_sphere_integrates_to_one(std: float, draws: torch.Generator) -> None:
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (12, 2 * math.pi**6 / math.gamma(6))):
        space = SphereLatent(dim, std)
        z = space.sample(space.noise((400_000,), draws))
        torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)))
        assert z.mean(0).abs().max() < 0.01
        density = space.log_posterior(z, torch.randn(dim, generator=draws).expand(len(z), -1)).exp()
        assert float(density.mean()) * area == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "categorical", "mixed", "sphere"])
def test_zeros_of_the_network_stand_for_the_fixed_prior(kind: str, draws: torch.Generator) -> None:
    space = make_latent(kind, 4, 0.5)
    z = space.sample(space.noise((5,), draws))
    half = Normal(0.0, 1.0)
    expected = {
        "gaussian": half.log_prob(z).sum(-1),
        "categorical": torch.full((5,), -math.log(4)),
        "mixed": half.log_prob(z[:, 2:]).sum(-1) - math.log(2),
        "sphere": torch.full((5,), -math.log(2 * math.pi**2)),
    }
    torch.testing.assert_close(
        LatentPolicy(space, 3, 8, learned=False).log_prob(z, torch.randn(5, 3)), expected[kind]
    )


def test_a_log_std_is_bounded_and_finds_back_from_beyond_its_bounds() -> None:
    raw = torch.tensor(
        [
            LOG_STD_MIN - 2,
            LOG_STD_MIN - 0.1,
            -3.0,
            0.0,
            0.9,
            LOG_STD_MAX + 0.1,
            LOG_STD_MAX + 2,
            1e9,
            -1e9,
        ],
        requires_grad=True,
    )
    log_std = bounded_log_std(raw)
    assert ((log_std >= LOG_STD_MIN) & (log_std <= LOG_STD_MAX)).all()
    assert torch.equal(log_std[2:5], raw[2:5])
    (slope,) = torch.autograd.grad(log_std.sum(), raw)
    assert (slope[:7] > 0.005).all()


def test_a_learned_gaussian_prior_stays_finite_whatever_its_network_says() -> None:
    space = GaussianLatent(2, posterior_std=0.38)
    z = space.sample(torch.randn(3, 2), torch.full((3, 4), 1e3))
    for extreme in (-1e3, 1e3):
        outputs = torch.cat([torch.zeros(3, 2), torch.full((3, 2), extreme)], -1)
        assert (
            torch.isfinite(space.log_prior(z, outputs)).all()
            and torch.isfinite(space.entropy(outputs)).all()
        )


def test_categorical_densities_equal_torch_distributions() -> None:
    torch.manual_seed(0)
    space, logits = CategoricalLatent(5), torch.randn(5, 5)
    expected = Categorical(logits=logits)
    torch.testing.assert_close(
        space.log_prior(torch.eye(5), logits), expected.log_prob(torch.arange(5))
    )
    torch.testing.assert_close(
        space.log_posterior(torch.eye(5), logits), expected.log_prob(torch.arange(5))
    )
    torch.testing.assert_close(space.entropy(logits), expected.entropy())
    torch.testing.assert_close(
        space.divergence(logits), kl_divergence(expected, Categorical(logits=torch.zeros(5)))
    )


def test_categories_are_drawn_as_often_as_they_are_likely(draws: torch.Generator) -> None:
    space, probabilities, count = (
        CategoricalLatent(4),
        torch.tensor([0.05, 0.6, 0.25, 0.1]),
        100_000,
    )
    z = space.sample(space.noise((count,), draws), probabilities.log().expand(count, -1))
    assert torch.equal(z.sum(-1), torch.ones(count)), "one category each"
    error = (4 * probabilities * (1 - probabilities) / count).sqrt() * 2
    assert ((z.mean(0) - probabilities).abs() < error).all()


def test_without_outputs_the_fixed_prior_is_drawn_from(draws: torch.Generator) -> None:
    categorical, gaussian = CategoricalLatent(4), GaussianLatent(3, 0.38)
    z = categorical.sample(categorical.noise((40_000,), draws))
    torch.testing.assert_close(z.mean(0), torch.full((4,), 0.25), rtol=0, atol=0.01)
    z = gaussian.sample(gaussian.noise((40_000,), draws))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=0.02)
    torch.testing.assert_close(z.T.cov(), torch.eye(3), rtol=0, atol=0.03)


def test_a_learned_gaussian_is_drawn_with_its_mean_and_std(draws: torch.Generator) -> None:
    space = GaussianLatent(2, 0.38)
    outputs = torch.tensor([1.0, -2.0, math.log(0.5), math.log(2.5)]).expand(40_000, -1)
    z = space.sample(space.noise((40_000,), draws), outputs)
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.06)
    torch.testing.assert_close(z.std(0), torch.tensor([0.5, 2.5]), rtol=0.03, atol=0)


@pytest.mark.parametrize("space", [GaussianLatent(1, 0.7), CategoricalLatent(3)])
def test_a_posterior_is_a_probability(space) -> None:
    if isinstance(space, GaussianLatent):
        z = torch.linspace(-8, 8, 16001).unsqueeze(-1)
        assert float(
            space.log_posterior(z, torch.tensor([[0.3]])).exp().sum() * 1e-3
        ) == pytest.approx(1, abs=1e-4)
    else:
        assert float(
            space.log_posterior(torch.eye(3), torch.randn(1, 3)).exp().sum()
        ) == pytest.approx(1, abs=1e-5)


def test_categorical_noise_is_finite_at_both_ends_of_the_uniform(monkeypatch) -> None:
    for corner in (0.0, 1.0):
        monkeypatch.setattr(
            torch, "rand", lambda *shape, corner=corner, **_: torch.full(shape, corner)
        )
        assert torch.isfinite(CategoricalLatent(3).noise((2,), torch.Generator())).all()


def test_the_posterior_learns_to_tell_z_from_what_was_done() -> None:
    torch.manual_seed(0)
    space = CategoricalLatent(3)
    p_phi = Posterior(space, 2, 1, 16)
    optimizer = torch.optim.Adam(p_phi.parameters(), 1e-2)
    s, category = torch.randn(600, 2), torch.arange(600) % 3
    z, a = torch.eye(3)[category], (category.unsqueeze(-1) - 1.0)
    for _ in range(60):
        loss = -p_phi.log_prob(z, s, a).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * math.log(3)


def test_the_empty_space_draws_nothing_and_scores_nothing(draws: torch.Generator) -> None:
    space = NoLatent()
    assert space.sample(space.noise((5,), draws)).shape == (5, 0)
    posterior = Posterior(space, 2, 1, 16)
    assert list(posterior.parameters()) == []
    assert torch.equal(
        posterior.log_prob(torch.zeros(4, 5, 0), torch.randn(4, 5, 2), torch.randn(4, 5, 1)),
        torch.zeros(4, 5),
    )
    nothing = torch.zeros(5, 0)
    assert torch.equal(space.log_prior(nothing, nothing), torch.zeros(5))
    assert torch.equal(space.entropy(nothing), space.log_posterior(nothing, nothing))


@pytest.mark.parametrize(
    ("kind", "made"),
    [("gaussian", GaussianLatent), ("categorical", CategoricalLatent), ("none", NoLatent)],
)
def test_a_space_is_made_by_its_name(kind: str, made: type) -> None:
    assert isinstance(make_latent(kind, 4, 0.38), made)


@pytest.mark.parametrize(
    ("kind", "prior"), [("mixed", "fixed"), ("mixed", "learned"), ("sphere", "fixed")]
)
def test_an_agent_trains_with_every_space(kind: str, prior: str) -> None:
    run = trained("task=maze", f"agent.latent.kind={kind}", f"agent.latent.prior={prior}")
    assert math.isfinite(facts(run)[-1]["posterior_loss"])
