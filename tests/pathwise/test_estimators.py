"""The policy gradients through a model: closed forms, finite differences, and no bias."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vis_rpg.agent.latent import Posterior, make_latent
from vis_rpg.agent.policy import ActionPolicy, GaussianPolicy, log_normal
from vis_rpg.envs.tasks.differentiable import Dynamics, Peaks
from vis_rpg.envs.tasks.task import Task
from vis_rpg.pathwise.estimators import Weights, action_loss, latent_loss, rollout

BOTH = pytest.mark.parametrize("pathwise", [True, False], ids=["pathwise", "score"])


class Quartic(Dynamics):
    """One step with two optima: the reward of a is -(a² - 1)²."""

    task, state_dim, action_dim = Task("quartic", (), episode_length=1), 1, 1

    def step(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return s, -((a**2 - 1) ** 2).squeeze(-1)


class Modes(ActionPolicy):
    """A normal for each z, whose mean and std are the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.4, -0.9], dtype=torch.float64))
        self.log_std = nn.Parameter(torch.tensor([-1.0, -0.5], dtype=torch.float64))

    def forward(self, s: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        std = (z @ self.log_std).exp()[:, None]
        return (z @ self.mean)[:, None] + std * noise, log_normal(noise, std).sum(-1)

    def log_prob(self, s: Tensor, z: Tensor, a: Tensor) -> Tensor:
        std = (z @ self.log_std).exp()[:, None]
        return log_normal((a - (z @ self.mean)[:, None]) / std, std).sum(-1)


def flat(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def agrees(each: list[Tensor], expected: Tensor) -> None:
    """The mean of independent estimates is as expected, to 4 standard errors, which are small."""
    found = torch.stack(each)
    error = found.std(0) / math.sqrt(len(found))
    assert (error < 0.05 * expected.norm() + 1e-12).all(), "too noisy to tell"
    assert ((found.mean(0) - expected).abs() < 4 * error + 1e-12).all()


@BOTH
def test_on_a_quartic_with_two_optima_both_equal_the_closed_form(pathwise: bool) -> None:
    torch.manual_seed(0)
    pi, alpha = Modes(), 0.3
    logits = torch.tensor([0.2, -0.3], dtype=torch.float64, requires_grad=True)
    m, v = pi.mean, (2 * pi.log_std).exp()
    # Moments of a normal, and its entropy.
    value = -(m**4 + 6 * m**2 * v + 3 * v**2 - 2 * m**2 - 2 * v + 1)
    value = value + alpha * (pi.log_std + 0.5 * math.log(2 * math.pi * math.e))
    own = [pi.mean, pi.log_std, logits]
    expected = flat((logits.softmax(0) * value).sum(), own)

    p_phi, space = Posterior(make_latent("none", 0, 0.0), 1, 1, 4), make_latent("categorical", 2, 0)
    each = []
    for _ in range(20):
        s1, noise = torch.zeros(5000, 1).double(), torch.randn(1, 5000, 1).double()
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        z = space.sample(space.noise((5000,), generator).double(), logits.detach())
        run = rollout(Quartic(), pi, s1, z, noise, pathwise)
        loss, returned = action_loss(run, z, p_phi, Weights(entropy=alpha), pathwise)
        prior = latent_loss(returned, space.log_prior(z, logits.expand(5000, 2)))
        each.append(-torch.cat([flat(loss, own[:2]), flat(prior, own[2:])]))
    agrees(each, expected)


class ShortPeaks(Peaks):
    """Three steps of the plane with two peaks, in double precision."""

    STRIDE = 0.6


@pytest.fixture
def parts() -> tuple[GaussianPolicy, Posterior, Tensor, Tensor, Tensor]:
    """A policy, a posterior, and first states, z and noise of 10^5 episodes of 3 steps."""
    torch.manual_seed(0)
    pi = GaussianPolicy(3, 2, 4, 8, 1.0).double()
    p_phi = Posterior(make_latent("categorical", 4, 0.0), 3, 2, 8).double()
    generator, count = torch.Generator().manual_seed(0), 100_000
    s1 = ShortPeaks().start((count,), generator).double()
    z = nn.functional.one_hot(torch.arange(count) % 4, 4).double()
    return pi, p_phi, s1, z, torch.randn(3, count, 2, generator=generator).double()


WEIGHTS = Weights(reward=2.0, consistency=0.5, entropy=0.2)


def test_the_pathwise_gradient_is_that_of_the_return_by_finite_differences(parts) -> None:
    pi, p_phi, s1, z, noise = parts
    s1, z, noise = s1[:500], z[:500], noise[:, :500]

    def objective() -> Tensor:
        run = rollout(ShortPeaks(), pi, s1, z, noise, True)
        return action_loss(run, z, p_phi, WEIGHTS, True)[0]

    weight = pi.net.layers[1].weight
    (found,) = torch.autograd.grad(objective(), [weight])
    for at in ((0, 0), (3, 5), (7, 2)):
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                weight[at] += step
                values.append(objective())
            weight[at] += 1e-5
        assert float(found[at]) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-5)


def test_the_score_function_has_the_mean_of_the_pathwise_gradient_over_several_steps(parts) -> None:
    pi, p_phi, s1, z, noise = parts
    own, each = [pi.net.layers[2].weight, pi.net.layers[0].bias], {True: [], False: []}
    for rows in torch.arange(len(z)).chunk(20):
        for pathwise, found in each.items():
            run = rollout(ShortPeaks(), pi, s1[rows], z[rows], noise[:, rows], pathwise)
            loss, _ = action_loss(run, z[rows], p_phi, WEIGHTS, pathwise)
            found.append(flat(loss, own))
    expected = torch.stack(each[True]).mean(0)
    difference = torch.stack(each[False]) - torch.stack(each[True])
    error = difference.std(0) / math.sqrt(len(difference))
    assert error.max() < 0.05 * expected.norm()
    assert (difference.mean(0).abs() < 4 * error).all()


def test_held_actions_carry_no_gradient_through_the_model(parts) -> None:
    pi, _, s1, z, noise = parts
    run = rollout(ShortPeaks(), pi, s1[:9], z[:9], noise[:, :9], False)
    assert not run.rewards.requires_grad and not run.states.requires_grad
    assert run.log_pi.requires_grad
    held = rollout(ShortPeaks(), pi, s1[:9], z[:9], noise[:, :9], True)
    torch.testing.assert_close(held.log_pi, run.log_pi)
    torch.testing.assert_close(held.rewards, run.rewards)
