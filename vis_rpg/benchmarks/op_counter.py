"""What an update costs on any machine: its operators, its arithmetic, and how often the host would
wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WAITS = {
    *(
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "argwhere",
        "masked_select",
        "bincount",
    ),
    *(
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "repeat_interleave",
        "_assert_async",
    ),
}
"""Operators whose result, or its size, the host must know before it goes on."""


class OperatorCounter(TorchDispatchMode):
    """Counts operators that reach the device, arithmetic of products and convolutions in FLOP (as
    torch's own counter does, whose module hooks refuse frozen parts in the middle of a trained
    model), and waits of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.flop = self.waits = 0
        self.waited_for: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        self.operators += not func.is_view and name not in VIEWS
        indices = args[1] if name in INDEXING else ()
        if name in WAITS or any(
            index is not None and index.dtype == torch.bool for index in indices
        ):
            self.waits += 1
            self.waited_for.add(str(func))
        count = flop_registry.get(packet)
        if count is not None:
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        return out
