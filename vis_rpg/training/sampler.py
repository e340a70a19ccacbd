"""Batches for the updates of M agents, each from its replay buffer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vis_rpg.agent.batch import Batch
from vis_rpg.training.replay_buffer import BatchSpec, ReplayBuffer, Storage


class BatchSampler:
    """Draws batches (M, ...) from M replay buffers, (...) from a single one.

    Args:
        buffers: One for each agent.
        storage: Of all buffers, (M, ...); of a single one without the axis.
        spec: The contents of a batch.
        generators: Of the random numbers, on the buffers' device.
        device: Where batches are wanted; if buffers lie elsewhere, batches are prefetched.
    """

    def __init__(
        self,
        buffers: Sequence[ReplayBuffer],
        storage: Storage,
        spec: BatchSpec,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.buffers, self.storage, self.spec = buffers, storage, spec
        self.generators = generators
        self.prefetcher = PinnedPrefetcher(device) if buffers[0].device != device else None

    def draw(self) -> Batch:
        """Draw a batch on the buffers' device."""
        spec, first = self.spec, self.buffers[0]
        pairs = zip(self.buffers, self.generators, strict=True)
        uniform = [buffer.draw(spec, generator) for buffer, generator in pairs]
        if len(uniform) == 1:
            return first.gather(first.storage, uniform[0], spec)
        return torch.vmap(lambda storage, row: first.gather(storage, row, spec))(
            self.storage, torch.stack(uniform)
        )

    def prepare(self) -> None:
        """Make a batch ready on the device, if batches are prefetched."""
        if self.prefetcher and self.prefetcher.batch is None:
            self.prefetch()

    def prefetch(self) -> None:
        """Draw the next batch and start its copy to the device, if batches are prefetched."""
        if self.prefetcher:
            self.prefetcher.fill(self.draw())

    def batch(self) -> Batch:
        """Return an update's batch, on the device: the prefetched one, or a new one."""
        if self.prefetcher is None:
            return self.draw()
        assert self.prefetcher.batch is not None
        return self.prefetcher.batch


class PinnedPrefetcher:
    """Copies batches to the device through pinned memory, into tensors that stay where they are.

    Args:
        device: Where batches are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batch: Batch | None = None
        """The batch on the device."""
        self.pinned: Batch | None = None
        self.copied: torch.cuda.Event | None = None

    def fill(self, batch: Batch) -> None:
        """Start to copy a batch after the device's pending work, without waiting for it."""
        if self.batch is None:
            cuda = self.device.type == "cuda"
            empty = torch.empty_like
            self.pinned = pytree.tree_map_only(Tensor, partial(empty, pin_memory=cuda), batch)
            self.batch = pytree.tree_map_only(Tensor, partial(empty, device=self.device), batch)
            self.copied = torch.cuda.Event() if cuda else None
        elif self.copied is not None:
            self.copied.synchronize()  # the pinned memory is read no more
        leaves = map(pytree.tree_leaves, (batch, self.pinned, self.batch))
        for source, pinned, target in zip(*leaves, strict=True):
            if source is not None:
                pinned.copy_(source)
                target.copy_(pinned, non_blocking=True)
        if self.copied is not None:
            self.copied.record()


def stack(parts: Sequence[Any]) -> Any:
    """Stack batches or noise of several agents; return those of one agent as they are."""
    if len(parts) == 1:
        return parts[0]
    return pytree.tree_map(lambda *t: None if t[0] is None else torch.stack(t), *parts)
