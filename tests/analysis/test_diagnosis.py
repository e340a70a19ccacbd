"""Diagnosis: returns that follow from rewards, errors that vanish where the agent is right."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from tests.runs import run_script, trained
from vis_rpg.analysis.diagnosis import (
    Episode,
    critic_values,
    decided_by_z,
    diagnose,
    effective_rank,
    monte_carlo_returns,
    open_loop,
    recombined_bonus,
    record_episode,
    return_correlation,
    z_accuracy,
)
from vis_rpg.training.load import load
from vis_rpg.training.logger import without_nan

BLOCKS = ("task=block_push", "steps=150")
SLOTS = ("task=block_push", "task.blocks=1", "obs=pixels", "steps=150")


class StartOfState(torch.nn.Module):
    """Reads z from the state's first numbers."""

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return s[..., :12]


def episode(length: int, **values: torch.Tensor) -> Episode:
    zero = torch.zeros(length)
    made = Episode(
        s=torch.randn(length + 1, 4),
        a=torch.rand(length, 2),
        z=torch.randn(3),
        task_reward=zero,
        bonus=zero,
        rnd_input=torch.zeros(length, 0),
        entropy_reward=zero,
        z_reward=zero,
        positions=np.zeros((length + 1, 1, 2)),
        success=False,
        last_value=torch.tensor(0.0),
    )
    return replace(made, **values)


def test_returns_of_constant_rewards_have_their_closed_form() -> None:
    ones, gamma = torch.ones(5), 0.9
    paid = episode(5, task_reward=ones, bonus=ones)  # 2 a step
    expected = [2 * (1 - gamma**k) / (1 - gamma) for k in (5, 4, 3, 2, 1)]
    assert torch.allclose(monte_carlo_returns(paid, gamma, True), torch.tensor(expected))


def test_returns_leave_out_the_first_reward_of_the_policy_and_bootstrap_at_the_end() -> None:
    ones, gamma = torch.ones(3), 0.5
    paid = episode(3, entropy_reward=ones, z_reward=2 * ones, last_value=torch.tensor(8.0))
    # G_2 = 0.5 * 8, G_1 = 0.5 * (r' + G_2), G_0 = 0.5 * (r' + G_1)
    assert monte_carlo_returns(paid, gamma, True).tolist() == [3.25, 3.5, 4.0]
    assert monte_carlo_returns(paid, gamma, False).tolist() == [2.5, 3.0, 4.0]


def test_the_density_of_a_given_action_is_that_of_its_sample() -> None:
    actor, _ = load(trained(*BLOCKS))
    s, z = torch.randn(6, 16), torch.randn(6, 12)
    with torch.no_grad():
        a, log_pi = actor.agent.pi(s, z, torch.randn(6, 2).clamp(-1, 1))
        assert torch.allclose(actor.agent.pi.log_prob(s, z, a), log_pi, atol=1e-2)


def test_a_model_has_no_error_on_its_own_predictions_and_some_on_others() -> None:
    agent = load(trained(*BLOCKS))[0].agent
    a, s0 = torch.rand(4, 2) * 2 - 1, torch.randn(1, 16)
    with torch.no_grad():
        states, rewards = agent.model.unroll(s0, a[:, None])
    s = torch.cat([s0, states[:, 0]])
    own = episode(4, s=s, a=a, task_reward=rewards[:, 0])
    error, predicted, paid = open_loop(agent, [own], 4)
    assert error.shape == (4,) and error.max() < 1e-9 and torch.allclose(predicted, paid, atol=1e-5)
    shuffled = replace(own, s=torch.cat([s0, states[:, 0].flip(0)]))
    assert open_loop(agent, [shuffled], 4)[0].max() > 0.1


def test_the_rank_of_features_counts_their_directions() -> None:
    directions = torch.linalg.qr(torch.randn(10, 3))[0]
    features = torch.randn(4000, 3) @ directions.T
    assert math.isclose(effective_rank(features + 5.0), 3.0, rel_tol=0.01)


def test_z_is_found_where_states_tell_it_and_by_chance_where_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = load(trained(*BLOCKS))[0].agent
    told, silent = [], []
    for _ in range(8):
        z = torch.randn(12)
        told.append(episode(5, s=torch.cat([z, torch.zeros(4)]).expand(6, -1), z=z))
        silent.append(replace(told[-1], s=torch.zeros(6, 16)))
    monkeypatch.setattr(agent.p_phi, "net", StartOfState())
    assert z_accuracy(agent, told) == 1.0
    assert z_accuracy(agent, silent) == pytest.approx(1 / 8)


def test_z_decides_the_share_of_the_variance_that_noise_does_not() -> None:
    rng = np.random.default_rng(0)
    by_z = rng.normal(size=(400, 1, 5, 3, 2)).repeat(4, 1)
    noise = rng.normal(size=by_z.shape)
    parts = [by_z[..., :1, :], 2 * by_z[..., 1:2, :] + noise[..., 1:2, :], noise[..., 2:, :]]
    still = np.zeros((400, 4, 5, 1, 2))
    shares = decided_by_z(np.concatenate([*parts, still], -2))
    assert np.allclose(shares[:3], [1.0, 0.8, 0.0], atol=0.03)  # 4 / (4 + 1) of the second
    assert math.isnan(shares[3])


def test_returns_are_correlated_with_the_terms_that_make_them_differ() -> None:
    ones = torch.ones(5)
    episodes = [
        episode(5, task_reward=ones, bonus=k * ones, z_reward=-0.5 * k * ones) for k in range(4)
    ]
    found = return_correlation(episodes, [monte_carlo_returns(e, 0.9, True) for e in episodes])
    assert found["bonus"] == 1.0 and found["z_reward"] == -1.0
    assert math.isnan(found["task_reward"]) and math.isnan(found["entropy_reward"])


def test_critics_v_are_compared_without_the_reward_of_the_policy_that_they_include() -> None:
    agent = load(trained(*BLOCKS, "agent.critic=v"))[0].agent
    rewards = {"entropy_reward": torch.rand(5), "z_reward": torch.rand(5)}
    one = episode(5, s=torch.randn(6, 16), z=torch.randn(12), **rewards)
    with torch.no_grad():
        v = agent.model.Q(one.s[:-1], one.z.expand(5, -1)).min(0).values
    assert torch.allclose(critic_values(agent, one), v - sum(rewards.values()), atol=1e-6)


class FirstTwoParts(torch.nn.Module):
    """Pays 1 where the first numbers of the first two of three parts differ."""

    def bonus(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(-1, (3, -1))
        return (parts[..., 0, 0] != parts[..., 1, 0]).float()


def test_recombined_objects_earn_a_bonus_where_it_tells_arrangements_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = load(trained(*BLOCKS))[0].agent
    monkeypatch.setattr(agent, "rnd", FirstTwoParts())
    numbers = torch.arange(200.0)[:, None].expand(-1, agent.model.perception.rnd_input_dim)
    assert agent.rnd.bonus(numbers).sum() == 0
    assert recombined_bonus(agent, numbers, 0) > 0.9 * agent.bonus_scale
    assert recombined_bonus(agent, torch.ones_like(numbers), 0) == 0


@pytest.mark.parametrize("overrides", [BLOCKS, SLOTS])
def test_an_episode_reads_what_the_losses_read(overrides: tuple[str, ...]) -> None:
    actor, env = load(trained(*overrides))
    one = record_episode(actor, env, seed=0)
    steps = len(one.a)
    assert steps == 60 and one.s.shape == (steps + 1, 16)
    for value in one.terms.values():
        assert value.shape == (steps,) and value.isfinite().all()
    # The model's value of the policy's rewards: r' enters with the signs of Eq. 2.
    agent = actor.agent
    with torch.no_grad():
        log_p = agent.p_phi.log_prob(one.z.expand(steps, -1), one.s[:-1], one.a)
    assert torch.allclose(one.z_reward, agent.config.beta * log_p, atol=1e-5)
    assert one.bonus.abs().max() > 0


def test_the_same_seed_gives_the_same_figures_and_other_episodes_others() -> None:
    actor, env = load(trained(*BLOCKS))
    first, again, other = (without_nan(diagnose(actor, env, 3, seed).figures) for seed in (0, 0, 1))
    assert first == again and first["q"] != other["q"]


@pytest.mark.parametrize(
    "overrides", [BLOCKS, ("task=maze", "agent=mbsac", "steps=150"), ("task=gym", "steps=450")]
)
def test_the_command_writes_figures_and_a_picture(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(*overrides)
    assert run_script(monkeypatch, "diagnose", f"run={run}", "episodes=3") == 0
    figures = json.loads((run / "diagnosis.json").read_text())
    assert figures["step"] > 0 and len(figures["state_error"]) == 12
    assert figures["bias"] == pytest.approx(figures["q"] - figures["return"], abs=1e-4)
    picture = cv2.imread(str(run / "diagnosis.png"))
    assert picture is not None and picture.shape[1] > 1000
    assert f"{run / 'diagnosis.png'}" in capsys.readouterr().out
