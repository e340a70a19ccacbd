"""Planning in the world model at each step: MPPI with the policy's proposals, as in TD-MPC.

Shapes: B environments, N sequences of actions each, H horizon, S latent state, A action, Z latent
variable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vis_rpg.agent.losses import discounts
from vis_rpg.agent.rpg import Agent


@torch.no_grad()
def plan(
    agent: Agent, s: Tensor, z: Tensor, mean: Tensor, generator: torch.Generator, explore: bool
) -> tuple[Tensor, Tensor]:
    """Choose actions by MPPI (Williams et al. 2017), as TD-MPC does (Hansen et al. 2022).

    In each round N sequences are drawn, normal about a mean, the policy's own among them. The
    elites, those of the greatest value, make the next mean and std, weighted by
    exp(temperature (value - greatest value)): with temperature 0 this is the cross-entropy method.

    Args:
        agent: With `config.planner`.
        s: (B, S).
        z: (B, Z).
        mean: Mean of the first round (H, B, A).
        generator: Of the sequences.
        explore: Whether to take the first action of one elite, drawn by weight, plus noise of their
            std, instead of their mean.

    Returns:
        Actions (B, A), and the mean of the next step's first round.
    """
    config = agent.config.planner
    assert config is not None
    H, B, A = mean.shape
    N, own = config.samples, config.policy_samples

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=s.device)

    def repeat(x: Tensor, count: int) -> Tensor:
        return x.repeat_interleave(count, 0)

    proposed = policy_sequences(
        agent, repeat(s, own), repeat(z, own), normal(H, B * own, agent.pi.noise_dim)
    )
    proposed = proposed.view(H, B, own, A)
    wide_s, wide_z = repeat(s, N), repeat(z, N)
    std = torch.full_like(mean, config.max_std)
    for _ in range(config.rounds):
        drawn = mean[:, :, None] + std[:, :, None] * normal(H, B, N - own, A)
        a = torch.cat([proposed, drawn.clamp(-1, 1)], 2)
        value = sequence_values(
            agent, wide_s, wide_z, a.flatten(1, 2), normal(B * N, agent.pi.noise_dim)
        )
        best = value.view(B, N).topk(config.elites)
        weight = (config.temperature * (best.values - best.values[:, :1])).softmax(1)
        elites = a.gather(2, best.indices[None, :, :, None].expand(H, -1, -1, A))
        share = weight[None, :, :, None]
        mean = (share * elites).sum(2)
        variance = (share * (elites - mean[:, :, None]) ** 2).sum(2)
        std = variance.sqrt().clamp(config.min_std, config.max_std)
    action = mean[0]
    if explore:
        row = torch.multinomial(weight, 1, generator=generator)
        chosen = elites[0].gather(1, row[:, :, None].expand(-1, -1, A))[:, 0]
        action = (chosen + std[0] * normal(B, A)).clamp(-1, 1)
    return action, torch.cat([mean[1:], torch.zeros_like(mean[:1])])


def policy_sequences(agent: Agent, s: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    """Run π(a|s,z) in the model: (B, S), (B, Z), noise (H, B, A) -> actions (H, B, A)."""
    h, actions = agent.model.initial(s), []
    for step in noise:
        actions.append(agent.pi(s, z, step)[0])
        h, s, _ = agent.model.step(h, actions[-1])
    return torch.stack(actions)


def sequence_values(agent: Agent, s: Tensor, z: Tensor, a: Tensor, noise: Tensor) -> Tensor:
    """Return predicted rewards of actions (H, B, A), and the smaller critic's value after them.

    Args:
        agent: The agent.
        s: (B, S).
        z: (B, Z).
        a: (H, B, A).
        noise: Of the action that the last value is of, (B, A).

    Returns:
        (B,).
    """
    model = agent.model
    states, reward = model.unroll(s, a)
    last, _ = agent.pi(states[-1], z, noise)
    value = model.q(states[-1:], last[None], z).min(0).values
    discount = discounts(agent, model, torch.cat([s[None], states]))
    return (discount * torch.cat([reward, value])).sum(0)
