"""The inputs of one update: a batch from replay, and noise.

Shapes: B batch, H horizon, A action, Z latent variable, M draws of z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
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
        rnd_obs: Stored observations (history, B', ...) from the whole replay, to train the RND.
        first: Stored observations (history, B'', ...) of episode starts; None where π(z|s₁) is
            fixed.
    """

    obs_sequence: ObsSequence
    action: Tensor
    reward: Tensor
    terminated: Tensor
    mask: Tensor
    z: Tensor
    rnd_obs: ObsSequence
    first: ObsSequence | None = None


@dataclass
class Noise:
    """Noise for one update: standard normal, but `z_first` and `z` as the latent space draws them.

    Attributes:
        target: (H + 1, H, B, A).
        policy: (H + 1, B, A).
        first: (H + 1, M, B'', A); None where π(z|s₁) is fixed.
        z_first: (M, B'', Z); None where π(z|s₁) is fixed.
        z: z for the first segments of the batch in place of those that acted, (B', Z); None for
            none.
    """

    target: Tensor
    policy: Tensor
    first: Tensor | None = None
    z_first: Tensor | None = None
    z: Tensor | None = None


def relabelled(batch: Batch, noise: Noise) -> Batch:
    """Return the batch with z of its first segments replaced by those of the noise, if any.

    Transitions do not depend on z given the action, so they teach Q(s, a, z) of every z.
    """
    if noise.z is None:
        return batch
    kept = batch.z[..., noise.z.shape[-2] :, :]
    return replace(batch, z=torch.cat([noise.z, kept], dim=-2))


for _type in (Batch, Noise):  # so that vmap looks into them
    pytree.register_dataclass(_type)
