"""Memory of the process and the machine, and settings of libraries in threads that learn."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h> of glibc


def prepare(device: torch.device) -> None:
    """Set up a thread that trains or measures.

    It keeps freed memory, and on a GPU takes float32 products in TF32 (10 bits of mantissa).
    """
    keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory of any size instead of returning it to the system.

    The page faults that follow cost an update from state 2% to 4% of its time on a CPU, and one
    with the CNN, whose images exceed the 32 MB above which glibc always returns memory, a quarter.

    Returns:
        Whether it could: False with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_MAX, 0))


def free_on_host() -> int:
    """Return the bytes that this process can still fill, within the machine and control groups."""
    return max(0, min(_available(), *_left_in_groups()))


def free_addresses() -> int | None:
    """Return the bytes that `ulimit -v` still allows this process; None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        taken = 0
    return max(0, limit - taken)


def _available() -> int:
    """Return what the system can give without swapping, droppable file caches included."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_groups(
    root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Yield what each control group of this process, version 1 or 2, has left of its limit."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controller, path = line.split(":", 2)
        if controller == "":
            mount, limit, usage, cached = root, "memory.max", "memory.current", "inactive_file"
        elif controller == "memory":
            mount, limit, usage, cached = (
                root / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (place for place in (group, *group.parents) if place.is_relative_to(mount)):
            try:
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
                statistics = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                yield left + int(statistics.get(cached, 0))
            except (OSError, ValueError):  # No such group, or "max": no limit.
                continue
