"""Bonuses of transitions: their errors as worked out by hand, high where nothing was seen yet, and
learned from the steps of an episode alone."""

from __future__ import annotations

import math

import pytest
import torch

from tests.runs import facts, trained
from tests.small import agent, batch, changed, learner, noise_of, weights
from vis_rpg.agent.curiosity import CURIOSITY, ICM, Disagreement
from vis_rpg.agent.losses import relabelled_reward, rnd_loss


def test_disagreement_is_the_variance_over_heads() -> None:
    torch.manual_seed(0)
    of = Disagreement(3, 2, 16, 0, 0)
    x, a = torch.randn(4, 5, 3), torch.randn(3, 5, 2)
    loss, error = of.loss(x, a)
    heads = torch.stack([head(torch.cat([x[:-1], a], -1)) for head in of.heads])
    torch.testing.assert_close(loss, ((heads - x[1:]) ** 2).mean(-1).mean(0))
    torch.testing.assert_close(error, heads.var(0).mean(-1))
    for head in of.heads[1:]:
        head.load_state_dict(of.heads[0].state_dict())
    assert not of.loss(x, a)[1].any()


def test_icm_pays_the_forward_error_in_features_that_tell_actions() -> None:
    torch.manual_seed(0)
    of = ICM(3, 2, 16, 0, 0)
    x, a = torch.randn(4, 5, 3), torch.randn(3, 5, 2)
    loss, error = of.loss(x, a)
    phi, following = of.features(x[:-1]), of.features(x[1:])
    forward = ((of.forward_model(torch.cat([phi, a], -1)) - following) ** 2).mean(-1) / 2
    inverse = ((of.inverse(torch.cat([phi, following], -1)) - a) ** 2).mean(-1)
    torch.testing.assert_close(error, forward)
    torch.testing.assert_close(loss, 0.8 * inverse + 0.2 * forward)
    assert loss.requires_grad and not error.requires_grad


@pytest.mark.parametrize("kind", sorted(CURIOSITY))
def test_what_was_never_done_is_paid_more(kind: str) -> None:
    torch.manual_seed(0)
    of = CURIOSITY[kind](2, 2, 32, 20, 0)
    optimizer = torch.optim.Adam(of.parameters(), 3e-3)

    def transitions(centre: float) -> tuple[torch.Tensor, torch.Tensor]:
        a, x = torch.rand(1, 64, 2) * 2 - 1, centre + 0.3 * torch.randn(64, 2)
        return torch.stack([x, x + torch.sin(3 * a[0])]), a

    for _ in range(400):
        loss, error = of.loss(*transitions(0.0))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        of.update_stats(error.flatten())
    seen, unseen = (of.bonus(*transitions(centre)).mean() for centre in (0.0, 4.0))
    assert unseen > seen + 1


@pytest.mark.parametrize("kind", sorted(CURIOSITY))
def test_an_update_learns_from_the_steps_of_an_episode_alone(kind: str) -> None:
    of = agent(f"exploration={kind}")
    data, garbage = batch(of), batch(of)
    data.mask[1:, 3] = garbage.mask[1:, 3] = 0
    garbage.obs_sequence["x"][2:, 3] = 1e3
    losses = [rnd_loss(of, own) for own in (data, garbage)]
    torch.testing.assert_close(losses[0].losses["rnd"], losses[1].losses["rnd"])
    assert losses[0].carried[0].shape == (6,)
    assert not relabelled_reward(of, data)[1]["bonus_max"].requires_grad
    before = weights(of)
    learns = learner(of)
    learns.update(data, noise_of(of, data)())
    moved = changed(before, of)
    assert all(name in moved for name, p in of.named_parameters() if name.startswith("rnd."))
    assert "rnd.updates" in moved


@pytest.mark.parametrize("kind", sorted(CURIOSITY))
@pytest.mark.parametrize("words", [(), ("agent=sac", "seeds=2")], ids=str)
def test_every_agent_trains_with_them(kind: str, words: tuple[str, ...]) -> None:
    run = trained("task=maze", f"exploration={kind}", *words)
    run = run / "seed-1" if words else run
    last = facts(run)[-1]
    assert math.isfinite(last["rnd_loss"]) and math.isfinite(last["bonus"])
