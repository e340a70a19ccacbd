"""Tasks with known dynamics: gradients, contacts, and two modes of unequal worth."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from vis_rpg.envs import IDS
from vis_rpg.envs.tasks.differentiable import BALL, DoubleWell, Dynamics, Peaks, PushAround

ALL = [Peaks(), DoubleWell(), PushAround()]
EACH = pytest.mark.parametrize("dynamics", ALL, ids=lambda dynamics: dynamics.task.name)


def states(dynamics: Dynamics, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    reach = torch.tensor(dynamics.reach).double()
    at = 2 * torch.rand(count, dynamics.state_dim, generator=generator).double() - 1
    return 0.9 * at * reach


@EACH
def test_gradients_are_those_of_finite_differences(dynamics: Dynamics) -> None:
    s, generator = states(dynamics, 6), torch.Generator().manual_seed(1)
    if isinstance(dynamics, PushAround):  # in touch: pusher and block, block and obstacle, all
        s[0, :4] = torch.tensor([0.0, -0.38, 0.02, -0.2])
        s[1, :4] = torch.tensor([-0.5, -0.5, 0.0, -0.06])
        s[2, :4] = torch.tensor([0.05, -0.24, 0.0, -0.06])
    a = 1.8 * torch.rand(6, dynamics.action_dim, generator=generator).double() - 0.9
    assert torch.autograd.gradcheck(dynamics.step, (s.requires_grad_(), a.requires_grad_()))


@EACH
def test_a_batch_of_any_shape_is_each_alone_and_time_goes_on(dynamics: Dynamics) -> None:
    s = states(dynamics, 6).view(2, 3, -1)
    a = torch.full((2, 3, dynamics.action_dim), 0.5).double()
    after, reward = dynamics.step(s, a)
    alone, own = dynamics.step(s[1, 2], a[1, 2])
    torch.testing.assert_close(after[1, 2], alone)
    torch.testing.assert_close(reward[1, 2], own)
    gone = after[..., -1] - s[..., -1]
    torch.testing.assert_close(gone, torch.full_like(gone, 1 / dynamics.task.episode_length))


def test_the_mass_keeps_its_energy_but_for_damping_and_cannot_be_pushed_straight_over() -> None:
    well = DoubleWell()
    start = torch.tensor([1.0, -0.01, 0.0]).double()
    for swung in (False, True):
        s, furthest = start, 1.0
        for _ in range(well.task.episode_length):
            s, _ = well.step(s, s[1:2].sign() if swung else -torch.ones(1).double())
            furthest = min(furthest, float(s[0]))
        assert (furthest < -0.5) == swung
    s, energies = torch.tensor([1.4, 0.0, 0.0]).double(), []
    for _ in range(80):
        s, _ = well.step(s, torch.zeros(1).double())
        energies.append(0.5 * s[1] ** 2 + well.HEIGHT * (s[0] ** 2 - 1) ** 2)
    assert 0.5 * energies[0] < energies[-1] < 0.9 * energies[0]


def test_a_block_is_pushed_stops_slides_off_the_obstacle_and_is_never_passed_through() -> None:
    push = PushAround()
    s = torch.tensor([0.0, -0.5, 0.0, -0.2, 0.0]).double()
    up, still = torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double()
    waits, _ = push.step(s, still)
    assert (waits[2:4] - s[2:4]).norm() < 1e-3, "nothing touches it"
    for _ in range(3):
        s, _ = push.step(s, up)
    assert s[3] > -0.15, "pushed"
    radii = push.BLOCK_RADIUS + push.PUSHER_RADIUS
    for _ in range(30):
        s, _ = push.step(s, up)
        assert (s[:2] - s[2:4]).norm() > 0.6 * radii
        apart = (s[2:4] - torch.tensor(push.OBSTACLE)).norm()
        assert apart > 0.7 * (push.BLOCK_RADIUS + push.OBSTACLE_RADIUS)
    assert s[2] > 0.1, "off to the right"
    at = s[2:4].clone()
    for _ in range(5):
        s, _ = push.step(s, still)
    assert (s[2:4] - at).norm() < 0.05


@EACH
def test_the_better_mode_is_worth_more_and_is_success(dynamics: Dynamics) -> None:
    better, worse = {
        "peaks": ((-1.2, 0.9, 0.0), (1.2, 0.0, 0.0)),
        "double_well": ((-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
        "push_around": ((-0.6, 0.4, -0.6, 0.6, 0.0), (0.6, 0.4, 0.6, 0.6, 0.0)),
    }[dynamics.task.name]
    s = torch.tensor([better, worse]).double()
    assert dynamics.success(s).tolist() == [True, False]
    rewards = dynamics.step(s, torch.zeros(2, dynamics.action_dim).double())[1]
    assert rewards[0] > 1.5 * rewards[1] > 0


@EACH
@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_it_is_an_environment_of_gymnasium(dynamics: Dynamics, obs: str) -> None:
    env = gymnasium.make(IDS[dynamics.task.name], obs=obs, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    saved, action = env.unwrapped.get_state(), np.full(dynamics.action_dim, 0.7)
    first = [env.step(action)[:2] for _ in range(3)]
    env.reset(seed=1)
    env.unwrapped.set_state(saved)
    for obs_before, reward in first:
        again, own, *_ = env.step(action)
        assert np.array_equal(again, obs_before) and own == reward


@EACH
def test_pictures_show_where_things_are(dynamics: Dynamics) -> None:
    env = gymnasium.make(IDS[dynamics.task.name], render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    shown = (env.render() == BALL).all(-1)
    assert shown.any()
    row, column = np.argwhere(shown).mean(0)
    reach = dynamics.reach[0]
    x = (column + 0.5) / 256 * 2 * reach - reach
    expected = env.dynamics.objects(env._now.numpy())[0]
    assert x == pytest.approx(expected[0], abs=0.03)
    if dynamics.task.name != "double_well":  # whose height is the potential's
        assert reach - (row + 0.5) / 256 * 2 * reach == pytest.approx(expected[1], abs=0.03)
    env.step(np.ones(dynamics.action_dim))
    assert not np.array_equal(shown, (env.render() == BALL).all(-1))
