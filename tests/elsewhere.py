"""A GPU in name: `meta` stands for it, so that any machine shows what a GPU would refuse."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Mixed(Exception):
    """An operator that a GPU refuses, as its arguments lie on two devices."""


class Generator(torch._C.Generator):
    """A generator that says it lies on `DEVICE` where that is asked for."""

    there: dict[int, Generator] = {}
    """All that lie there, by what an operator's argument, another object for the same generator,
    has in common with them."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        if torch.device(device) == DEVICE:
            cls.there[made._cdata] = made
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE if self._cdata in self.there else torch.device("cpu")


class Elsewhere(TorchDispatchMode):
    """Raises `Mixed` where CUDA would: meta kernels themselves seldom look. What comes back to the
    host is zero, or one where a single value is asked for; `host_syncs` counts how often. Tensors
    on the CPU are real, so that environments and files are too."""

    def __init__(self) -> None:
        super().__init__()
        self.host_syncs = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        leaves = pytree.arg_tree_leaves(*args, **kwargs)
        there = [x for x in leaves if isinstance(x, Tensor) and x.is_meta]
        here = [x for x in leaves if isinstance(x, Tensor) and not x.is_meta]
        target = kwargs.get("device") or (there or here or [torch.empty(0)])[0].device
        for x in leaves:
            if isinstance(x, torch._C.Generator) and (x._cdata in Generator.there) != (
                target == DEVICE
            ):
                raise Mixed(f"{func}: a generator that does not lie on {target}")
        if name == "_local_scalar_dense" and there:
            self.host_syncs += 1
            return {torch.bool: True, torch.int64: 1}.get(there[0].dtype, 1.0)
        if name == "_to_copy" and there and target != DEVICE:
            self.host_syncs += 1
            return torch.zeros(there[0].shape, dtype=kwargs.get("dtype") or there[0].dtype)
        if name == "copy_":
            return (
                args[0].zero_() if there and here and not args[0].is_meta else func(*args, **kwargs)
            )
        if there and any(_refused(x, func, name, args) for x in here):
            raise Mixed(
                f"{func}: "
                f"{[(tuple(x.shape), str(x.device)) for x in leaves if isinstance(x, Tensor)]}"
            )
        if name == "_fused_adam_" and there:
            return None  # there is no such kernel
        return func(*args, **kwargs)


def _refused(x: Tensor, func: Any, name: str, args: tuple[Any, ...]) -> bool:
    """Whether CUDA refuses a tensor on the CPU beside others on the GPU: it takes rows to choose,
    and a single number for what is done to each number, but writes to no tensor there."""
    if x is args[0] and func._schema.is_mutable:
        return True
    if name in INDEXING and args[0].is_meta:
        return x.dim() > 0 and not any(x is index for index in args[1])
    return x.dim() > 0 or torch.Tag.pointwise not in func.tags


class InThisThread:
    """In place of a pool of threads: modes are a thread's own."""

    def submit(self, call: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call())
        return future

    def shutdown(self) -> None:
        pass


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Trainers made within run on `DEVICE`."""
    fused = [*optimizer._get_fused_kernels_supported_devices(), "meta"]
    with (
        mock.patch("torch.Generator", Generator),
        mock.patch("torch.autocast", lambda *_, **__: nullcontext()),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: fused),
        mock.patch("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", True),
        mock.patch("vis_rpg.training.trainer.device", lambda _: DEVICE),
        mock.patch("vis_rpg.training.trainer.ThreadPoolExecutor", lambda *_: InThisThread()),
        Elsewhere() as mode,
    ):
        yield mode
