"""SAC: its losses equal those worked out sample by sample, and it trains as RPG does."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import vis_rpg
from tests.runs import facts, trained
from tests.small import Seen, agent, batch, changed, learner, noise_of, weights
from vis_rpg.agent.losses import relabelled_reward
from vis_rpg.analysis.diagnosis import diagnose
from vis_rpg.baselines.sac import SAC, critic_loss, policy_loss
from vis_rpg.errors import UserError


def small(*words: str, **given: bool) -> SAC:
    made = agent("agent=sac", *words, **given).double()
    assert isinstance(made, SAC)
    for p in made.target.Q.parameters():
        p.data += 0.1 * torch.randn_like(p)  # so that they are not the online critics
    return made


@pytest.mark.parametrize("bonus", ["object_rnd", "none"])
def test_the_critics_descend_on_the_soft_bellman_error(bonus: str) -> None:
    of = small(f"exploration={bonus}", terminates=True)
    if of.rnd is not None:
        of.rnd.updates += of.rnd.warmup  # until then the bonus is 0
        of.rnd.update_stats(torch.rand(8))
    data = batch(of)
    data.terminated[0, :2] = 1
    noise = noise_of(of, data)()
    loss, metrics, [s] = critic_loss(of, data, noise)
    reward, x = relabelled_reward(of, data)[0][0], data.obs_sequence["x"]
    expected = torch.zeros(())
    for i in range(6):
        mean, std = of.pi.distribution(x[1, i : i + 1], data.z[i : i + 1])
        a = torch.tanh(mean + std * noise.target[0, 0, i])
        pi = Independent(TransformedDistribution(Normal(mean, std), [TanhTransform()]), 1)
        soft = of.target.Q(torch.cat([x[1, i : i + 1], a], 1)).min() - of.log_alpha.exp() * (
            pi.log_prob(a)
        )
        y = reward[i] + of.config.gamma * (0 if i < 2 else 1) * soft
        q = of.model.Q(torch.cat([x[:1, i], data.action[:, i]], 1))
        expected = expected + ((q - y) ** 2).sum() / 2 / 6
    torch.testing.assert_close(loss["model"], expected.squeeze())
    torch.testing.assert_close(s, x[0])
    assert ("bonus" in metrics) == (bonus == "object_rnd")
    assert reward.equal(data.reward[0]) == (bonus == "none")


def test_the_policy_ascends_the_smaller_critic_and_its_entropy() -> None:
    of = small()
    data = batch(of)
    noise = noise_of(of, data)()
    s = data.obs_sequence["x"][0]
    losses = policy_loss(of, s, data, noise).losses
    mean, std = of.pi.distribution(s, data.z)
    a = torch.tanh(mean + std * noise.policy[0])
    pi = Independent(TransformedDistribution(Normal(mean, std), [TanhTransform()]), 1)
    q = of.model.Q(torch.cat([s, a], 1)).min(0).values
    expected = (of.log_alpha.exp() * pi.log_prob(a) - q).mean()
    torch.testing.assert_close(losses["policy"], expected)
    [slope] = torch.autograd.grad(losses["alpha"], [of.log_alpha])
    torch.testing.assert_close(slope, of.log_alpha.exp() * (2 - pi.log_prob(a).mean()))


def test_an_update_moves_every_part_and_the_encoder_by_the_critics_alone() -> None:
    of = agent("agent=sac", perception=Seen(trained=True))
    data = batch(of)
    learns = learner(of)
    before = weights(of)
    learns.update(data, noise_of(of, data)())
    moved = {".".join(name.split(".")[:2]) for name in changed(before, of)}
    learned = {"model.perception", "target.perception", "model.Q", "target.Q", "pi.net"}
    assert moved == {*learned, "log_alpha", "rnd.predictor", "rnd.updates"}


@pytest.mark.parametrize("words", [("task=maze",), ("task=maze", "obs=pixels", "perception=cnn")])
def test_it_trains_is_loaded_and_acts(words: tuple[str, ...]) -> None:
    run = trained(*words, "agent=sac")
    assert all(line["q_loss"] >= 0 for line in facts(run)[-2:])
    actor, env = vis_rpg.load(run)
    assert isinstance(actor.agent, SAC)
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(actor.act(obs))
    with pytest.raises(UserError, match="agent=sac: there is no world model to diagnose"):
        diagnose(actor, env, 2, 0)
    env.close()
