"""Memory that is freed stays with the process; what is free is known within limits of
the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vis_rpg.training import memory

PROGRAM = """
import ctypes
import resource

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if {keep}:
    from vis_rpg.training.memory import keep_freed_memory
    if not keep_freed_memory():
        raise SystemExit("another C library")

def work(size):
    blocks = [libc.malloc(size) for _ in range(4)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in reversed(blocks):
        libc.free(block)

for size in {sizes}:
    for _ in range(5):
        work(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        work(size)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, *sizes: int) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep, sizes=sizes)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "another C library" in done.stderr:
        pytest.skip("only glibc can be asked to keep freed memory")
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    sizes = 48 * 2**20, 8 * 2**20  # glibc's own limit on what may be kept is 32 MB
    assert max(faults(True, *sizes)) < 100 < 10_000 < min(faults(False, *sizes))


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_a_control_group_limits_what_is_free_and_its_file_cache_does_not_count(
    tmp_path: Path,
) -> None:
    root, groups = tmp_path / "cgroup", tmp_path / "own"
    groups.write_text("4:memory:/job/step\n3:cpu:/job\n0::/user/run\n")
    group(
        root / "user" / "run", memory__max="max", memory__current=70, memory__stat="inactive_file 5"
    )
    group(
        root / "user",
        memory__max=1000,
        memory__current=400,
        memory__stat="anon 7\ninactive_file 100",
    )
    group(
        root / "memory" / "job",
        memory__limit_in_bytes=500,
        memory__usage_in_bytes=450,
        memory__stat="total_inactive_file 20",
    )
    assert sorted(memory._left_in_groups(root, groups)) == [70, 700]
    assert list(memory._left_in_groups(root, tmp_path / "absent")) == []


def test_the_least_of_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < memory.free_on_host() < 2**50
    monkeypatch.setattr(memory, "_left_in_groups", lambda: iter([2**62, 12345]))
    assert memory.free_on_host() == 12345


def test_a_limit_of_addresses_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        memory.resource, "getrlimit", lambda kind: (memory.resource.RLIM_INFINITY, 0)
    )
    assert memory.free_addresses() is None
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (2**50, 0))
    left = memory.free_addresses()
    assert left is not None and 2**49 < left < 2**50
