"""What an update costs on any machine: its operators, its arithmetic, and how often the host would wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
VIEWS = {
    "view",
    "_unsafe_view",
    "unsqueeze",
    "squeeze",
    "expand",
    "t",
    "transpose",
    "permute",
    "slice",
    "select",
    "split",
    "alias",
    "detach",
}
"""Operators that start no kernel, with those of their variants."""
INDEXING = {aten.index, aten.index_put, aten.index_put_}
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim, aten._unique2}
"""Operators whose result, or its size, the host must know before it goes on."""


class OperatorCounter(TorchDispatchMode):
    """Counts operators that reach the device, arithmetic of products and convolutions in FLOP (as torch's own counter does, whose module
    hooks refuse frozen parts in the middle of a trained model), and waits of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.flop = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        self.operators += not func.is_view and packet.__name__ not in VIEWS
        self.waits += packet in WAITS or (packet in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]))
        count = flop_registry.get(packet)
        if count is not None:
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        return out
