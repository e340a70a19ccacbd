"""Replay: one ring of observations in order of arrival, linked into episodes, with everything a
segment needs beside each.

A row holds an observation and, once it is known, what was done there. The last observation of an
episode is a row of its own in which nothing was done. Rows are linked to the row before and after
in their episode, so that a segment that runs past the end of an episode (or of what has been seen
so far) stays on its last row, masked.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perception.base import Stored, Window, sampled
from vis_rpg.agent.batch import Batch
from vis_rpg.errors import UserError
from vis_rpg.training.chunks import Chunks, rows_of
from vis_rpg.training.memory import free_addresses, free_on_host

Tables = dict[str, Tensor]
"""Everything that sampling reads, each (capacity, ...) but "bounds"; with an axis (M, ...) before
for M replays."""


@dataclass(frozen=True)
class Request:
    """What a batch is made of."""

    batch_size: int
    """Segments."""
    horizon: int
    """Their steps, H."""
    familiar: int
    """Observations for the RND."""
    first: int = 0
    """Episode starts for a learned π(z|s₁)."""


class Replay:
    """Holds `capacity` observations on `device`. Frames are stored once; stacks of `history` are
    built when sampled.

    tables: those of one of several replays side by side, from `make_tables`; by default its own.
    """

    def __init__(
        self,
        capacity: int,
        stored: Stored,
        action_dim: int,
        z_dim: int,
        history: int,
        envs: int,
        device: torch.device,
        tables: Tables | None = None,
    ) -> None:
        self.capacity, self.history, self.envs, self.device = capacity, history, envs, device
        self.tables = (
            make_tables(capacity, stored, action_dim, z_dim, device) if tables is None else tables
        )
        self.rows = {
            name: table
            for name, table in self.tables.items()
            if name not in ("starts", "firsts", "bounds")
        }
        fresh = {name for name in stored if name.startswith("fresh.")}
        self.rewritten = {
            f"obs.{name}" for name in fresh | {name.removeprefix("fresh.") for name in fresh}
        }
        """Columns whose rows may change after they have been written."""
        self.head = 0
        """Rows ever written; row i lies at i % capacity."""
        self.open = torch.zeros(envs, dtype=torch.int64)
        """For each environment the number (not modulo) of its newest row, where nothing has been
        done yet."""
        self.acted = torch.zeros(capacity, dtype=torch.bool)
        """The column of that name, on the host: writing waits for no device."""
        # Starts of segments and of episodes, in order of age: rings with their oldest and newest
        # ends, which live on the device too.
        self.oldest = self.newest = 0
        self.firsts: deque[int] = deque()
        self.newest_first = 0
        # A start is given up this many rows before it would be overwritten, so that the row before
        # it is there as long as it is.
        self.margin = 4 * envs + 4
        if capacity < 2 * self.margin:
            raise UserError(
                f"agent.replay_capacity={capacity}: too small for agent.envs={envs}; give at "
                f"least {2 * self.margin}"
            )

    def __len__(self) -> int:
        """Transitions that segments can start at."""
        return self.newest - self.oldest

    @property
    def first_held(self) -> int:
        """The number (not modulo) of the oldest row that is there."""
        return max(0, self.head - self.capacity)

    # Writing --------------------------------------------------------------------------------------

    def begin(self, obs: Window, envs: Tensor) -> None:
        """First observations {name: (N', ...)} of new episodes of these environments (N',)."""
        rows = self._append(obs, len(envs))
        at = rows % self.capacity
        self.rows["before"][at.to(self.device)] = at.to(self.device)
        self.open[envs] = rows
        places = torch.arange(self.newest_first, self.newest_first + len(rows)) % self.capacity
        self.tables["firsts"][places.to(self.device)] = at.to(self.device)
        self.firsts.extend(rows.tolist())
        self.newest_first += len(rows)
        self._update_bounds()

    def add(
        self,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        z: Tensor,
        next_obs: Window,
        envs: Tensor | None = None,
    ) -> None:
        """What all environments (N, ...), or these (N',), did at their newest observations, what it
        gave, and what they saw next.

        An episode that is cut is one of which no more is added: its last observation stays one
        where nothing was done.
        """
        which = slice(None) if envs is None else envs
        done = self.open[which].clone()
        self.acted[done % self.capacity] = True
        at = (done % self.capacity).to(self.device)
        for name, value in (
            ("action", action),
            ("reward", reward),
            ("terminated", terminated),
            ("z", z),
        ):
            self.rows[name][at] = value.to(self.device, self.rows[name].dtype)
        self.rows["acted"][at] = True
        following = self._append(next_obs, len(done))
        self.open[which] = following
        after = (following % self.capacity).to(self.device)
        self.rows["after"][at] = after
        self.rows["before"][after] = at
        places = (
            torch.arange(self.newest, self.newest + len(done), device=self.device) % self.capacity
        )
        self.tables["starts"][places] = (done.sort().values % self.capacity).to(self.device)
        self.newest += len(done)
        self._update_bounds()

    def _append(self, obs: Window, count: int) -> Tensor:
        """Write new rows that nothing has been done at yet; their numbers (count,)."""
        numbers = torch.arange(self.head, self.head + count)
        at = (numbers % self.capacity).to(self.device)
        if self.head + count + self.margin > self.capacity:
            self.oldest += int(self.acted[(numbers + self.margin) % self.capacity].sum())
            self._update_bounds()
        for name, value in obs.items():
            self.rows[f"obs.{name}"][at] = value.to(self.device)
        self.rows["acted"][at] = False
        self.acted[numbers % self.capacity] = False
        self.rows["after"][at] = at
        self.head += count
        horizon = self.head - self.capacity + self.margin
        while self.firsts and self.firsts[0] < horizon:
            self.firsts.popleft()
        return numbers

    def _update_bounds(self) -> None:
        self.tables["bounds"].copy_(
            torch.tensor(
                [self.oldest, self.newest, self.newest_first - len(self.firsts), self.newest_first]
            )
        )

    # Sampling -------------------------------------------------------------------------------------

    def sample(self, request: Request, generator: torch.Generator) -> Batch:
        """Segments that start at transitions drawn uniformly, observations for the RND drawn alike,
        and episode starts."""
        return self.gather(self.tables, self.draw(request, generator), request)

    def draw(self, request: Request, generator: torch.Generator) -> Tensor:
        """The random numbers of one batch, in [0, 1)."""
        if request.first and not self.firsts:
            raise UserError(
                f"agent.replay_capacity={self.capacity}: holds no episode's beginning; "
                "agent.latent.prior=learned needs some"
            )
        count = request.batch_size + request.familiar + request.first
        return torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)

    def gather(self, tables: Tables, uniform: Tensor, request: Request) -> Batch:
        """The batch that these random numbers choose: a function of its arguments alone, which
        waits for no device."""
        segments, familiar, first = uniform.split(
            [request.batch_size, request.familiar, request.first]
        )
        row = self._choose(tables["starts"], tables["bounds"][:2], segments)
        before = self._back(tables, row)
        track = [row]
        for _ in range(request.horizon):
            track.append(tables["after"][track[-1]])
        rows = torch.stack(track)  # (H + 1, B)
        segment = rows[:-1]
        mask = tables["acted"][segment].float()
        # where nothing was done the row repeats itself, with whatever an earlier lap left there
        action, reward, terminated = (
            tables[name][segment] for name in ("action", "reward", "terminated")
        )
        known = tables["after"][self._choose(tables["starts"], tables["bounds"][:2], familiar)]
        return Batch(
            window=self._observations(tables, torch.cat([before, rows])),
            action=action * mask.unsqueeze(-1),
            reward=reward * mask,
            terminated=terminated * mask,
            mask=mask,
            z=tables["z"][row],
            familiar=self._with_history(tables, known),
            first=self._with_history(
                tables, self._choose(tables["firsts"], tables["bounds"][2:], first)
            )
            if request.first
            else None,
        )

    def _choose(self, ring: Tensor, bounds: Tensor, uniform: Tensor) -> Tensor:
        """Rows of a ring's entries, uniform over all that are held; the bounds are read on the
        device."""
        oldest, newest = bounds[0], bounds[1]
        return ring[(oldest + (uniform * (newest - oldest)).long()) % self.capacity]

    def _back(self, tables: Tables, row: Tensor) -> Tensor:
        """The history - 1 rows before (history - 1, B), oldest first; an episode's first row stands
        for what was before it."""
        rows = [row]
        for _ in range(self.history - 1):
            rows.insert(0, tables["before"][rows[0]])
        return torch.stack(rows)[:-1]

    def _with_history(self, tables: Tables, row: Tensor) -> Window:
        return self._observations(tables, torch.cat([self._back(tables, row), row[None]]))

    @staticmethod
    def _observations(tables: Tables, rows: Tensor) -> Window:
        return {
            name: _taken(value, rows)
            for name, value in sampled(
                {k[4:]: v for k, v in tables.items() if k.startswith("obs.")}
            ).items()
        }

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self, chunks: Chunks) -> dict[str, Any]:
        """Append the rows that will not change any more to the chunks; returns the rest, which
        belongs into the checkpoint itself."""
        settled = int(self.open.min()) if self.head else 0
        start = max(chunks.end, self.first_held)
        if settled > start:
            chunks.append(self._numbered(start, settled), start, settled)
        chunks.spans = [span for span in chunks.spans if span[1] > self.head - self.capacity]
        tail_start = max(settled, self.head - self.capacity)
        return chunks.state() | {
            "tail_start": tail_start,
            "tail": self._numbered(tail_start, self.head),
            "rewritten": self._numbered(self.first_held, self.head, rewritten=True),
            "head": self.head,
            "open": self.open,
            "firsts": list(self.firsts),
        }

    def load(self, state: dict[str, Any], chunks: Chunks) -> None:
        """Continue from `save`; the same segments are drawn with the same generator."""
        self.head, self.open, self.firsts = (
            state["head"],
            state["open"].clone(),
            deque(state["firsts"]),
        )
        chunks.load_state(state)
        for span in chunks.spans:
            self._place(chunks.read(span), span[0])
        self._place(state["tail"], state["tail_start"])
        self._place(state["rewritten"], self.first_held)
        numbers = torch.arange(max(0, self.head - self.capacity + self.margin), self.head)
        at = (numbers % self.capacity).to(self.device)
        self.acted.copy_(self.rows["acted"])
        starts = at[self.rows["acted"][at]]
        self.tables["starts"][: len(starts)] = starts
        self.oldest, self.newest, self.newest_first = 0, len(starts), len(self.firsts)
        firsts = torch.tensor(self.firsts, dtype=torch.int64) % self.capacity
        self.tables["firsts"][: len(firsts)] = firsts.to(self.device)
        self._update_bounds()

    def _numbered(self, start: int, end: int, rewritten: bool = False) -> dict[str, Tensor]:
        """Rows of the columns that stay as they were written, or of those that may not."""
        columns = {
            name: value
            for name, value in self.rows.items()
            if (name in self.rewritten) == rewritten
        }
        return rows_of(columns, torch.arange(start, end) % self.capacity)

    def _place(self, rows: dict[str, Tensor], start: int) -> None:
        for name, value in rows.items():
            numbers = torch.arange(start, start + len(value))
            held = numbers >= self.head - self.capacity
            self.rows[name][(numbers[held] % self.capacity).to(self.device)] = value[held].to(
                self.device
            )


def _taken(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, which `index_select` copies as a whole where indexing goes number by number.
    Under `torch.vmap` it does so too, and then frames, which are bytes, take a fifth of the time in
    words of eight."""
    inner = table.shape[1:]
    words = table.dtype == torch.uint8 and inner.numel() % 8 == 0
    taken = (
        (table.flatten(1).view(torch.int64) if words else table)
        .index_select(0, rows.flatten())
        .unflatten(0, rows.shape)
    )
    return taken.view(torch.uint8).unflatten(-1, inner) if words else taken


def make_tables(
    capacity: int,
    stored: Stored,
    action_dim: int,
    z_dim: int,
    device: torch.device,
    count: int | None = None,
) -> Tables:
    """Empty tables of one replay, or of `count` side by side."""
    axis = () if count is None else (count,)
    tables = {
        name: torch.zeros(*axis, capacity, *shape, dtype=dtype, device=device)
        for name, (shape, dtype) in _columns(stored, action_dim, z_dim).items()
    }
    return tables | {"bounds": torch.zeros(*axis, 4, dtype=torch.int64, device=device)}


def bytes_needed(capacity: int, stored: Stored, action_dim: int, z_dim: int) -> int:
    """Memory of one replay, in bytes."""
    return capacity * sum(
        torch.Size(shape).numel() * dtype.itemsize
        for shape, dtype in _columns(stored, action_dim, z_dim).values()
    )


def choose_device(
    needed: int,
    device: torch.device,
    wanted: str,
    capacity: int,
    filled: float = 1.0,
    what: str = "replay",
) -> tuple[torch.device, str]:
    """Choose where replay lies: on `device` if it fits into four fifths of what is free there, else
    on the host.

    Args:
        needed: Bytes of all replays when they are full.
        device: The device that learns.
        wanted: "auto", or "device" or "host" for no choice.
        capacity: Observations of one replay.
        filled: The share of it that the run will fill at most. On the host memory is taken as it is
        filled.
        what: The replays, for the message.

    Returns:
        The device, and a line that says so.

    Raises:
        UserError: It does not fit into nine tenths of what is free; the message names the capacity
        that does.
    """
    on_gpu = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    gpu_fits = device.type != "cpu" and (
        wanted == "device" or (wanted == "auto" and needed <= 0.8 * on_gpu)
    )
    chosen = device if gpu_fits else torch.device("cpu")
    limits = (
        [(needed, on_gpu, "free there")]
        if gpu_fits
        else [(filled * needed, free_on_host(), "free there")]
    )
    addresses = free_addresses()
    if not gpu_fits and addresses is not None:
        limits.append((needed, addresses, "left under `ulimit -v`"))
    for taken, free, where in limits:
        if taken > 0.9 * free:
            fits = int(
                max(0.9 * free, 0.8 * on_gpu if wanted == "auto" and device.type == "cuda" else 0)
                / needed
                * capacity
            )
            raise UserError(
                f"agent.replay_capacity={capacity}: {what} would take {taken / 2**30:.2f} GiB "
                f"on {chosen}, with "
                f"{free / 2**30:.2f} GiB {where}: give "
                f"agent.replay_capacity={fits // 1000 * 1000 or fits} or less"
            )
    return (
        chosen,
        f"{needed / 2**30:.2f} GiB when full on {chosen}, {limits[0][1] / 2**30:.1f} GiB free "
        "there",
    )


def _columns(
    stored: Stored, action_dim: int, z_dim: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {f"obs.{name}": spec for name, spec in stored.items()} | {
        "action": ((action_dim,), torch.float32),
        "reward": ((), torch.float32),
        "terminated": ((), torch.float32),
        "z": ((z_dim,), torch.float32),
        "acted": ((), torch.bool),
        "before": ((), torch.int64),
        "after": ((), torch.int64),
        "starts": ((), torch.int64),
        "firsts": ((), torch.int64),
    }
