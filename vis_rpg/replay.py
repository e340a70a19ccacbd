"""Replay: one ring of observations in order of arrival, linked into episodes, with everything a segment needs beside each.

A row holds an observation and, once it is known, what was done there. The last observation of an episode is a row of its own in which
nothing was done. Rows are linked to the row before and after in their episode, so that a segment that runs past the end of an episode (or
of what has been seen so far) stays on its last row, masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perception.percept import Window
from vis_rpg.agent import Batch
from vis_rpg.chunks import Chunks, rows_of
from vis_rpg.errors import UserError


class Replay:
    """Holds `capacity` observations on `device`. Frames are stored once; stacks of `history` are built when sampled."""

    def __init__(
        self,
        capacity: int,
        stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        action_dim: int,
        z_dim: int,
        history: int,
        envs: int,
        device: torch.device,
    ) -> None:
        self.capacity, self.history, self.envs, self.device = capacity, history, envs, device
        shapes = {f"obs.{name}": spec for name, spec in stored.items()}
        shapes |= {
            "action": ((action_dim,), torch.float32),
            "reward": ((), torch.float32),
            "terminated": ((), torch.float32),
            "z": ((z_dim,), torch.float32),
            "acted": ((), torch.bool),
            "before": ((), torch.int64),
            "after": ((), torch.int64),
        }
        self.rows = {name: torch.zeros(capacity, *shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}
        self.head = 0
        """Rows ever written; row i lies at i % capacity."""
        self.open = torch.zeros(envs, dtype=torch.int64)
        """For each environment the number (not modulo) of its newest row, where nothing has been done yet."""
        # Starts of segments, in order of age: a ring with its oldest and newest ends. Sizes live on the device too, for sampling there.
        self.starts = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.oldest = self.newest = 0
        self.range = torch.zeros(2, dtype=torch.int64, device=device)
        self.firsts: list[int] = []
        # A start is given up this many rows before it would be overwritten, so that the row before it is there as long as it is.
        self.margin = 4 * envs + 4
        if capacity < 2 * self.margin:
            raise UserError(f"agent.replay_capacity={capacity}: too small for agent.envs={envs}; give at least {2 * self.margin}")

    def __len__(self) -> int:
        """Transitions that segments can start at."""
        return self.newest - self.oldest

    @staticmethod
    def bytes_needed(capacity: int, stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]], action_dim: int, z_dim: int) -> int:
        """Memory of a full ring, in bytes."""
        observation = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in stored.values())
        return capacity * (observation + 4 * (action_dim + z_dim + 2) + 8 * 3 + 2)

    # Writing ----------------------------------------------------------------------------------------------------------------------------

    def begin(self, obs: Window, envs: Tensor) -> None:
        """First observations {name: (N', ...)} of new episodes of these environments (N',)."""
        rows = self._append(obs, len(envs))
        at = rows % self.capacity
        self.rows["before"][at.to(self.device)] = at.to(self.device)
        self.open[envs] = rows
        self.firsts.extend(rows.tolist())

    def add(self, action: Tensor, reward: Tensor, terminated: Tensor, z: Tensor, next_obs: Window) -> None:
        """What all environments (N, ...) did at their newest observations, what it gave, and the observations that followed."""
        done = self.open.clone()
        at = (done % self.capacity).to(self.device)
        for name, value in (("action", action), ("reward", reward), ("terminated", terminated), ("z", z)):
            self.rows[name][at] = value.to(self.device, self.rows[name].dtype)
        self.rows["acted"][at] = True
        self.open = self._append(next_obs, len(done))
        after = (self.open % self.capacity).to(self.device)
        self.rows["after"][at] = after
        self.rows["before"][after] = at
        places = torch.arange(self.newest, self.newest + len(done), device=self.device) % self.capacity
        self.starts[places] = (done.sort().values % self.capacity).to(self.device)
        self.newest += len(done)
        self._update_range()

    def _append(self, obs: Window, count: int) -> Tensor:
        """Write new rows that nothing has been done at yet; their numbers (count,)."""
        numbers = torch.arange(self.head, self.head + count)
        at = (numbers % self.capacity).to(self.device)
        if self.head + count + self.margin > self.capacity:
            given_up = ((numbers + self.margin) % self.capacity).to(self.device)
            self.oldest += int(self.rows["acted"][given_up].sum())
            self._update_range()
        for name, value in obs.items():
            self.rows[f"obs.{name}"][at] = value.to(self.device)
        self.rows["acted"][at] = False
        self.rows["after"][at] = at
        self.head += count
        horizon = self.head - self.capacity + self.margin
        while self.firsts and self.firsts[0] < horizon:
            self.firsts.pop(0)
        return numbers

    def _update_range(self) -> None:
        self.range.copy_(torch.tensor([self.oldest, self.newest]))

    # Sampling ---------------------------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, horizon: int, familiar: int, first: int, generator: torch.Generator) -> Batch:
        """Segments that start at transitions drawn uniformly, `familiar` observations for the RND, and `first` episode starts (0: none)."""
        row = self._draw(batch_size, generator)
        before = self._back(row)
        track = [row]
        for _ in range(horizon):
            track.append(self.rows["after"][track[-1]])
        rows = torch.stack(track)  # (H + 1, B)
        segment = rows[:-1]
        mask = self.rows["acted"][segment].float()
        # where nothing was done the row repeats itself, with whatever an earlier lap left there
        action, reward, terminated = (self.rows[name][segment] for name in ("action", "reward", "terminated"))
        return Batch(
            window=self._observations(torch.cat([before, rows])),
            action=action * mask.unsqueeze(-1),
            reward=reward * mask,
            terminated=terminated * mask,
            mask=mask,
            z=self.rows["z"][row],
            familiar=self._with_history(self.rows["after"][self._draw(familiar, generator)]),
            first=self._first(first, generator) if first else None,
        )

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows (count,) of transitions, uniform over all that are held; the size is read on the device."""
        uniform = torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)
        oldest, newest = self.range
        return self.starts[(oldest + (uniform * (newest - oldest)).long()) % self.capacity]

    def _first(self, count: int, generator: torch.Generator) -> Window:
        if not self.firsts:
            raise UserError(f"agent.replay_capacity={self.capacity}: holds no episode's beginning; agent.latent.prior=learned needs some")
        numbers = torch.tensor(self.firsts, device=self.device) % self.capacity
        pick = torch.randint(len(numbers), (count,), generator=generator, device=self.device)
        return self._with_history(numbers[pick])

    def _back(self, row: Tensor) -> Tensor:
        """The history - 1 rows before (history - 1, B), oldest first; an episode's first row stands for what was before it."""
        rows = [row]
        for _ in range(self.history - 1):
            rows.insert(0, self.rows["before"][rows[0]])
        return torch.stack(rows)[:-1]

    def _with_history(self, row: Tensor) -> Window:
        return self._observations(torch.cat([self._back(row), row[None]]))

    def _observations(self, rows: Tensor) -> Window:
        return {name[4:]: value[rows] for name, value in self.rows.items() if name.startswith("obs.")}

    # Checkpoints ------------------------------------------------------------------------------------------------------------------------

    def save(self, chunks: Chunks) -> dict[str, Any]:
        """Append the rows that will not change any more to the chunks; returns the rest, which belongs into the checkpoint itself."""
        settled = int(self.open.min()) if self.head else 0
        start = max(chunks.end, self.head - self.capacity)
        if settled > start:
            chunks.append(self._numbered(start, settled), start, settled)
        chunks.spans = [span for span in chunks.spans if span[1] > self.head - self.capacity]
        tail_start = max(settled, self.head - self.capacity)
        return {
            "spans": [list(span) for span in chunks.spans],
            "tail_start": tail_start,
            "tail": self._numbered(tail_start, self.head),
            "head": self.head,
            "open": self.open,
            "firsts": list(self.firsts),
        }

    def load(self, state: dict[str, Any], chunks: Chunks) -> None:
        """Continue from `save`; the same segments are drawn with the same generator."""
        self.head, self.open, self.firsts = state["head"], state["open"].clone(), list(state["firsts"])
        chunks.spans = [(start, end) for start, end in state["spans"]]
        for span in chunks.spans:
            self._place(chunks.read(span), span[0])
        self._place(state["tail"], state["tail_start"])
        numbers = torch.arange(max(0, self.head - self.capacity + self.margin), self.head)
        at = (numbers % self.capacity).to(self.device)
        starts = at[self.rows["acted"][at]]
        self.starts[: len(starts)] = starts
        self.oldest, self.newest = 0, len(starts)
        self._update_range()

    def _numbered(self, start: int, end: int) -> dict[str, Tensor]:
        return rows_of(self.rows, torch.arange(start, end) % self.capacity)

    def _place(self, rows: dict[str, Tensor], start: int) -> None:
        numbers = torch.arange(start, start + len(rows["acted"]))
        held = numbers >= self.head - self.capacity
        at = (numbers[held] % self.capacity).to(self.device)
        for name, value in rows.items():
            self.rows[name][at] = value[held].to(self.device)
