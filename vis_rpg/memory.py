"""The C library's memory, as a loop that frees and takes the same sizes again and again wants it."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h> of glibc


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of giving it back to the system, whose thousands of page faults an update cost 2% to 4% of its
    time on a CPU. Returns whether it could: False where the C library is another."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_THRESHOLD, 2**25))
