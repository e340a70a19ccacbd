"""The inputs of one update: a batch from replay, and noise.

Shapes: B batch, H horizon, A action, Z latent variable, M draws of z, E the policy's
noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from perception.base import ObsSequence


@dataclass
class Batch:
    """Segments of H steps from replay, and single observations for the RND and π(z|s₁).

    Attributes:
        obs_sequence: Stored observations (history - 1 + H + 1, B, ...).
        action: (H, B, A).
        reward: (H, B), as the environment gave it.
        terminated: (H, B): 1 where the step ended the task.
        mask: (H, B): 0 from the end of the episode on.
        z: (B, Z): the latent variable that was acting.
        paid: (B,) bool: whether a positive reward came in the segment or later in its episode.
        rnd_obs: Stored observations (history, B', ...) from the whole replay, to train the RND.
        first: Stored observations (history, B'', ...) of where z is drawn, episode starts among
            them; None where π(z|s₁) is fixed.
        later_z: (H, B, Z), the z of each step, the first one's too; None where z is drawn once an
            episode, like the following.
        left: (B,) steps for which z acts, from the first one on.
        first_z: (B'', Z), the z before the one that is drawn at `first`, 0 at an episode's start.
    """

    obs_sequence: ObsSequence
    action: Tensor
    reward: Tensor
    terminated: Tensor
    mask: Tensor
    z: Tensor
    paid: Tensor
    rnd_obs: ObsSequence
    first: ObsSequence | None = None
    later_z: Tensor | None = None
    left: Tensor | None = None
    first_z: Tensor | None = None


@dataclass
class Noise:
    """Noise for one update: standard normal, but `z_first` and `z` as the latent space draws them.

    Where z is drawn anew within episodes, E counts that noise too, the last Z numbers.

    Attributes:
        target: (H + 1, H, B, E).
        policy: (H + 1, B, E).
        first: (H + 1, M, B'', E); None where π(z|s₁) is fixed.
        z_first: (M, B'', Z); None where π(z|s₁) is fixed.
        z: Fresh z for the first segments of the batch, (B', Z); None for none.
    """

    target: Tensor
    policy: Tensor
    first: Tensor | None = None
    z_first: Tensor | None = None
    z: Tensor | None = None


def is_relabelled(batch: Batch, noise: Noise) -> Tensor:
    """Return which segments get fresh z, (B,) bool: of the first ones those that were paid."""
    count = 0 if noise.z is None else noise.z.shape[-2]
    return batch.paid & (torch.arange(batch.paid.shape[-1], device=batch.paid.device) < count)


def relabelled(batch: Batch, noise: Noise) -> Batch:
    """Return the batch with fresh z in its segments that were paid, if the noise has some.

    Transitions do not depend on z given the action, so they teach Q(s, a, z) of every z. Where an
    episode was paid, all z are to know; elsewhere each z keeps its own past, and explores apart.
    """
    if noise.z is None:
        return batch
    fresh = F.pad(noise.z, (0, 0, 0, batch.z.shape[-2] - noise.z.shape[-2]))
    chosen = is_relabelled(batch, noise).unsqueeze(-1)
    batch = replace(batch, z=torch.where(chosen, fresh, batch.z))
    if batch.later_z is not None and batch.left is not None:
        steps = torch.arange(batch.later_z.shape[-3], device=batch.z.device)  # M agents may lead
        acts = (steps[:, None] < batch.left.unsqueeze(-2)).unsqueeze(-1)
        change = chosen.unsqueeze(-3) & acts
        batch.later_z = torch.where(change, fresh.unsqueeze(-3), batch.later_z)
    return batch


for _type in (Batch, Noise):  # so that vmap looks into them
    pytree.register_dataclass(_type)
