"""The bandit's reward, by hand."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from vis_rpg.envs.tasks.bandit import bandit_reward
from vis_rpg.errors import UserError


def reward(x: float) -> float:
    return bandit_reward(torch.tensor(x, dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (-0.6, 1.1),
        (-0.5, 0.38),
        (0.0, 0.1171875),
        (0.375, 0.375),
        (-1.2, 0.0),
        (0.9, 0.0),
        (1.2, 0.0),
    ],
)
def test_values_by_hand(x: float, expected: float) -> None:
    assert reward(x) == pytest.approx(expected, abs=1e-12)


def test_the_left_mode_is_the_best_and_narrow_the_right_one_is_wide() -> None:
    x = torch.linspace(-1.2, 1.2, 24001, dtype=torch.float64)
    values = bandit_reward(x)
    assert x[values.argmax()].item() == pytest.approx(-0.6, abs=1e-3)
    right = x > 0
    assert values[right].max().item() == pytest.approx(0.5, abs=1e-6)
    assert (values[right] > 0).sum() > 2 * (values[~right] > 0.2).sum()


def test_the_right_mode_ends_in_a_jump() -> None:
    assert reward(0.875 - 1e-9) == pytest.approx(0.5, abs=1e-6)
    assert reward(0.875) == 0.0


def test_the_gradient_pulls_towards_the_peak_of_either_mode() -> None:
    x = torch.tensor([-0.7, -0.5, 0.4, 0.8], dtype=torch.float64, requires_grad=True)
    bandit_reward(x).sum().backward()
    assert x.grad is not None
    assert x.grad.sign().tolist() == [1.0, -1.0, 1.0, 1.0]


def test_the_environment_maps_actions_to_the_whole_domain() -> None:
    env = gymnasium.make("vis_rpg/Bandit-v0", disable_env_checker=True)
    for action in (-1.0, -0.5, 0.25, 0.7, 1.0):
        first, _ = env.reset(seed=0)
        obs, value, *_ = env.step(np.array([action]))
        assert value == pytest.approx(reward(1.2 * action))
        assert not first.any()
        assert not obs.any()


def test_pixels_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"^obs=pixels for vis_rpg/Bandit-v0.*use obs=state$"):
        gymnasium.make("vis_rpg/Bandit-v0", obs="pixels")
    with pytest.raises(UserError, match="no picture"):
        gymnasium.make("vis_rpg/Bandit-v0").unwrapped.render()
