"""z drawn anew every K steps: in acting, in replay, and in every value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agent.test_rpg import slow_value
from tests.runs import comparable, differences, lines, trained
from tests.small import agent, batch, changed, config, learner, noise_of, weights
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.batch import Batch, relabelled
from vis_rpg.agent.losses import imagine, model_loss, steps_left
from vis_rpg.agent.rpg import Agent
from vis_rpg.checks import check
from vis_rpg.errors import UserError
from vis_rpg.training.sampler import stack
from vis_rpg.training.trainer import Trainer

EVERY = 3
LEARNED = ("agent.latent.prior=learned",)


def made(*words: str) -> Agent:
    return agent(f"agent.latent.every={EVERY}", *words).double()


def with_redraws(of: Agent, left: list[int]) -> Batch:
    """Segments whose first z acts for `left` steps; later ones are drawn as acting draws them."""
    data = batch(of, size=len(left))
    data.left = torch.tensor(left)
    zs = [data.z]
    for k in range(1, len(data.action)):
        due = (k >= data.left) & ((k - data.left) % EVERY == 0)
        zs.append(torch.where(due[:, None], torch.randn_like(data.z), zs[-1]))
    data.later_z = torch.stack(zs)
    if data.first is not None:
        data.first_z = torch.randn(4, of.space.dim).double()
    return data


def test_acting_draws_z_every_three_steps_and_at_an_episode_s_first() -> None:
    actor = Actor(agent(f"agent.latent.every={EVERY}"), envs=2)
    obs, seen, left = np.ones((2, 5), np.float32), [], []
    for step in range(10):
        if step == 4:
            actor.on_reset(np.array([1]))
        actor.observe(obs)
        actor.select_action(explore=True)
        seen.append(actor.z.clone())
        left.append(actor.left.tolist())
    assert [row[0] for row in left] == [3, 2, 1, 3, 2, 1, 3, 2, 1, 3]
    assert [row[1] for row in left] == [3, 2, 1, 3, 3, 2, 1, 3, 2, 1]
    for row in (0, 1):
        for step in range(1, 10):
            new = left[step][row] == EVERY
            assert torch.equal(seen[step][row], seen[step - 1][row]) != new


def test_a_given_z_acts_through_the_whole_episode() -> None:
    actor = Actor(agent(f"agent.latent.every={EVERY}"))
    actor.reset(np.full(12, 0.5))
    for _ in range(8):
        actor.act(np.ones(5, np.float32))
        assert torch.equal(actor.z, torch.full((1, 12), 0.5))


def test_a_learned_prior_sees_the_z_before_within_an_episode() -> None:
    of = agent(f"agent.latent.every={EVERY}", *LEARNED)
    asked: list[Tensor] = []
    forward = of.pi_z.forward

    def listen(s1: Tensor, noise: Tensor, before: Tensor | None = None) -> Tensor:
        assert before is not None
        asked.append(before.clone())
        return forward(s1, noise, before)

    of.pi_z.forward = listen  # type: ignore[method-assign]
    actor = Actor(of)
    for _ in range(4):
        actor.observe(np.ones((1, 5), np.float32))
        actor.select_action(explore=True)
        acted = actor.z.clone()
    assert not asked[0].any()
    assert asked[3].any()
    assert not torch.equal(acted, asked[3])


@pytest.mark.parametrize("words", [(), ("agent.latent.kind=categorical", "agent.latent.dim=4")])
def test_v_est_is_equation_3_with_the_z_of_each_step(words: tuple[str, ...]) -> None:
    of = made("agent.beta=0.5", "agent.alpha=0.3", "agent.horizon=4", *words)
    data, left = batch(of), torch.tensor([0, 1, 2, 3, 1, 2])
    s = torch.randn(6, 16).double()
    noise = of.draw_noise(6, 0, torch.Generator().manual_seed(0)).policy.double()
    z = [[data.z[b]] for b in range(6)]
    for b in range(6):
        for k in range(5):
            drawn = of.space.sample(noise[k, b : b + 1, 2:])[0]
            new = k in {int(left[b]) + EVERY * n for n in range(3)}
            z[b].append(drawn if new else z[b][-1])
    zs = torch.stack([torch.stack(own[1:]) for own in z], 1)
    imagined = imagine(of, of.model, s, data.z, noise, left=left)
    expected = slow_value(of, of.model, s, zs, noise[..., :2])
    torch.testing.assert_close(imagined.value, expected, rtol=1e-6, atol=1e-6)


def test_steps_left_are_those_of_acting() -> None:
    of = made("agent.horizon=8")
    data = with_redraws(of, [1, 2, 3])
    for b, first in enumerate((1, 2, 3)):
        acting, left = [], first
        for _ in range(8):
            acting.append(left - 1)
            left = left - 1 if left > 1 else EVERY
        assert steps_left(of, data)[:, b].tolist() == acting


def test_q_is_asked_of_each_step_s_own_z() -> None:
    of = made()
    data = with_redraws(of, [1, 2, 3, 3])
    noise = noise_of(of, data)()
    loss = model_loss(of, data, noise).losses["model"]
    data.later_z = data.later_z.clone()
    data.later_z[-1, 0] += 1.0
    assert not torch.equal(loss, model_loss(of, data, noise).losses["model"])
    data.z = data.z + 1.0  # which the first row of later_z stands for
    again = model_loss(of, data, noise).losses["model"]
    data.z = data.z - 1.0
    torch.testing.assert_close(again, model_loss(of, data, noise).losses["model"])


def test_a_fresh_z_replaces_the_old_one_until_the_next_is_drawn() -> None:
    of = made("agent.latent.relabel=1.0")
    data = with_redraws(of, [1, 2, 3, 3])
    noise = noise_of(of, data)()
    new = relabelled(data, noise)
    for b, left in enumerate((1, 2, 3, 3)):
        for k in range(len(data.action)):
            fresh = bool(data.paid[b]) and k < left
            expected = noise.z[b] if fresh else data.later_z[k, b]
            assert torch.equal(new.later_z[k, b], expected)


def test_agents_side_by_side_get_the_fresh_z_that_each_gets_alone() -> None:
    of = made("agent.latent.relabel=1.0")
    batches = [with_redraws(of, [1, 2, 3, 3]) for _ in range(3)]  # as many as steps
    noises = [noise_of(of, data, seed)() for seed, data in enumerate(batches)]
    alone = [relabelled(data, noise) for data, noise in zip(batches, noises, strict=True)]
    together = relabelled(stack(batches), stack(noises))
    for seed, data in enumerate(alone):
        assert torch.equal(together.later_z[seed], data.later_z)
        assert torch.equal(together.z[seed], data.z)


def test_an_update_moves_every_part_with_a_learned_prior() -> None:
    of = made(*LEARNED)
    data = with_redraws(of, [1, 2, 3, 1, 2, 3])
    before = weights(of)
    learner(of).update(data, noise_of(of, data)())
    moved = {name.rpartition(".layers")[0] or name for name in changed(before, of)}
    assert {"pi_z.net", "pi.net", "p_phi.net", "model.R"} <= moved


@pytest.mark.parametrize("words", [(), LEARNED], ids=["fixed", "learned"])
def test_a_run_resumes_to_the_last_bit_and_replay_tells_what_acted(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    words = ("task=maze", f"agent.latent.every={EVERY}", *words)
    Trainer(config(f"out={tmp_path}", *words, "steps=150")).run()
    trainer = Trainer(config(f"out={tmp_path}", *words, "resume=true"))
    trainer.run()
    whole = trained(*words)
    assert differences(comparable(tmp_path), comparable(whole)) == []
    assert "posterior_loss" in lines(whole)[-1]
    replay = trainer.runs[0].replay
    firsts = torch.tensor(replay.numbers["firsts"])
    before = replay.storage.prev[firsts]
    acted = (before != firsts) & replay.has_action[firsts]
    begun = before == firsts
    assert bool((acted | begun).all())
    assert int(acted.sum()) > int(begun.sum())
    assert set(replay.storage.left[firsts[acted]].tolist()) == {EVERY}
    drawn = trainer.learner.sampler.draw()
    for b, left in enumerate(drawn.left.tolist()):
        z = drawn.later_z[:, b]
        for k in range(1, int(drawn.mask[:, b].sum())):
            new = k >= left and (k - left) % EVERY == 0
            assert torch.equal(z[k], z[k - 1]) != new
    if drawn.first_z is not None:
        starts = ~drawn.first_z.any(-1)
        assert 0 < int(starts.sum()) < len(starts)


@pytest.mark.parametrize("word", ["agent=mbsac", "agent.critic=v", "agent=tdmpc"])
def test_what_has_no_z_to_draw_is_told(word: str) -> None:
    with pytest.raises(UserError, match=r"agent\.latent\.every=3: draws z anew"):
        check(config("agent.latent.every=3", word))
