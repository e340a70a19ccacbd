"""REINFORCE (Williams, 1992) on the bandit of Fig. 2B and 4, with two policies.

One Gaussian gets stuck in a local optimum (Sec. 5.1); a softmax over bins does not, and needs as
many bins for each number of an action.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vis_rpg.bandit.rpg import Modes, leave_one_out
from vis_rpg.config import ReinforceConfig, SoftmaxConfig
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
        advantage = leave_one_out(bandit_reward(REACH * u.tanh()))
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


class SoftmaxReinforce(nn.Module):
    """Equal bins on [-1, 1], all as likely at first, learned by REINFORCE.

    Actions of a bin are a tanh-normal whose std is a quarter of the bin.
    """

    def __init__(self, config: SoftmaxConfig) -> None:
        """Make the policy from the section `softmax` of the config."""
        super().__init__()
        self.config = config
        self.logits = nn.Parameter(torch.zeros(config.bins))
        centre = (torch.arange(config.bins) + 0.5) * (2 / config.bins) - 1
        self.mean = centre.atanh()
        self.std = (0.25 * 2 / config.bins) / (1 - centre**2)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.lr)

    def update(self, generator: torch.Generator) -> None:
        """Take one Adam step on fresh actions."""
        batch, probability = self.config.batch_size, self.logits.detach().softmax(0)
        chosen = torch.multinomial(probability, batch, replacement=True, generator=generator)
        u = self.mean[chosen] + self.std[chosen] * torch.randn(batch, generator=generator)
        self.optimizer.zero_grad()
        advantage = leave_one_out(bandit_reward(REACH * u.tanh()))
        (-(advantage * self.logits.log_softmax(0)[chosen]).mean()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def modes(self) -> Modes:
        """Return the bins."""
        return Modes(self.logits.softmax(0), self.mean, self.std)
