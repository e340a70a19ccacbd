"""One perception for the agent, another for the exploration bonus."""

from __future__ import annotations

import torch
from torch import Tensor

from perception.base import ObsSequence, Perception, StoredObs


class SeparateBonus(Perception):
    """Features of one perception, and the RND's input of another, whose columns replay stores too.

    So agents that see differently can be compared under the same bonus.

    Args:
        seen: For the agent.
        bonus: For the RND alone; it carries a history of equal length, and has no parameters that
            are trained.
    """

    def __init__(self, seen: Perception, bonus: Perception) -> None:
        super().__init__()
        assert seen.history == bonus.history
        self.seen, self.bonus = seen, bonus
        self.history, self.feature_shape = seen.history, seen.feature_shape
        self.rnd_input_dim, self.rnd_objects = bonus.rnd_input_dim, bonus.rnd_objects
        self.pretraining_frames = seen.pretraining_frames + bonus.pretraining_frames
        self.storage = seen.storage | bonus.storage

    def acting(self) -> Perception:
        """Return the agent's perception."""
        return self.seen.acting()

    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        """Store and carry what both do."""
        given = obs, previous_action, is_first, hidden
        seen, seen_hidden = self.seen.to_storage(*given)
        bonus, bonus_hidden = self.bonus.to_storage(*given)
        return seen | bonus, seen_hidden | bonus_hidden

    def features(self, obs_sequence: ObsSequence) -> Tensor:
        """Compute the agent's features."""
        return self.seen.features(obs_sequence)

    @torch.no_grad()
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Compute the bonus's input."""
        return self.bonus.rnd_input(obs_sequence)
