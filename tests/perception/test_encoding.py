from __future__ import annotations

import math

import pytest
import torch

from perception.encoding import encoded_width, frequencies_for, log_scale, positional_encoding


def test_encoding_holds_each_scalar_and_its_waves() -> None:
    x = torch.tensor([[0.3, -0.7]])
    code = positional_encoding(x, 3)[0].tolist()
    waves = [(2.0**i) * v for v in (0.3, -0.7) for i in range(3)]
    expected = [0.3, -0.7, *map(math.sin, waves), *map(math.cos, waves)]
    assert code == pytest.approx(expected, abs=1e-6)
    assert len(code) == encoded_width(2, 3)


def test_more_frequencies_tell_small_steps_better_apart() -> None:
    x, y = torch.tensor([[0.2]]), torch.tensor([[0.22]])
    apart = [
        (positional_encoding(x, f) - positional_encoding(y, f)).norm().item() for f in range(7)
    ]
    assert apart == sorted(apart) and apart[6] > 10 * apart[0]


def test_the_logarithmic_scale_is_fine_near_0_and_leaves_0_and_1_in_place() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(log_scale(x, 0.1), x)
    x = torch.tensor([0.0, 0.9], requires_grad=True)
    [slope] = torch.autograd.grad(log_scale(x + 1e-9, 0.1).sum(), x)
    assert slope.tolist() == pytest.approx([10 / math.log(11), 1 / math.log(11)], rel=1e-4)
    assert torch.equal(log_scale(-x, 0.1), -log_scale(x, 0.1))


@pytest.mark.parametrize("jitter", [0.001, 0.01, 0.02, 0.05, 0.1, 0.149, 0.2])
def test_the_highest_frequency_stays_quiet_under_jitter_and_the_next_would_not(
    jitter: float,
) -> None:
    count = frequencies_for(jitter)
    assert count == 1 or 2 ** (count - 1) * jitter < 0.3
    assert count == 6 or 2**count * jitter >= 0.3


def test_a_still_centroid_allows_all_frequencies() -> None:
    assert frequencies_for(0.0) == frequencies_for(1e-9) == 6
