"""What a process that learns asks of its libraries: memory that is kept, and fast products."""

from __future__ import annotations

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h> of glibc


def prepare(device: torch.device) -> None:
    """In each thread that trains or measures: keep freed memory, and on a GPU take float32 products in TF32 (10 bits of mantissa)."""
    keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, however large, instead of giving it back to the system: the page faults that follow cost an update from
    state 2% to 4% of its time on a CPU, and one with the CNN, whose images fill more than the 32 MB above which glibc always gives back,
    a quarter. Returns whether it could: False where the C library is another."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_MAX, 0))
