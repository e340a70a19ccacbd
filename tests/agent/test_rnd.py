"""The bonus: zero until it knows what is usual, then about 0 with spread 1 on what is familiar, and
high where nothing has been."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from perception.encoding import positional_encoding
from tests.small import changed, weights
from vis_rpg.agent.rnd import ObjectRND, RunningMeanStd

ONE, NONE = torch.tensor(1.0), torch.tensor(0.0)


def trained(points: Tensor, updates: int, warmup: int = 20) -> ObjectRND:
    torch.manual_seed(0)
    rnd = ObjectRND(26, 64, warmup)
    optimizer = torch.optim.Adam(rnd.predictor.parameters(), 1e-3)
    for _ in range(updates):
        error = rnd.prediction_error(
            positional_encoding(points[torch.randint(len(points), (128,))], 6)
        )
        optimizer.zero_grad()
        error.mean().backward()
        optimizer.step()
        rnd.update_stats(error)
    return rnd


def test_moments_equal_numpys_over_everything_seen() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(5 * i, 1 + i, size=10 + 7 * i).astype(np.float32) for i in range(6)]
    statistics = RunningMeanStd()
    for batch in batches:
        statistics.update(torch.from_numpy(batch), ONE)
    everything = np.concatenate(batches).astype(np.float64)
    normalised = statistics.normalise(torch.tensor([0.0, 1.0]))
    expected = (np.array([0.0, 1.0]) - everything.mean()) / everything.std()
    np.testing.assert_allclose(normalised.numpy(), expected, rtol=1e-4)


def test_moments_stay_exact_over_many_batches_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    batches = rng.normal(1000, 1, size=(3000, 64)).astype(np.float32)
    statistics = RunningMeanStd()
    for batch in batches:
        statistics.update(torch.from_numpy(batch), ONE)
    assert float(statistics.mean) == pytest.approx(batches.mean(dtype=np.float64), abs=0.01)
    assert float((statistics.m2 / statistics.count).sqrt()) == pytest.approx(
        batches.std(dtype=np.float64), rel=0.01
    )


def test_a_window_forgets_earlier_batches_exponentially() -> None:
    rng = np.random.default_rng(0)
    batches = rng.normal(np.linspace(0, 5, 40)[:, None], 1, size=(40, 16))
    statistics, ages = RunningMeanStd(window=8), np.zeros(40)
    statistics.update(torch.zeros(16), NONE)
    for batch in batches:
        statistics.update(torch.from_numpy(batch).float(), ONE)
    for index in range(40):
        if index >= 8:  # the window is full
            ages[:index] += 1
    kept = np.repeat((7 / 8) ** ages, 16)
    mean = np.average(batches.ravel(), weights=kept)
    std = np.average((batches.ravel() - mean) ** 2, weights=kept) ** 0.5
    normalised = statistics.normalise(torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(normalised.numpy(), (np.array([0, 1]) - mean) / std, rtol=1e-4)
    assert float(statistics.count) == pytest.approx(8 * 16)


def test_a_batch_of_weight_zero_counts_for_nothing() -> None:
    statistics = RunningMeanStd()
    statistics.update(torch.tensor([1.0, 3.0]), ONE)
    before = weights(statistics)
    statistics.update(torch.tensor([100.0, 300.0]), NONE)
    assert changed(before, statistics) == set()


def test_nothing_is_normalised_before_anything_is_counted_and_extremes_are_clipped() -> None:
    statistics = RunningMeanStd()
    assert torch.equal(statistics.normalise(torch.tensor([-5.0, 1e9])), torch.zeros(2))
    statistics.update(torch.tensor([1.0, 1.1]), ONE)
    assert statistics.normalise(torch.tensor([-1e9, 1e9])).tolist() == [-100.0, 100.0]


def test_the_bonus_is_zero_until_the_warm_up_is_over() -> None:
    points = torch.rand(500, 2) * 2 - 1
    assert not trained(points, updates=20, warmup=20).bonus(torch.randn(50, 26)).any()
    assert trained(points, updates=21, warmup=20).bonus(torch.randn(50, 26)).any()


def test_familiar_observations_earn_about_nothing_with_a_spread_of_about_one() -> None:
    torch.manual_seed(1)
    points = torch.rand(2000, 2) * 2 - 1
    rnd = trained(points, updates=25, warmup=20)
    bonus = rnd.bonus(positional_encoding(points, 6))
    assert abs(float(bonus.mean())) < 1.0
    assert 0.3 < float(bonus.std()) < 2.0


def test_more_training_makes_the_familiar_worth_less_than_nothing() -> None:
    points = torch.rand(200, 2) * 2 - 1
    rnd = trained(points, updates=400)
    assert float(rnd.bonus(positional_encoding(points, 6)).mean()) < 0, "the mean is subtracted"


def test_an_unseen_half_of_the_plane_earns_more_than_the_seen_one() -> None:
    torch.manual_seed(2)
    left = torch.rand(3000, 2) * torch.tensor([1.0, 2.0]) - 1
    rnd = trained(left, updates=400)
    grid = torch.cartesian_prod(torch.linspace(-0.95, 0.95, 20), torch.linspace(-0.95, 0.95, 20))
    bonus = rnd.bonus(positional_encoding(grid, 6))
    seen, unseen = bonus[grid[:, 0] < -0.1], bonus[grid[:, 0] > 0.1]
    assert float(unseen.mean()) > float(seen.mean()) + 1.0
    assert float((unseen > seen.quantile(0.95)).float().mean()) > 0.9


def test_bfloat16_changes_the_bonus_little_even_where_it_is_small() -> None:
    points = torch.rand(200, 2) * 2 - 1
    rnd = trained(points, updates=400)
    encoded = positional_encoding(points, 6)
    bonus = rnd.bonus(encoded)
    with torch.autocast("cpu", torch.bfloat16):
        error, rounded = rnd.prediction_error(encoded), rnd.bonus(encoded)
    assert error.dtype == rounded.dtype == torch.float32
    assert float((rounded - bonus).abs().max()) < 0.1  # of a standard deviation over all training
    assert not torch.equal(rounded, bonus)


def test_the_random_network_never_changes_and_earns_no_gradient() -> None:
    torch.manual_seed(0)
    target = weights(ObjectRND(26, 64, 20).target)
    rnd = trained(torch.rand(100, 2), updates=30)
    assert changed(target, rnd.target) == set()
    assert not any(parameter.requires_grad for parameter in rnd.target.parameters())
    assert not rnd.bonus(torch.randn(3, 26)).requires_grad


def test_asking_for_a_bonus_teaches_nothing() -> None:
    rnd = trained(torch.rand(100, 2), updates=30)
    before = weights(rnd)
    rnd.bonus(torch.randn(4, 9, 26))
    assert changed(before, rnd) == set()
