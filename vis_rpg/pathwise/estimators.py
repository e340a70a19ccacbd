"""Gradient estimators of a policy with a latent z, through a known model or without it.

With T steps, weights β and α, a return

    R(z, τ) = Σ_t r_t + β log p_φ(z|s_t,a_t) - α log π(a_t|s_t,z)

and actions a_t = a_θ(s_t, z, ε_t) of noise ε, the reparameterized policy gradient is

    ∇J = E[ R ∇ log π(z|s₁) + ∇_θ R(z, τ_θ(z, ε)) ]:

the score function for z, which has no gradient through the model, and the pathwise gradient for
actions. Without a z only the second term is left, which is trajectory optimisation; with the score
function for actions as well it is REINFORCE. The one-step case is `vis_rpg.bandit`.

T steps, B samples, S numbers of a state, A of an action, Z of z, E of an action's noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vis_rpg.agent.latent import Posterior
from vis_rpg.agent.policy import ActionPolicy
from vis_rpg.bandit.rpg import leave_one_out
from vis_rpg.envs.tasks.differentiable import Dynamics


@dataclass
class Rollout:
    """T steps of B samples."""

    states: Tensor
    """(T + 1, B, S)."""
    actions: Tensor
    """(T, B, A)."""
    rewards: Tensor
    """(T, B)."""
    log_pi: Tensor
    """log π(a|s,z), (T, B)."""


def rollout(
    dynamics: Dynamics, pi: ActionPolicy, s1: Tensor, z: Tensor, noise: Tensor, pathwise: bool
) -> Rollout:
    """Act for an episode.

    Args:
        dynamics: The model.
        pi: The action policy.
        s1: First states, (B, S).
        z: (B, Z).
        noise: (T, B, E).
        pathwise: Whether actions carry gradients, and with them states and rewards. Else they are
            held, and log π is that of the actions as they were drawn.
    """
    states, steps = [s1], []
    for own in noise:
        a, log_pi = pi(states[-1], z, own)
        if not pathwise:
            a = a.detach()
            log_pi = pi.log_prob(states[-1], z, a)
        s, reward = dynamics.step(states[-1], a)
        states.append(s)
        steps.append((a, reward, log_pi))
    return Rollout(torch.stack(states), *map(torch.stack, zip(*steps, strict=True)))


@dataclass
class Weights:
    """Of the terms of R beside the reward; all may change over training."""

    reward: float = 1.0
    consistency: float = 0.0
    """β."""
    entropy: float = 0.0
    """α."""


def action_loss(
    run: Rollout, z: Tensor, p_phi: Posterior, weights: Weights, pathwise: bool
) -> tuple[Tensor, Tensor]:
    """Return a loss whose gradient is minus that of J in π(a|s,z), and R, (B,), without gradient.

    Args:
        run: By the same `pathwise`.
        z: (B, Z).
        p_phi: Held by who asks for the gradient: p_φ learns from `posterior_loss`.
        weights: Of the terms of R.
        pathwise: Whether by the pathwise gradient, or by the score function with the rewards to
            come and a leave-one-out baseline.
    """
    latent = z.expand(len(run.actions), -1, -1)
    told = p_phi.log_prob(latent, run.states[:-1], run.actions)
    each = weights.reward * run.rewards + weights.consistency * told - weights.entropy * run.log_pi
    total = each.sum(0)
    if pathwise:
        return -total.mean(), total.detach()
    to_come = each.detach().flip(0).cumsum(0).flip(0)
    return -(leave_one_out(to_come) * run.log_pi).sum(0).mean(), total.detach()


def latent_loss(returned: Tensor, log_prior: Tensor) -> Tensor:
    """Return a loss whose gradient is minus that of J in π(z|s₁), by the score function.

    Args:
        returned: R, (B,), without gradient.
        log_prior: log π(z|s₁), (B,).
    """
    return -(leave_one_out(returned) * log_prior).mean()


def posterior_loss(run: Rollout, z: Tensor, p_phi: Posterior) -> Tensor:
    """Return minus log p_φ(z|s,a) of what was done."""
    latent = z.expand(len(run.actions), -1, -1)
    return -p_phi.log_prob(latent, run.states[:-1].detach(), run.actions.detach()).mean()
