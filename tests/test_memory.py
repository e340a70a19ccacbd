"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
import resource
from vis_rpg.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if {keep} and not keep_freed_memory():
    raise SystemExit("another C library")

def work():
    blocks = [libc.malloc({size}) for _ in range(4)]
    for block in blocks:
        libc.memset(block, 1, {size})
    for block in reversed(blocks):
        libc.free(block)

for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, size: int) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep, size=size)], capture_output=True, text=True, check=False)
    if "another C library" in done.stderr:
        pytest.skip("only glibc can be asked to keep freed memory")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("megabytes", [8, 48])  # glibc's own limit on what may be kept is 32
def test_memory_that_is_kept_is_not_faulted_in_again(megabytes: int) -> None:
    assert faults(True, megabytes * 2**20) < 100 < 10_000 < faults(False, megabytes * 2**20)
