"""Soft actor-critic (Haarnoja et al. 2018), without a model; SAC(R) where there is a bonus.

Shapes: B batch, S features, A action.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from perception.base import Perception
from vis_rpg.agent.batch import Batch, Noise
from vis_rpg.agent.losses import LossOutput, detached, masked_mean, next_obs, relabelled_reward
from vis_rpg.agent.networks import EnsembleMLP
from vis_rpg.agent.rpg import Agent
from vis_rpg.agent.world_model import Critics


def critic_loss(agent: Agent, batch: Batch, noise: Noise) -> LossOutput:
    """Compute the mean over the batch of sum_i (Q_i(s, a) - y)² / 2.

    y = r + γ (min_i Q'_i(s', a') - alpha log π(a'|s')), Q' the target critics, a' of the policy.

    Returns:
        The loss; carries s, (B, S).
    """
    model, target = agent.model, agent.target
    reward, metrics = relabelled_reward(agent, batch)
    s = model.encode({k: v[: model.perception.history] for k, v in batch.obs_sequence.items()})
    next_s = target.encode(next_obs(batch.obs_sequence))
    a, log_pi = agent.pi(next_s, batch.z.expand(1, -1, -1), noise.target[0])
    value = target.q(next_s, a, batch.z).min(0).values - agent.log_alpha.exp() * log_pi
    y = (reward + agent.gamma * (1 - batch.terminated) * value).detach()
    q = model.q(s, batch.action, batch.z)
    error = 0.5 * ((q - y) ** 2).sum(0)
    metrics |= {
        "q_loss": masked_mean(error, batch.mask),
        "q_mean": masked_mean(q.mean(0), batch.mask),
        "q_target": masked_mean(y, batch.mask),
        "reward_mean": masked_mean(reward, batch.mask),
    }
    return LossOutput({"model": (error * batch.mask).mean()}, detached(metrics), (s[0].detach(),))


def policy_loss(agent: Agent, s: Tensor, batch: Batch, noise: Noise) -> LossOutput:
    """Compute the mean of alpha log π(a|s) - min_i Q_i(s, a), and alpha's loss.

    Args:
        agent: The agent.
        s: Features (B, S).
        batch: From replay.
        noise: Of the update.
    """
    a, log_pi = agent.pi(s, batch.z, noise.policy[0])
    q = agent.model.q(s[None], a[None], batch.z).min(0).values[0]
    alpha = agent.log_alpha.exp()
    losses = {
        "policy": (alpha.detach() * log_pi - q).mean(),
        "alpha": (alpha * (agent.action_dim - log_pi.detach())).mean(),
    }
    metrics = {"policy_loss": losses["policy"], "entropy": -log_pi.mean(), "alpha": alpha}
    return LossOutput(losses, detached(metrics))


class CriticModel(Critics):
    """What SAC has in place of a world model: twin critics Q(s, a) on perception's features.

    Args:
        perception: Encodes observations.
        action_dim: A.
        hidden: Width of hidden layers.
    """

    def __init__(self, perception: Perception, action_dim: int, hidden: int) -> None:
        shape = perception.feature_shape
        super().__init__(perception, nn.Flatten(-len(shape)), math.prod(shape))
        self.Q = EnsembleMLP(2, self.state_dim + action_dim, hidden)


class SAC(Agent):
    """SAC's policy and critics; replay, bonus, seeds and updates are RPG's, with a horizon of 1."""

    model_loss = staticmethod(critic_loss)
    policy_loss = staticmethod(policy_loss)

    def make_model(  # type: ignore[override]  # what only RPG's losses need is not there
        self, perception: Perception, terminates: bool
    ) -> CriticModel:
        """Make the critics."""
        return CriticModel(perception, self.action_dim, self.config.hidden_dim)
