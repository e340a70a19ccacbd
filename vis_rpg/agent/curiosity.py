"""Bonuses of transitions, to compare RND with; they read what the RND reads, objects as encoded.

Shapes: T time, B batch, M width of what is read, A action, W width of hidden layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vis_rpg.agent.networks import MLP
from vis_rpg.agent.rnd import Bonus


class Curiosity(Bonus):
    """A bonus that is learned from, and paid for, transitions x, a -> x'.

    Args:
        input_dim: M.
        action_dim: A.
        width: W.
        warmup: As of `Bonus`.
        window: As of `Bonus`.
    """

    def __init__(
        self, input_dim: int, action_dim: int, width: int, warmup: int, window: int
    ) -> None:
        super().__init__(warmup, window)
        self.make(input_dim, action_dim, width)

    def make(self, input_dim: int, action_dim: int, width: int) -> None:
        """Make the networks."""
        raise NotImplementedError

    def loss(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the networks descend on, and the errors that are paid.

        Args:
            x: (T + 1, B, M).
            a: (T, B, A).

        Returns:
            Each (T, B).
        """
        raise NotImplementedError

    @torch.no_grad()
    def bonus(self, x: Tensor, a: Tensor) -> Tensor:
        """Return the normalised error of transitions, (T, B), for x (T + 1, B, M), a (T, B, A)."""
        return self.statistics.normalise(self.loss(x, a)[1])


class Disagreement(Curiosity):
    """The variance over an ensemble that predicts x' (Pathak et al. 2019; Plan2Explore's bonus)."""

    HEADS = 5

    def make(self, input_dim: int, action_dim: int, width: int) -> None:
        """Make the networks."""
        sizes = input_dim + action_dim, width, width, input_dim
        self.heads = nn.ModuleList(MLP(*sizes) for _ in range(self.HEADS))

    def loss(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared errors, and the variance of predictions, means over M."""
        predicted = torch.stack([head(x[:-1], a) for head in self.heads])
        error = ((predicted - x[1:]) ** 2).mean((0, -1))
        return error, predicted.detach().var(0).mean(-1)


class ICM(Curiosity):
    """The intrinsic curiosity module (Pathak et al. 2017).

    Features φ(x) are learned by predicting a from φ(x) and φ(x'); what is paid is the error of
    predicting φ(x') from φ(x) and a.
    """

    FORWARD_SHARE = 0.2
    """Of the loss; the rest is the inverse model's (the paper's β)."""

    def make(self, input_dim: int, action_dim: int, width: int) -> None:
        """Make the networks."""
        self.features = MLP(input_dim, width, width)
        self.inverse = MLP(2 * width, width, action_dim)
        self.forward_model = MLP(width + action_dim, width, width)

    def loss(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of both models, and half the squared error in features, means over W."""
        phi = self.features(x)
        inverse = ((self.inverse(phi[:-1], phi[1:]) - a) ** 2).mean(-1)
        error = 0.5 * ((self.forward_model(phi[:-1], a) - phi[1:]) ** 2).mean(-1)
        share = self.FORWARD_SHARE
        return (1 - share) * inverse + share * error, error.detach()


CURIOSITY = {"disagreement": Disagreement, "icm": ICM}
"""By `exploration.name`."""
