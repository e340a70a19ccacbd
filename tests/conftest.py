"""What every test runs under: one thread, rendering without a screen, whole tracebacks; and what a
machine may lack."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# MuJoCo and OpenMP read these when they are imported.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@functools.cache
def lacks_vulkan() -> str | None:
    """Why SAPIEN cannot draw on this machine; None where it can."""
    try:
        import sapien

        sapien.render.RenderSystem()
    except (ImportError, RuntimeError):
        return "SAPIEN finds no Vulkan device: scripts/install_vulkan.sh"
    return None


@functools.cache
def lacks_compiler() -> str | None:
    """Why nothing can be compiled for the CPU of this machine; None where it can."""
    from vis_rpg import checks

    lacking = checks.lacks_compiler("cpu")
    return lacking and f"compiling needs {lacking}"


NEEDS = {"vulkan": lacks_vulkan, "compiler": lacks_compiler}
"""Markers of tests that need something optional; each function says what is missing."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs what this machine lacks, before its fixtures are made."""
    for name, lacks in NEEDS.items():
        if item.get_closest_marker(name) and (reason := lacks()):
            pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def memory_is_given_back() -> Iterator[None]:
    """Runs ask glibc to keep what is freed; a process that makes hundreds of runs would keep it
    all."""
    from vis_rpg.training import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "keep_freed_memory", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def renderers() -> Iterator[list[Any]]:
    """Every MuJoCo renderer that was made since the last was closed: tasks keep them, a GL context
    each, until the process ends."""
    import mujoco

    made: list[Any] = []
    init = mujoco.Renderer.__init__

    def remembered(self: Any, *about: Any, **more: Any) -> None:
        init(self, *about, **more)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco.Renderer, "__init__", remembered)
        yield made


def free(renderers: list[Any]) -> None:
    """Close renderers, collect garbage, and give what is free back to the system."""
    if "vis_rpg.envs.tasks.mujoco_task" in sys.modules:
        sys.modules["vis_rpg.envs.tasks.mujoco_task"]._cameras.clear()
    for renderer in renderers:
        atexit.unregister(renderer.close)
        renderer.close()
    renderers.clear()
    collect()


def collect() -> None:
    """Free what nothing refers to any more, and give what is free back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def resident() -> int:
    """MB that this process holds; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize() >> 20


@pytest.fixture(autouse=True, scope="module")
def kept_by_a_file(renderers: list[Any]) -> Iterator[list[int]]:
    """MB resident before its tests, and after garbage was last collected; what they made is freed
    before the next file begins."""
    gc.freeze()  # modules and what else stays: looking at them again takes longer than a test
    yield [resident()] * 2
    free(renderers)


@pytest.fixture(autouse=True)
def garbage_is_collected(kept_by_a_file: list[int], renderers: list[Any]) -> Iterator[None]:
    """Environments and agents refer to themselves, and Python counts objects, not the arrays in
    them. Renderers are made anew if needed."""
    yield
    if resident() > kept_by_a_file[1] + 100:
        collect()
        if resident() > kept_by_a_file[0] + 300:
            free(renderers)
        kept_by_a_file[1] = resident()


@pytest.fixture
def nothing_is_left_of_a_test(renderers: list[Any]) -> Iterator[None]:
    """For tests that each make much."""
    yield
    free(renderers)


# The peak of memory of each process, in a line of the summary -------------------------------------

PEAKS: dict[str, int] = {}
"""MB resident at most, by process."""


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one, where one did."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = peak()
    elif not session.config.getoption("numprocesses", None):
        PEAKS["one process"] = peak()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if hasattr(node, "workeroutput"):
        PEAKS[node.gateway.id] = node.workeroutput["peak"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(
        "peak memory: "
        + ", ".join(f"{name} {megabytes} MB" for name, megabytes in sorted(PEAKS.items()))
    )
