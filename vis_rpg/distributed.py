"""One run over several processes by torch.distributed, which torchrun starts.

Each process steps its share of the environments and learns from its share of the batch; what is
reduced here makes their updates those of one process. In a process alone nothing is reduced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vis_rpg.errors import RunStopped, UserError, require

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets beside WORLD_SIZE."""
LOST = ("connection closed", "connection reset")
"""What Gloo says, in whatever case, where another process has ended."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if there are several.

    Tensors on a GPU go by NCCL, those on the host by Gloo. The first process alone prints; errors
    of the others are printed by whoever catches them here outside.

    Raises:
        UserError: Other variables of torchrun are missing, or WORLD_SIZE is no number.
        RunStopped: Another process has ended.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    require(
        size.isdecimal() and int(size) > 0,
        f"WORLD_SIZE={size} is no number of processes: unset it, or start by torchrun",
    )
    if int(size) == 1:
        yield
        return
    lacking = [name for name in NEEDED if name not in os.environ]
    require(
        not lacking,
        f"WORLD_SIZE={size} without {', '.join(lacking)}: start several "
        "processes by torchrun, or unset WORLD_SIZE",
    )
    # Imported once there is a group, as by the first optimizer, its functions keep the group as a
    # default argument, and Gloo's threads abort the interpreter's end now and then.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group()
    try:
        with open(os.devnull, "w") as nowhere, ExitStack() as quiet:
            if rank():
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield
    except RuntimeError as error:
        if any(words in str(error).lower() for words in LOST):
            raise RunStopped("another process has ended: its line says why") from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Let all processes raise the UserError that one of them raises here.

    Nothing within may wait for another process.
    """
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
    for one in gather_objects(own):
        if one is not None:
            raise one


def rank() -> int:
    """Return this process's number, 0 in a process alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Return this process's number on its machine, 0 in a process alone."""
    return dist.get_node_local_rank(fallback_rank=0) if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(x: Tensor) -> Tensor:
    """Average a tensor of any shape over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)  # a sum: Gloo has no mean
        x /= dist.get_world_size()
    return x


def gather(x: Tensor) -> Tensor:
    """Concatenate the rows (B, ...) of all processes: (world size * B, ...)."""
    if not dist.is_initialized():
        return x
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x)
    return torch.cat(rows)


def maximum(value: int) -> int:
    """Return the greatest of all processes' values."""
    return _reduce(value, dist.ReduceOp.MAX)


def total(value: int) -> int:
    """Return the sum of all processes' values."""
    return _reduce(value, dist.ReduceOp.SUM)


def _reduce(value: int, operation: dist.ReduceOp.RedOpType) -> int:
    if not dist.is_initialized():
        return value
    reduced = torch.tensor(value)
    dist.all_reduce(reduced, operation)
    return int(reduced)


def gather_objects(value: Any) -> list[Any]:
    """Return the value of each process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(module: nn.Module) -> None:
    """Give a module the state of the first process's."""
    if dist.is_initialized():
        state = [{name: value.cpu() for name, value in module.state_dict().items()}]
        dist.broadcast_object_list(state)
        module.load_state_dict(state[0])
