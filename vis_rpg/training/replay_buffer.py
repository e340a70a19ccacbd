"""Replay: a ring of observations in order of arrival, linked into episodes.

The last observation of an episode is a row without an action. Rows link to their neighbours in the
episode, so that a segment that runs past its end (or past the newest row) stays on the last row,
masked.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from perception.base import ObsSequence, StorageSpec, StoredObs
from vis_rpg.agent.batch import Batch
from vis_rpg.errors import UserError, require
from vis_rpg.training.chunks import Chunks, rows_of
from vis_rpg.training.memory import free_addresses, free_on_host


@dataclass(frozen=True)
class BatchSpec:
    """The contents of a batch.

    Attributes:
        batch_size: Segments, B.
        horizon: Their steps, H.
        rnd_obs: Observations for the RND, B'.
        first: Episode starts for a learned π(z|s₁), B''.
        redraws: Whether z is drawn anew within episodes.
        recent: Half of the segments and of the RND's observations are of the newest this many
            transitions; 0: all are of any.
        leading: Segments, the last of the batch, that start where no reward came yet and one
            followed in the episode; others while there is none, and in place of overwritten ones.
    """

    batch_size: int
    horizon: int
    rnd_obs: int
    first: int = 0
    recent: int = 0
    redraws: bool = False
    leading: int = 0


@dataclass
class Storage:
    """The tensors of a replay buffer, each (capacity, ...), or (M, capacity, ...) of M buffers.

    A row holds an observation and, once known, the action taken there and its results.

    Attributes:
        obs: Columns of the stored observation.
        action: (capacity, A).
        reward: (capacity,), as the environment gave it.
        terminated: (capacity,).
        z: (capacity, Z).
        left: (capacity,): steps for which z acts, this one among them; 0 where it stays.
        has_action: (capacity,) bool: whether the row has an action yet.
        paid: (capacity,) bool: whether a positive reward came at this action or later in the
            episode.
        prev: The row before in the episode; itself at an episode's first.
        next: The row after; itself where there is no action.
        starts: Ring of rows at which segments can start.
        firsts: Ring of the numbers of rows at which z is drawn: where episodes start, and within.
        leading: Ring of the numbers of rows without a positive reward that one followed on.
        bounds: (7,): oldest and newest entry of `starts`, of `firsts` and of `leading`; the oldest
            number of a row that a segment may start at.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    terminated: Tensor
    z: Tensor
    left: Tensor
    has_action: Tensor
    paid: Tensor
    prev: Tensor
    next: Tensor
    starts: Tensor
    firsts: Tensor
    leading: Tensor
    bounds: Tensor

    def row(self, index: int) -> Storage:
        """Return the storage of one of M buffers, as views."""
        return cast(Storage, pytree.tree_map(lambda x: x[index], self))

    def columns(self) -> dict[str, Tensor]:
        """Return the columns that a row keeps once the next row is written, by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NO_COLUMNS}
        return {f"obs.{name}": value for name, value in self.obs.items()} | own


NUMBERED = ("firsts", "leading")
"""Rings that hold numbers of rows."""
NO_COLUMNS = ("obs", "paid", "starts", *NUMBERED, "bounds")
pytree.register_dataclass(Storage)  # so that vmap looks into it


class ReplayBuffer:
    """Holds `capacity` observations on `device`.

    Frames are stored once; stacks of `history` are built when sampled.

    Args:
        capacity: Observations.
        spec: Columns of an observation.
        action_dim: A.
        z_dim: Z.
        history: Stored observations that features of one step need.
        envs: Environments that are stored in turn.
        device: Where the tensors lie.
        storage: From `make_storage`; None makes one.

    Raises:
        UserError: The capacity is too small for this many environments.
    """

    def __init__(
        self,
        capacity: int,
        spec: Mapping[str, StorageSpec],
        action_dim: int,
        z_dim: int,
        history: int,
        envs: int,
        device: torch.device,
        storage: Storage | None = None,
    ) -> None:
        self.capacity, self.history, self.envs, self.device = capacity, history, envs, device
        self.storage = storage or make_storage(capacity, spec, action_dim, z_dim, device)
        self.obs = self.storage.obs
        self.write_ptr = 0
        """Rows ever written; row i lies at i % capacity."""
        self.cursor = torch.zeros(envs, dtype=torch.int64)
        """For each environment the number (not modulo) of its newest row."""
        self.has_action = torch.zeros(capacity, dtype=torch.bool)
        """Host copy of the column, so that writing waits for no device."""
        self.unpaid: list[list[int]] = [[] for _ in range(envs)]
        """For each environment the numbers of its episode's rows since the last paid one."""
        # Ends of the rings `starts`, `firsts` and `leading`, which `bounds` holds too.
        self.oldest = self.newest = 0
        self.numbers: dict[str, deque[int]] = {name: deque() for name in NUMBERED}
        self.ends: dict[str, int] = dict.fromkeys(NUMBERED, 0)
        # Retire a start this many rows before it is overwritten, so that its previous row outlives
        # it, and all of its history.
        self.margin = max(4, history + 2) * envs + 4
        require(
            capacity >= 2 * self.margin,
            f"agent.replay_capacity={capacity}: too small for agent.envs={envs}; give at "
            f"least {2 * self.margin}",
        )

    def __len__(self) -> int:
        """Return the number of transitions that segments can start at."""
        return self.newest - self.oldest

    # Writing --------------------------------------------------------------------------------------

    def begin(self, obs: StoredObs, envs: Tensor) -> None:
        """Store first observations of new episodes.

        Args:
            obs: Each (N', ...).
            envs: The environments (N',).
        """
        rows = self._append(obs, len(envs))
        at = (rows % self.capacity).to(self.device)
        self.storage.prev[at] = at
        self.cursor[envs] = rows
        for env in envs.tolist():
            self.unpaid[env] = []
        self._note("firsts", rows)
        self._update_bounds()

    def add(
        self,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        z: Tensor,
        next_obs: StoredObs,
        envs: Tensor | None = None,
        left: Tensor | None = None,
    ) -> None:
        """Store one step of environments and their next observations.

        A truncated episode simply stops: its last observation never gets an action.

        Args:
            action: (N, A).
            reward: (N,), as the environment gave it.
            terminated: (N,).
            z: (N, Z).
            next_obs: Each (N, ...).
            envs: The environments (N,); None for all.
            left: Steps for which z acts, (N,), this one among them; None where it stays.
        """
        redraws = left is not None
        left = torch.zeros(len(action)) if left is None else left
        which = slice(None) if envs is None else envs
        done = self.cursor[which].clone()
        self.has_action[done % self.capacity] = True
        at, storage = (done % self.capacity).to(self.device), self.storage
        for column, value in (
            (storage.action, action),
            (storage.reward, reward),
            (storage.terminated, terminated),
            (storage.z, z),
            (storage.left, left),
        ):
            column[at] = value.to(self.device, column.dtype)
        storage.has_action[at] = True
        owners = range(self.envs) if envs is None else envs.tolist()
        self._pay(done.tolist(), reward.tolist(), owners)
        following = self._append(next_obs, len(done))
        self.cursor[which] = following
        after = (following % self.capacity).to(self.device)
        storage.next[at] = after
        storage.prev[after] = at
        places = torch.arange(self.newest, self.newest + len(done), device=self.device)
        starts = (done.sort().values % self.capacity).to(self.device)
        storage.starts[places % self.capacity] = starts
        self.newest += len(done)
        if redraws:  # waits for the device
            before = storage.prev[at]
            drawn = (storage.left[before] == 1) & (before != at)
            self._note("firsts", done[drawn.cpu()])
        self._update_bounds()

    def _note(self, name: str, rows: Tensor) -> None:
        """Add numbers of rows to a ring."""
        end = self.ends[name] + len(rows)
        places = torch.arange(self.ends[name], end) % self.capacity
        getattr(self.storage, name)[places.to(self.device)] = rows.to(self.device)
        self.ends[name], held = end, self.numbers[name]
        held.extend(rows.tolist())
        while len(held) > self.capacity:
            held.popleft()

    def _pay(self, rows: Iterable[int], rewards: Iterable[float], envs: Iterable[int]) -> None:
        """Mark the rows that lead to a positive reward."""
        paid: list[int] = []
        leading: list[int] = []
        for row, reward, env in zip(rows, rewards, envs, strict=True):
            self.unpaid[env].append(row)
            if reward > 0:
                paid += self.unpaid[env]
                leading += self.unpaid[env][:-1]
                self.unpaid[env] = []
        held = [row % self.capacity for row in paid if row >= self.write_ptr - self.capacity]
        if held:
            self.storage.paid[torch.tensor(held, device=self.device)] = True
        leading = [row for row in leading if row >= self._oldest_number]
        if leading:
            self._note("leading", torch.tensor(leading))

    def _append(self, obs: StoredObs, count: int) -> Tensor:
        """Write new rows without actions; return their numbers (count,)."""
        numbers = torch.arange(self.write_ptr, self.write_ptr + count)
        at = (numbers % self.capacity).to(self.device)
        if self.write_ptr + count + self.margin > self.capacity:
            given_up = self.has_action[(numbers + self.margin) % self.capacity]
            self.oldest += int(given_up.sum())
            self._update_bounds()
        for name, value in obs.items():
            self.obs[name][at] = value.to(self.device)
        self.storage.has_action[at] = self.storage.paid[at] = False
        self.has_action[numbers % self.capacity] = False
        self.storage.next[at] = at
        self.write_ptr += count
        for held in self.numbers.values():
            while held and held[0] < self._oldest_number:
                held.popleft()
        return numbers

    @property
    def _oldest_number(self) -> int:
        """The oldest number of a row that a segment may start at."""
        return max(0, self.write_ptr - self.capacity + self.margin)

    def _update_bounds(self) -> None:
        bounds = [self.oldest, self.newest]
        for name, held in self.numbers.items():
            bounds += [self.ends[name] - len(held), self.ends[name]]
        self.storage.bounds.copy_(torch.tensor([*bounds, self._oldest_number]))

    # Sampling -------------------------------------------------------------------------------------

    def draw(self, spec: BatchSpec, generator: torch.Generator) -> Tensor:
        """Draw the random numbers of one batch, in [0, 1).

        Raises:
            UserError: Episode starts are wanted, and the buffer holds none.
        """
        if spec.first and not self.numbers["firsts"]:
            raise UserError(
                f"agent.replay_capacity={self.capacity}: holds no episode's beginning; "
                "agent.latent.prior=learned needs some"
            )
        count = spec.batch_size + spec.rnd_obs + spec.first
        drawn = torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)
        if spec.recent:
            share = min(1.0, spec.recent / len(self))
            for start, number in ((0, spec.batch_size), (spec.batch_size, spec.rnd_obs)):
                drawn[start : start + number // 2].mul_(share).add_(1 - share)
        return drawn

    def gather(self, storage: Storage, uniform: Tensor, spec: BatchSpec) -> Batch:
        """Build the batch that random numbers choose.

        Random numbers from 0 to 1 stand for the oldest to the newest transition, at which segments
        start; the RND's observations are drawn alike. It depends on its arguments alone and waits
        for no device.

        Args:
            storage: Of this or an equal buffer.
            uniform: From `draw`.
            spec: The contents of the batch.
        """
        segments, rnd_obs, first = uniform.split([spec.batch_size, spec.rnd_obs, spec.first])
        starts = (storage.starts, storage.bounds[:2])
        row = self._transition_index(*starts, segments)
        if spec.leading:
            oldest, newest, held = storage.bounds[4:].unbind()
            own = slice(spec.batch_size - spec.leading, None)
            number = self._transition_index(storage.leading, storage.bounds[4:6], segments[own])
            # Reward comes late, so a row that is overwritten may stand behind one that is not.
            usable = (newest > oldest) & (number >= held)
            leading = torch.where(usable, number % self.capacity, row[own])
            row = torch.cat([row[: own.start], leading])
        rows = [row]
        for _ in range(spec.horizon):
            rows.append(storage.next[rows[-1]])
        sequence = torch.stack(rows)  # (H + 1, B)
        segment = sequence[:-1]
        mask = storage.has_action[segment].float()
        later = storage.next[self._transition_index(*starts, rnd_obs)]
        first_obs = first_z = later_z = left = None
        if spec.first:
            drawn_at = self._transition_index(storage.firsts, storage.bounds[2:4], first)
            drawn_at = drawn_at % self.capacity
            first_obs = self._with_history(storage, drawn_at[None])
        if spec.redraws:
            later_z, left = storage.z[segment], storage.left[row]
        if spec.redraws and spec.first:
            before = storage.prev[drawn_at]
            first_z = storage.z[before] * (before != drawn_at)[:, None]
        # A row without an action repeats itself, with whatever an earlier lap left there.
        return Batch(
            obs_sequence=self._with_history(storage, sequence),
            action=storage.action[segment] * mask.unsqueeze(-1),
            reward=storage.reward[segment] * mask,
            terminated=storage.terminated[segment] * mask,
            mask=mask,
            z=storage.z[row],
            paid=storage.paid[row],
            rnd_obs=self._with_history(storage, later[None]),
            first=first_obs,
            later_z=later_z,
            left=left,
            first_z=first_z,
        )

    def _transition_index(self, ring: Tensor, bounds: Tensor, uniform: Tensor) -> Tensor:
        """Choose uniformly from a ring's entries; the bounds are read on the device."""
        oldest, newest = bounds[0], bounds[1]
        return ring[(oldest + (uniform * (newest - oldest)).long()) % self.capacity]

    def _with_history(self, storage: Storage, rows: Tensor) -> ObsSequence:
        """Gather rows (T, B) and the history - 1 before; an episode's first row repeats."""
        sequence = [rows]
        for _ in range(self.history - 1):
            sequence.insert(0, storage.prev[sequence[0][:1]])
        return {name: gather_rows(storage.obs[name], torch.cat(sequence)) for name in self.obs}

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self, chunks: Chunks) -> dict[str, Any]:
        """Append rows that are final to the chunks.

        Returns:
            The rest, for the checkpoint.
        """
        settled = int(self.cursor.min()) if self.write_ptr else 0
        oldest = self.write_ptr - self.capacity
        start = max(chunks.end, oldest)
        if settled > start:
            chunks.append(self._numbered(start, settled), start, settled)
        chunks.spans = [span for span in chunks.spans if span[1] > oldest]
        tail_start = max(settled, oldest)
        return chunks.state() | {
            "tail_start": tail_start,
            "tail": self._numbered(tail_start, self.write_ptr),
            "write_ptr": self.write_ptr,
            "cursor": self.cursor,
            "numbers": {name: torch.tensor(list(held)) for name, held in self.numbers.items()},
            "unpaid": self.unpaid,
            "paid": self.storage.paid[: self.write_ptr],
        }

    def load(self, state: dict[str, Any], chunks: Chunks) -> None:
        """Continue from `save`; the same generator then draws the same segments."""
        self.write_ptr, self.cursor = state["write_ptr"], state["cursor"].clone()
        self.unpaid = state["unpaid"]
        self.storage.paid[: len(state["paid"])] = state["paid"].to(self.device)
        chunks.load_state(state)
        for span in chunks.spans:
            self._place(chunks.read(span), span[0])
        self._place(state["tail"], state["tail_start"])
        at = (torch.arange(self._oldest_number, self.write_ptr) % self.capacity).to(self.device)
        self.has_action.copy_(self.storage.has_action)
        starts = at[self.storage.has_action[at]]
        self.storage.starts[: len(starts)] = starts
        self.oldest, self.newest = 0, len(starts)
        for name in NUMBERED:
            self.numbers[name], self.ends[name] = deque(), 0
            self._note(name, state["numbers"][name].long())
        self._update_bounds()

    def _numbered(self, start: int, end: int) -> dict[str, Tensor]:
        """Read rows start .. end."""
        return rows_of(self.storage.columns(), torch.arange(start, end) % self.capacity)

    def _place(self, rows: dict[str, Tensor], start: int) -> None:
        columns = self.storage.columns()
        for name, value in rows.items():
            numbers = torch.arange(start, start + len(value))
            held = numbers >= self.write_ptr - self.capacity
            at = (numbers[held] % self.capacity).to(self.device)
            columns[name][at] = value[held].to(self.device)


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Gather rows of a table as a whole by `index_select`; indexing copies number by number.

    Under `torch.vmap` so does `index_select`: bytes then take a fifth of the time in words of
    eight.

    Args:
        table: (capacity, ...).
        rows: Indices of any shape.

    Returns:
        (*rows.shape, ...).
    """
    inner = table.shape[1:]
    words = table.dtype == torch.uint8 and inner.numel() % 8 == 0
    flat = table.flatten(1).view(torch.int64) if words else table
    taken = flat.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return taken.view(torch.uint8).unflatten(-1, inner) if words else taken


def make_storage(
    capacity: int,
    spec: Mapping[str, StorageSpec],
    action_dim: int,
    z_dim: int,
    device: torch.device,
    count: int | None = None,
) -> Storage:
    """Make the empty storage of one buffer, or of `count` with a leading axis."""

    def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(*(() if count is None else (count,)), *shape, dtype=dtype, device=device)

    own = {name: (capacity, *column.shape) for name, column in spec.items()}
    return Storage(
        {name: zeros(shape, spec[name].dtype) for name, shape in own.items()},
        **{
            name: zeros((capacity, *shape), dtype)
            for name, (shape, dtype) in _columns(action_dim, z_dim).items()
        },
        bounds=zeros((7,), torch.int64),
    )


def bytes_needed(
    capacity: int, spec: Mapping[str, StorageSpec], action_dim: int, z_dim: int
) -> int:
    """Return the memory of one buffer, in bytes."""
    columns = [(column.shape, column.dtype) for column in spec.values()]
    columns += _columns(action_dim, z_dim).values()
    return capacity * sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in columns)


def choose_device(
    needed: int,
    device: torch.device,
    wanted: str,
    capacity: int,
    filled: float = 1.0,
    what: str = "replay",
) -> tuple[torch.device, str]:
    """Choose the device of replay: `device` if it fits into 80% of its free memory, else the host.

    Args:
        needed: Bytes of all full buffers.
        device: The device that learns.
        wanted: "auto", "device" or "host".
        capacity: Observations of one buffer.
        filled: Largest share of it that the run fills; host memory is taken as it is filled.
        what: Name of the buffers in messages.

    Returns:
        The device, and a line that reports it.

    Raises:
        UserError: It does not fit into 90% of free memory; the message names the capacity that
            does.
    """
    on_gpu = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    auto_fits = wanted == "auto" and needed <= 0.8 * on_gpu
    chosen, gib = torch.device("cpu"), 2**30
    limits: list[tuple[float, float, str]] = [(filled * needed, free_on_host(), "free there")]
    if device.type != "cpu" and (wanted == "device" or auto_fits):
        chosen, limits = device, [(needed, on_gpu, "free there")]
    elif (addresses := free_addresses()) is not None:
        limits.append((needed, addresses, "left under `ulimit -v`"))
    for taken, free, where in limits:
        if taken > 0.9 * free:
            elsewhere = 0.8 * on_gpu if wanted == "auto" and device.type == "cuda" else 0.0
            fits = int(max(0.9 * free, elsewhere) / needed * capacity)
            raise UserError(
                f"agent.replay_capacity={capacity}: {what} would take {taken / gib:.2f} GiB on "
                f"{chosen}, with {free / gib:.2f} GiB {where}: give "
                f"agent.replay_capacity={fits // 1000 * 1000 or fits} or less"
            )
    left = limits[0][1] / gib
    return chosen, f"{needed / gib:.2f} GiB when full on {chosen}, {left:.1f} GiB free there"


def _columns(action_dim: int, z_dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and type of each column except the observation's."""
    shapes = {"action": (action_dim,), "reward": (), "terminated": (), "z": (z_dim,)}
    columns = {name: (shape, torch.float32) for name, shape in shapes.items()}
    columns["left"] = ((), torch.int64)
    columns |= dict.fromkeys(("has_action", "paid"), ((), torch.bool))
    return columns | {name: ((), torch.int64) for name in ("prev", "next", "starts", *NUMBERED)}
