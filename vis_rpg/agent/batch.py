"""What an update learns from: a batch of replay and noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from perception.base import Window


@dataclass
class Batch:
    """Segments of H steps from replay, and single observations for the RND and for π(z|s₁)."""

    window: Window
    """Stored observations (history - 1 + H + 1, B, ...)."""
    action: Tensor
    """(H, B, A)."""
    reward: Tensor
    """(H, B), as the environment gave it."""
    terminated: Tensor
    """(H, B): 1 where the step ended the task truly."""
    mask: Tensor
    """(H, B): 0 from the end of the episode on."""
    z: Tensor
    """(B, Z): the latent variable that was acting."""
    familiar: Window
    """Stored observations (history, B', ...) drawn from the whole replay, for training the RND."""
    first: Window | None = None
    """Stored observations (history, B'', ...) of episode starts; None where π(z|s₁) is fixed."""


@dataclass
class Noise:
    """Standard normal noise for one update; z_first as the latent space draws it."""

    target: Tensor
    """(H + 1, H, B, A)."""
    policy: Tensor
    """(H + 1, B, A)."""
    first: Tensor | None = None
    """(H + 1, M, B'', A), with M draws of z per episode start."""
    z_first: Tensor | None = None
    """(M, B'', Z)."""
