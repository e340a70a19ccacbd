"""How updates run: eager, compiled, or captured in CUDA graphs. `auto` takes what pays on this
machine, and a failure never ends a run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from perception.ops import fused
from vis_rpg.errors import one_line
from vis_rpg.training.learning import Learning

FASTEST_FIRST = ("graph", "compile", "eager")
TIMED_CYCLES = 2
EXPECTED_SAVING = 0.5
"""Share of an eager update's time that compiling is expected to save where it has not been
measured: 0.5 to 0.6 on AMD and Intel."""
SAVING_BESIDE_SEEING = 0.5
"""Share of what an update saves that a step saves too where frames are seen beside the update, in
another thread, which then has to be waited for: an update from slots saved 31 of 63 ms on two cores
of a Zen 4, a whole step 15 of 57."""
EXPECTED_COMPILE_S = 120.0
"""Seconds that compiling is expected to take where it has not been measured, half of them for the
kernels, which are kept."""


def start(
    learning: Learning,
    wanted: str,
    updates: int,
    lacking: str | None = None,
    beside_seeing: bool = False,
) -> str:
    """Prepare updates as `wanted` says, falling back to the next slower runtime with one line
    wherever that fails.

    Everything that is run to compile, capture or time is undone: the run that follows does not
    depend on it.

    Args:
        learning: the updates; its replays must hold something to sample.
        wanted: "auto", "eager", "compile" or "graph". On a CPU, `auto` compiles if the time that
            this saves over the updates that are left exceeds the time of compiling; both are
            measured, and kept in a cache for this machine and these shapes together with the
            choice, so that the same command runs the same way again.
        updates: how many are left to do.
        lacking: what compiling for a CPU lacks here, None if nothing.
        beside_seeing: whether frames are seen on another core while an update runs.

    Returns:
        The runtime in use.
    """
    cuda = learning.learner.device.type == "cuda"
    if wanted == "graph" and not cuda:
        wanted = "auto"
    cache = TimingCache(learning)
    if wanted == "auto":
        kept = SAVING_BESIDE_SEEING if beside_seeing else 1.0
        wanted = (
            "graph" if cuda else "eager" if lacking else _choose(learning, updates, cache, kept)
        )
    for runtime in FASTEST_FIRST[FASTEST_FIRST.index(wanted) : -1]:
        try:
            seconds, each = learning.warm_up(runtime, TIMED_CYCLES)
        except Exception as error:  # compilers, drivers and caches fail in any way of their own
            tqdm.write(
                f"updates cannot run with runtime={runtime} here ({one_line(error)[:300]}): "
                "trying the next",
                file=sys.stderr,
            )
            continue
        if not cuda:
            cache.write(compile_s=seconds, compile_ms=1e3 * each)
        return runtime
    learning.use("eager")
    return "eager"


def _choose(learning: Learning, updates: int, cache: TimingCache, kept: float) -> str:
    """compile or eager on a CPU, for so many updates, of whose saving a step keeps this share."""
    known = cache.read()
    choice = known.get("choices", {}).get(str(updates))
    if choice in FASTEST_FIRST:
        return str(choice)
    if "eager_ms" not in known:
        known = cache.write(eager_ms=1e3 * learning.warm_up("eager", TIMED_CYCLES)[1])
    eager = known["eager_ms"] / 1e3
    compiled = known["compile_ms"] / 1e3 if "compile_ms" in known else (1 - EXPECTED_SAVING) * eager
    pays = updates * kept * (eager - compiled) > known.get("compile_s", EXPECTED_COMPILE_S)
    choice = "compile" if pays else "eager"
    cache.write(choices={**known.get("choices", {}), str(updates): choice})
    return choice


class TimingCache:
    """Measured times of updates of these shapes on this machine, a JSON file in the user's cache
    folder; without effect where that cannot be written."""

    def __init__(self, learning: Learning) -> None:
        learner = learning.learner
        about: list[Any] = [
            torch.__version__,
            torch.get_num_threads(),
            fused._processor(),
            str(learner.device),
            learner.precision,
            sorted((part, list(rows.flat.shape)) for part, rows in learner.rows.items()),
            learner.agent.model.perception.stored,
            repr(learning.request),
        ]
        name = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        self.path = fused.cache_folder("vis_rpg") / f"updates-{name}.json"

    def read(self) -> dict[str, Any]:
        """Everything that is known; {} if nothing is, or if the file is broken."""
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        numbers = ("eager_ms", "compile_ms", "compile_s")
        sound = isinstance(known, dict) and isinstance(known.get("choices", {}), dict)
        return (
            known
            if sound and all(isinstance(known.get(key, 0.0), int | float) for key in numbers)
            else {}
        )

    def write(self, **figures: Any) -> dict[str, Any]:
        """Add figures; returns everything that is known."""
        known = self.read() | figures
        with suppress(OSError):
            part = self.path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known, indent=2) + "\n")
            part.replace(self.path)
        return known
