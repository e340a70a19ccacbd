"""Machine-independent cost of an update: operators, arithmetic and host-device syncs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# fmt: off
VIEWS = {
    "view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "t", "transpose", "permute", "slice",
    "select", "split", "alias", "detach",
}
"""Operators that start no kernel; `is_view` misses some of their variants."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
SYNC_OPS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "argwhere",
    "masked_select", "bincount", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "repeat_interleave", "_assert_async",
}
"""Operators whose result, or its size, the host must know before it goes on."""
# fmt: on


class OperatorCounter(TorchDispatchMode):
    """Counts operators that reach the device, FLOP and host-device syncs.

    FLOP are those of products and convolutions as in torch's own counter, whose module hooks refuse
    frozen parts in the middle of a trained model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.flop = self.host_syncs = 0
        self.sync_ops: set[str] = set()

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
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in SYNC_OPS or by_mask:
            self.host_syncs += 1
            self.sync_ops.add(str(func))
        if packet in flop_registry:
            self.flop += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out
