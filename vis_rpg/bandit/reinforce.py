"""REINFORCE (Williams, 1992) with one Gaussian on the bandit of Fig. 4.

It gets stuck in a local optimum (Sec. 5.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vis_rpg.bandit.rpg import Modes
from vis_rpg.config import ReinforceConfig
from vis_rpg.envs.tasks.bandit import REACH, bandit_reward


class GaussianReinforce(nn.Module):
    """A tanh-normal on [-1, 1] with mean 0 at first and a free std, learned by REINFORCE."""

    def __init__(self, config: ReinforceConfig) -> None:
        """Make the policy from the section `reinforce` of the config."""
        super().__init__()
        self.config = config
        self.mean = nn.Parameter(torch.zeros(()))
        self.log_std = nn.Parameter(torch.tensor(math.log(config.std)))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.lr)

    def loss(self, noise: Tensor) -> Tensor:
        """Return minus the surrogate of the policy gradient.

        The slope of tanh does not depend on the parameters once an action is drawn, so log π is
        that of the normal before it.

        Args:
            noise: (B,) standard normal; the actions are tanh(mean + std * noise).
        """
        u = (self.mean + self.log_std.exp() * noise).detach()
        reward = bandit_reward(REACH * u.tanh())
        # The baseline of each action is the mean reward of the others.
        advantage = reward - (reward.sum() - reward) / (len(reward) - 1)
        log_pi = -0.5 * ((u - self.mean) / self.log_std.exp()) ** 2 - self.log_std
        return -(advantage * log_pi).mean()

    def update(self, generator: torch.Generator) -> None:
        """Take one Adam step on fresh actions."""
        self.optimizer.zero_grad()
        self.loss(torch.randn(self.config.batch_size, generator=generator)).backward()
        self.optimizer.step()

    @torch.no_grad()
    def modes(self) -> Modes:
        """Return the one tanh-normal."""
        return Modes(torch.ones(1), self.mean.reshape(1).clone(), self.log_std.exp().reshape(1))
