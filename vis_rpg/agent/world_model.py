"""The world model ψ of Section 4.3.1: encoder f, dynamics h, reward R, twin critics Q or V.

Shapes: B batch, T time, H horizon, S latent state, A action, Z latent variable, E action embedding.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from perception.base import ObsSequence, Perception
from vis_rpg.agent.networks import GRU, EnsembleMLP, mlp


class Critics(nn.Module):
    """An encoder s = f(o) and twin critics Q(s, a, z) or V(s, z); a subclass makes the critics.

    Args:
        perception: Encodes observations.
        f: From perception's features to s.
        state_dim: S.
        critic: q for Q(s, a, z), v for V(s, z).
    """

    Q: EnsembleMLP

    def __init__(
        self,
        perception: Perception,
        f: nn.Module,
        state_dim: int,
        critic: Literal["q", "v"] = "q",
    ) -> None:
        super().__init__()
        self.perception, self.f, self.state_dim, self.critic = perception, f, state_dim, critic

    def encode(self, obs_sequence: ObsSequence) -> Tensor:
        """Encode stored observations (history - 1 + T, B, ...): s = f(o), (T, B, S)."""
        return self.f(self.perception.features(obs_sequence))

    def q(self, s: Tensor, a: Tensor, z: Tensor, critics: int = 2) -> Tensor:
        """Evaluate one critic or both: (T, B, S), (T, B, A), (B, Z) -> (critics, T, B).

        Critics V ignore the action.
        """
        z = z.expand(*s.shape[:-1], -1)
        x = (s, a, z) if self.critic == "q" else (s, z)
        return self.Q(*(t.flatten(0, -2) for t in x), members=critics).view(critics, *s.shape[:-1])


class WorldModel(Critics):
    """The networks s = f(o); s', r = h(s, a), R(s', a); Q(s, a, z), or V(s, z).

    The dynamics carry a GRU state that is initialised from s.

    Args:
        perception: Encodes observations.
        action_dim: A.
        z_dim: Z.
        state_dim: S.
        hidden: Width of hidden layers.
        terminates: Whether to predict that episodes continue.
        critic: q for Q(s, a, z), v for V(s, z).
    """

    def __init__(
        self,
        perception: Perception,
        action_dim: int,
        z_dim: int,
        state_dim: int,
        hidden: int,
        terminates: bool,
        critic: Literal["q", "v"] = "q",
    ) -> None:
        shape = perception.feature_shape
        f = nn.Sequential(nn.Flatten(-len(shape)), mlp(math.prod(shape), state_dim, hidden))
        super().__init__(perception, f, state_dim, critic)
        self.embed = mlp(action_dim, hidden, hidden)
        self.initial = mlp(state_dim, hidden, hidden)
        self.cell = GRU(hidden, hidden)
        self.decode = mlp(hidden, state_dim, hidden)
        self.R = mlp(state_dim + hidden, 1, hidden)
        self.Q = EnsembleMLP(2, state_dim + (critic == "q") * action_dim + z_dim, hidden)
        self.continues = mlp(state_dim, 1, hidden) if terminates else None

    def unroll(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the results of known actions; products over time are taken at once.

        Args:
            s: Start states (B, S).
            actions: (H, B, A).

        Returns:
            Next states (H, B, S) and rewards (H, B).
        """
        embedding = self.embed(actions)
        states = self.decode(self.cell.unroll(embedding, self.initial(s)))
        return states, self.reward(states, embedding)

    def step(self, h: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one imagined step.

        Args:
            h: State of the GRU (B, hidden).
            a: (B, A).

        Returns:
            The next h, the next state (B, S), and the action embedding (B, E).
        """
        embedding = self.embed(a)
        h = self.cell.step(embedding, h)
        return h, self.decode(h), embedding

    def reward(self, next_state: Tensor, embedding: Tensor) -> Tensor:
        """Predict rewards from next states (..., S) and action embeddings (..., E): -> (...)."""
        return self.R(next_state, embedding).squeeze(-1)
