"""Losses of Algorithm 1 (Eq. 2, 3, 4) as functions of an agent's parameters, a batch and noise.

Symbols: s latent state, z latent variable, a action, r reward, r' = -alpha log π(a|s,z) + beta log
p_φ(z|s,a) (the reward that Eq. 2 adds to the task's), f encoder, h dynamics, R reward model, Q
critics, γ discount, H horizon, V_est the value estimate of Eq. 3.
Shapes: B batch, T time, S latent state, A action, Z latent variable, M width of the RND's input.
Sequences are time-major: (T, B, ...).

Nothing here waits for the device or depends on the kind of observation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.base import ObsSequence
from vis_rpg import distributed
from vis_rpg.agent.batch import Batch, Noise, is_relabelled
from vis_rpg.agent.curiosity import Curiosity
from vis_rpg.agent.world_model import WorldModel

if TYPE_CHECKING:
    from vis_rpg.agent.rpg import Agent

Metrics = dict[str, Tensor]


class LossOutput(NamedTuple):
    """The result of a loss function.

    Attributes:
        losses: One scalar per part of the agent that descends on it.
        metrics: Scalars to log, without gradient.
        carried: Inputs of the next function in an update, without gradient.
    """

    losses: dict[str, Tensor]
    metrics: Metrics
    carried: tuple[Tensor, ...] = ()


class Rollout(NamedTuple):
    """A rollout of the policy in the model from s_0.

    Attributes:
        s: (H + 1, B, S).
        a: (H + 1, B, A).
        log_pi: log π(a|s,z), (H + 1, B).
        log_p_z: log p_φ(z|s,a), (H + 1, B); zero without a latent.
        value: V_est by each critic, (critics, B).
    """

    s: Tensor
    a: Tensor
    log_pi: Tensor
    log_p_z: Tensor
    value: Tensor


# Object RND ---------------------------------------------------------------------------------------


def rnd_loss(agent: Agent, batch: Batch) -> LossOutput:
    """Compute the RND's prediction error on observations from the whole replay.

    Bonuses of transitions learn from those of the batch instead.

    Returns:
        The loss; carries errors (B',).
    """
    assert agent.rnd is not None
    if isinstance(agent.rnd, Curiosity):
        x = agent.read_rnd_input(batch.obs_sequence)
        own, error = agent.rnd.loss(x, batch.action)
        loss, error = masked_loss(own, batch.mask), error[0]  # the first step is never masked
    else:
        error = agent.rnd.prediction_error(agent.read_rnd_input(batch.rnd_obs))[0]
        loss = error.mean()
    return LossOutput({"rnd": loss}, {"rnd_loss": loss.detach()}, (error.detach(),))


def update_rnd_stats(agent: Agent, error: Tensor) -> tuple[()]:
    """Add the errors (B',) of an update to the RND's statistics, in place."""
    assert agent.rnd is not None
    agent.rnd.update_stats(error)
    return ()


# Equation 4: the loss of ψ ------------------------------------------------------------------------


def model_loss(agent: Agent, batch: Batch, noise: Noise) -> LossOutput:
    """Compute L_ψ of Eq. 4.

    Means over latent dimensions and batch, sums over H steps divided by H, masked after an
    episode's end.

    Returns:
        The loss; carries s_0 = f(o_0), (B, S).
    """
    model, weights = agent.model, agent.config.loss_weights
    reward, metrics = relabelled_reward(agent, batch)
    state_target, q_target = model_targets(agent, batch, reward, noise.target)
    first = {k: value[: model.perception.history] for k, value in batch.obs_sequence.items()}
    s0 = model.encode(first)[0]
    s, r = model.unroll(s0, batch.action)
    if model.critic == "q":
        z = batch.z if batch.later_z is None else batch.later_z
        q = model.q(torch.cat([s0[None], s[:-1]]), batch.action, z)
    else:
        q = model.q(s, batch.action, batch.z)
    q_error = (q - q_target) ** 2
    losses = {
        "state": ((s - state_target) ** 2).mean(-1),
        "reward": (r - reward) ** 2,
        "q": q_error.mean(0) if agent.config.q_reduce == "mean" else q_error.sum(0),
    }
    total = (
        weights.state * losses["state"]
        + weights.reward * losses["reward"]
        + weights.q * losses["q"]
    )
    if model.continues is not None:
        logits = model.continues(s.detach()).squeeze(-1)
        total = total + F.binary_cross_entropy_with_logits(
            logits, 1 - batch.terminated, reduction="none"
        )
    metrics |= {f"{name}_loss": (value * batch.mask).mean() for name, value in losses.items()}
    metrics |= {
        "q_mean": masked_mean(q.mean(0), batch.mask),
        "q_target": masked_mean(q_target, batch.mask),
        "reward_mean": masked_mean(reward, batch.mask),
    }
    return LossOutput({"model": (total * batch.mask).mean()}, detached(metrics), (s0.detach(),))


def relabelled_reward(agent: Agent, batch: Batch) -> tuple[Tensor, Metrics]:
    """Return the scaled task reward plus the next observation's bonus, (H, B), and metrics."""
    reward = batch.reward * agent.reward_scale
    if agent.rnd is None:
        return reward, {}
    if isinstance(agent.rnd, Curiosity):
        bonus = agent.rnd.bonus(agent.read_rnd_input(batch.obs_sequence), batch.action)
    else:
        bonus = agent.rnd.bonus(agent.read_rnd_input(next_obs(batch.obs_sequence)))
    metrics = {"bonus": masked_mean(bonus, batch.mask), "bonus_max": bonus.max()}
    return reward + agent.bonus_scale * bonus, metrics


@torch.no_grad()
def model_targets(
    agent: Agent, batch: Batch, reward: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the targets of Eq. 4 with the target model and the online policy.

    Args:
        agent: The agent.
        batch: From replay.
        reward: (H, B).
        noise: (H + 1, H, B, A).

    Returns:
        ng(f(o')), (H, B, S), and ng(r + γ V_est(o', z)), (H, B); for critics V ng(V_est(o', z)).
    """
    next_states = agent.target.encode(next_obs(batch.obs_sequence))
    H, B = reward.shape
    z, left = batch.z.repeat(H, 1), None
    if batch.later_z is not None:
        z, left = batch.later_z.flatten(0, 1), steps_left(agent, batch).flatten()
    rollout = imagine(
        agent,
        agent.target,
        next_states.flatten(0, 1),
        z,
        noise.flatten(1, 2),
        agent.config.entropy_in_target,
        left=left,
    )
    value = rollout.value.min(0).values.view(H, B)
    value = (1 - batch.terminated) * value
    if agent.model.critic == "v":
        return next_states, value
    return next_states, reward + agent.gamma * value


def steps_left(agent: Agent, batch: Batch) -> Tensor:
    """Return how many steps each step's z acts for after it, (H, B)."""
    assert batch.left is not None
    every = agent.config.latent.every
    since = torch.arange(len(batch.action), device=batch.left.device)[:, None] - batch.left
    return torch.where(since < 0, -since, every - since % every) - 1


# Equation 3: V_est --------------------------------------------------------------------------------


def imagine(
    agent: Agent,
    model: WorldModel,
    s: Tensor,
    z: Tensor,
    noise: Tensor,
    entropy: bool = True,
    critics: int = 2,
    left: Tensor | None = None,
) -> Rollout:
    """Run π(a|s,z) in the model for H steps and estimate the value of s by Eq. 3.

    The k-step estimate is sum over i < k of γ^i (r_i + r'_i), plus γ^k (Q(s_k, a_k, z) + r'_k);
    V_est averages k = 1..H with weights 0.97^k. Critics V stand for Q + r'.

    Args:
        agent: The policy, p_φ and alpha.
        model: The online or the target model.
        s: (B, S).
        z: (B, Z).
        noise: (H + 1, B, A).
        entropy: Whether r' includes -alpha log π.
        critics: 1 for the first critic alone, 2 for both.
        left: Steps (B,) until z is drawn anew by π(z|s, z before), and then every K steps; None
            where it stays. Values of critics are those of any number of steps left.
    """
    h = model.initial(s)
    states, actions, log_pis, embeddings, latents = [s], [], [], [], []
    for k, step in enumerate(noise):
        if left is not None:
            step, drawn = step.split([agent.pi.noise_dim, z.shape[-1]], -1)
            due = (left <= k) & ((k - left) % agent.config.latent.every == 0)
            z = torch.where(due.unsqueeze(-1), agent.pi_z(states[-1], drawn, z), z)
            latents.append(z)
        a, log_pi = agent.pi(states[-1], z, step)
        actions.append(a)
        log_pis.append(log_pi)
        if len(actions) < len(noise):
            h, s, embedding = model.step(h, a)
            states.append(s)
            embeddings.append(embedding)
    s, a, log_pi = torch.stack(states), torch.stack(actions), torch.stack(log_pis)
    z = z.expand(*s.shape[:-1], -1) if left is None else torch.stack(latents)
    log_p_z = agent.p_phi.log_prob(z, s, a)
    extra = policy_reward(agent, log_pi, log_p_z, entropy)  # r'_0 .. r'_H
    r = model.reward(s[1:], torch.stack(embeddings))  # r_0 .. r_{H-1}
    value = model.q(s[1:], a[1:], z[1:], critics)  # of s_1 .. s_H
    if model.critic == "q":
        value = value + extra[1:]
    discount = discounts(agent, model, s)
    steps = torch.cumsum(discount[:-1] * (r + extra[:-1]), 0)
    estimates = steps + discount[1:] * value  # (critics, H, B)
    # No matrix product, which autocast would round.
    value = (agent.step_weights.unsqueeze(1) * estimates).sum(1)
    return Rollout(s, a, log_pi, log_p_z, value)


def policy_reward(agent: Agent, log_pi: Tensor, log_p_z: Tensor, entropy: bool = True) -> Tensor:
    """Return r' of Eq. 2, (T, B), without a gradient into alpha.

    Args:
        agent: The agent.
        log_pi: log π(a|s,z), (T, B).
        log_p_z: log p_φ(z|s,a), (T, B).
        entropy: Whether r' includes -alpha log π.
    """
    consistency = agent.config.beta * log_p_z
    return consistency - agent.log_alpha.exp().detach() * log_pi if entropy else consistency


def discounts(agent: Agent, model: WorldModel, s: Tensor) -> Tensor:
    """Return γ^k times the probability that the episode has not ended by step k, (H + 1, B)."""
    discount = agent.gamma * torch.ones_like(s[1:, :, 0])
    if model.continues is not None:
        discount = discount * torch.sigmoid(model.continues(s[1:])).squeeze(-1)
    return torch.cat([torch.ones_like(discount[:1]), torch.cumprod(discount, 0)])


# Equation 2: the joint policy ---------------------------------------------------------------------


def policy_loss(agent: Agent, s: Tensor, batch: Batch, noise: Noise) -> LossOutput:
    """Compute the losses of π, p_φ and alpha on one imagined rollout.

    Alpha is tuned to the entropy -|A|.

    Args:
        agent: The agent.
        s: Start states (B, S).
        batch: From replay, for its z.
        noise: Of the update.
    """
    rollout = imagine(agent, agent.model, s, batch.z, noise.policy, critics=1, left=batch.left)
    alpha = agent.log_alpha.exp()
    losses = {"policy": -rollout.value[0].mean()}
    if agent.space.dim:
        # The cross entropy of the z that acted: fresh z say nothing of where z leads.
        acted = (~is_relabelled(batch, noise)).to(s.dtype)
        losses["posterior"] = -masked_loss(rollout.log_p_z.mean(0), acted)
    metrics = {f"{part}_loss": value for part, value in losses.items()}
    losses["alpha"] = (alpha * (agent.action_dim - rollout.log_pi.detach())).mean()
    metrics |= {"entropy": -rollout.log_pi.mean(), "alpha": alpha}
    return LossOutput(losses, detached(metrics))


def latent_policy_loss(agent: Agent, batch: Batch, noise: Noise) -> LossOutput:
    """Compute the loss of π(z|s₁) where z is drawn, on fresh z.

    It is the policy gradient of V_est(s₁, z) plus alpha_z KL(π(z|s₁) ‖ fixed prior).

    Eq. 2 pays the consistency beta log p_φ in every step, log π(z|s₁) only once. An entropy bonus
    has no anchor: either it loses to the consistency, and π(z|s₁) narrows before any reward is
    known, or it drives π(z|s₁) far beyond the z that the other networks were trained with.
    """
    assert batch.first is not None and noise.first is not None and noise.z_first is not None
    M, before, left = agent.Z_DRAWS, None, None
    with torch.no_grad():
        s = agent.model.encode(batch.first)[0].repeat(M, 1)
    if batch.first_z is not None:
        before = batch.first_z.repeat(M, 1)
        left = torch.full_like(s[:, 0], agent.config.latent.every)
    outputs = agent.pi_z.outputs(s, before)
    assert outputs is not None
    z = agent.space.sample(noise.z_first.flatten(0, 1), outputs).detach()
    with torch.no_grad():
        rollout = imagine(agent, agent.model, s, z, noise.first.flatten(1, 2), critics=1, left=left)
        value = rollout.value[0].view(M, -1)
        # Leave-one-out baseline.
        advantage = (value - (value.sum(0) - value) / (M - 1)).flatten()
    divergence = agent.space.divergence(outputs).mean()
    loss = agent.entropy_z * divergence - (advantage * agent.space.log_prior(z, outputs)).mean()
    entropy = agent.space.entropy(outputs).mean()
    metrics = {"latent_policy_loss": loss, "latent_entropy": entropy}
    return LossOutput({"latent_policy": loss}, detached(metrics))


def next_obs(obs_sequence: ObsSequence) -> ObsSequence:
    """Drop the first observation of a sequence."""
    return {name: value[1:] for name, value in obs_sequence.items()}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over steps before an episode's end."""
    return (values * mask).sum() / mask.sum()


def masked_loss(values: Tensor, mask: Tensor) -> Tensor:
    """Average over what is not masked, 0 if all is.

    Of several processes the mean of their losses is that average over all of them: each divides by
    the mean of their counts.
    """
    count = distributed.mean(mask.sum())
    return (values * mask).sum() / count.clamp(min=1 / distributed.world_size())


def detached(metrics: Metrics) -> Metrics:
    """Return the metrics without gradient."""
    return {name: value.detach() for name, value in metrics.items()}
