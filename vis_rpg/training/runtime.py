"""Runtimes of updates: eager, compiled, or captured in CUDA graphs.

`auto` takes what pays on this machine, and a failure never ends a run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._triton import has_triton
from tqdm import tqdm

from perception.ops import kernels
from vis_rpg import distributed
from vis_rpg.errors import one_line
from vis_rpg.training.flat_parameters import adam_state

if TYPE_CHECKING:
    from vis_rpg.training.learner import Learner

Phase = tuple[bool, bool]
"""Whether an update moves the policy, and whether it moves the target model."""

FASTEST_FIRST = ("graph", "compile", "eager")
TIMED_CYCLES = 2
EXPECTED_SAVING = 0.5
"""Share of an eager update's time that compilation saves, before it is measured: 0.5 to 0.6 on AMD
and Intel."""
SAVING_WHILE_ENCODING = 0.5
"""Share of an update's saving that a whole step keeps if another thread encodes frames meanwhile
and must be waited for: an update from slots saved 31 of 63 ms on two cores of a Zen 4, a whole step
15 of 57."""
EXPECTED_COMPILE_S = 120.0
"""Seconds that compilation takes, before it is measured; half of them build the kernels, which are
cached."""


# Calls --------------------------------------------------------------------------------------------


def make_calls(
    name: str,
    apply: Callable[..., Any],
    gradients: Callable[..., Any],
    update: Callable[[Phase], None],
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[[Phase], None]]:
    """Wrap the calls of a learner for a runtime.

    Args:
        name: "eager", "compile", or "graph" (compiled if Triton is there, then captured).
        apply: Calls a function of an agent on all agents.
        gradients: Calls a loss function and returns gradients.
        update: Runs one whole update through the wrapped `apply` and `gradients`.
        generators: All that an update draws from on the device.
        device: Where updates run.

    Returns:
        `apply`, `gradients` and `update`, wrapped.
    """
    if name == "compile" or (name == "graph" and has_triton()):
        if device.type == "cpu":
            try:
                kernels.load()
            except OSError as error:
                line = f"updates go on without the kernels of {kernels.SOURCE.name}: {error}"
                tqdm.write(line, file=sys.stderr)
        apply, gradients = compile_each(apply), compile_each(gradients)
    run = CudaGraphRunner(update, generators, device) if name == "graph" else update
    return apply, gradients, run


def compile_each(call: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `call(function, *inputs)` lazily for each function.

    Each has its own copy of the code object: torch.compile caches per code object, so two learners
    would otherwise share graphs.
    """
    compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def compiled_call(function: Callable[..., Any], *inputs: Any) -> Any:
        if function not in compiled:
            if hasattr(torch._dynamo.config, "trace_autograd_ops"):
                # In this thread, so that only the gradients asked for are computed; older versions
                # compile around `torch.autograd.grad`.
                torch._dynamo.config.trace_autograd_ops = True

            def own(*inputs: Any) -> Any:
                return call(function, *inputs)

            code, name = own.__code__.replace(), function.__name__
            copied = FunctionType(code, own.__globals__, name, None, own.__closure__)
            options: dict[str, Any] = {"guard_filter_fn": _guards_on_inputs}
            compiled[function] = torch.compile(copied, dynamic=False, options=options)
        return compiled[function](*inputs)

    return compiled_call


def _guards_on_inputs(guards: Sequence[Any]) -> list[bool]:
    """Keep guards on tensors that are no parameters, and on modes such as autocast.

    All guards would take 0.8% of an update's time on a CPU.
    """
    kinds = ("TENSOR_MATCH", "SHAPE_ENV", "GLOBAL_STATE")
    return [g.guard_type in kinds and not isinstance(g.value, nn.Parameter) for g in guards]


class CudaGraphRunner:
    """Runs updates as CUDA graphs, one for each phase: a few plain runs, a capture, then replays.

    Args:
        update: Runs one update of a phase.
        generators: All that it draws from on the device.
        device: A CUDA device.
    """

    WARM_UPS = 3

    def __init__(
        self,
        update: Callable[[Phase], None],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.update, self.generators = update, generators
        self.graphs: dict[Phase, torch.cuda.CUDAGraph] = {}
        self.warmed: dict[Phase, int] = {}
        self.stream = torch.cuda.Stream(device)

    def __call__(self, phase: Phase) -> None:
        """Run one update of a phase."""
        if self.warmed.setdefault(phase, 0) < self.WARM_UPS:
            self.warmed[phase] += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.update(phase)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if phase not in self.graphs:
            graph = self.graphs[phase] = torch.cuda.CUDAGraph()
            for generator in self.generators:
                graph.register_generator_state(generator)
            # Environments that use the device too go on in their own thread meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.update(phase)
        self.graphs[phase].replay()


# Choice -------------------------------------------------------------------------------------------


def start(
    learner: Learner,
    wanted: str,
    updates: int,
    lacking: str | None = None,
    while_encoding: bool = False,
) -> str:
    """Prepare updates as `wanted` says; where that fails, fall back to the next slower runtime.

    Each fallback prints one line. Everything that is run to compile, capture or time is undone: the
    run that follows does not depend on it.

    Args:
        learner: Its replay must hold something to sample.
        wanted: "auto", "eager", "compile" or "graph". On a CPU, `auto` compiles if this saves more
            time over the updates left than compilation takes. Both times and the choice are cached
            for this machine and these shapes, so that the same command runs the same way again.
            Several processes would not choose alike: on a CPU `auto` is eager for them.
        updates: How many are left to do.
        lacking: What CPU compilation lacks here, None if nothing.
        while_encoding: Whether frames are encoded on another core while an update runs.

    Returns:
        The runtime in use.
    """
    cuda = learner.device.type == "cuda"
    if wanted == "graph" and not cuda:
        wanted = "auto"
    cache = TimingCache(learner)
    if wanted == "auto":
        kept = SAVING_WHILE_ENCODING if while_encoding else 1.0
        wanted = "graph" if cuda else "eager"
        if not cuda and not lacking and distributed.world_size() == 1:
            wanted = _choose(learner, updates, cache, kept)
    for runtime in FASTEST_FIRST[FASTEST_FIRST.index(wanted) : -1]:
        try:
            seconds, each = warm_up(learner, runtime, TIMED_CYCLES)
        except Exception as error:  # compilers, drivers and caches raise anything
            tqdm.write(
                f"updates cannot run with runtime={runtime} here ({one_line(error)[:300]}): "
                "trying the next",
                file=sys.stderr,
            )
            continue
        if not cuda:
            cache.write(compile_s=seconds, compile_ms=1e3 * each)
        return runtime
    learner.use("eager")
    return "eager"


def _choose(learner: Learner, updates: int, cache: TimingCache, kept: float) -> str:
    """Choose "compile" or "eager" on a CPU; a whole step keeps the share `kept` of the saving."""
    known = cache.read()
    choice = known.get("choices", {}).get(str(updates))
    if choice in FASTEST_FIRST:
        return str(choice)
    if "eager_ms" not in known:
        known = cache.write(eager_ms=1e3 * warm_up(learner, "eager", TIMED_CYCLES)[1])
    eager = known["eager_ms"] / 1e3
    expected = 1e3 * (1 - EXPECTED_SAVING) * eager
    saved = updates * kept * (eager - known.get("compile_ms", expected) / 1e3)
    choice = "compile" if saved > known.get("compile_s", EXPECTED_COMPILE_S) else "eager"
    cache.write(choices={**known.get("choices", {}), str(updates): choice})
    return choice


def warm_up(learner: Learner, runtime: str, cycles: int) -> tuple[float, float]:
    """Use a runtime, compile and capture all that it needs, and time updates, then undo them.

    Args:
        learner: Its replay must hold something to sample.
        runtime: "eager", "compile" or "graph".
        cycles: Cycles of updates (with and without policy and target) to time.

    Returns:
        Seconds until everything was compiled and captured, and seconds per update afterwards.
    """
    cycle = math.lcm(learner.config.policy_every, learner.config.target_every)

    def run(updates: int) -> float:
        begin = time.perf_counter()
        for _ in range(updates):
            learner.step()
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
        return time.perf_counter() - begin

    with _undone(learner):
        begin = time.perf_counter()
        learner.use(runtime)  # the kernels of a CPU may have to be built
        run(cycle * (CudaGraphRunner.WARM_UPS + 1 if runtime == "graph" else 1))
        first = time.perf_counter() - begin
        times = [run(cycle) for _ in range(cycles)]
    return first, statistics.median(times) / cycle


@contextmanager
def _undone(learner: Learner) -> Iterator[None]:
    """Restore all that updates change, in the same memory, which captured graphs rely on."""
    sampler = learner.sampler
    assert sampler is not None
    prefetcher = sampler.prefetcher
    assert prefetcher is None or prefetcher.batch is None, (
        "a prefetched batch cannot be drawn again"
    )
    tensors = [own.flat for own in [*learner.flat.values(), learner.target]]
    tensors += [buffer for agent in learner.agents for buffer in agent.buffers()]
    before = [tensor.clone() for tensor in tensors]
    moments = {
        part: {name: value.clone() for name, value in adam_state(own).items()}
        for part, own in learner.optimizers.items()
    }
    generators = [*learner.noise_generators, *sampler.generators]
    states = [generator.get_state() for generator in generators]
    sums = {name: value.clone() for name, value in learner.sums.items()}
    counts, updates = dict(learner.counts), learner.updates

    def put_back(now: dict[str, torch.Tensor], then: dict[str, torch.Tensor]) -> None:
        for name, value in now.items():
            value.copy_(then[name]) if name in then else value.zero_()

    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for part, optimizer in learner.optimizers.items():
                put_back(adam_state(optimizer), moments[part])
            put_back(learner.sums, sums)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        learner.counts, learner.updates = counts, updates
        if prefetcher and prefetcher.batch is not None:
            sampler.prefetch()


class TimingCache:
    """Measured update times of these shapes on this machine, in the user's cache folder.

    It has no effect where that cannot be written.

    Args:
        learner: Its shapes, device and precision name the file.
    """

    def __init__(self, learner: Learner) -> None:
        about: list[Any] = [
            torch.__version__,
            torch.get_num_threads(),
            kernels.processor(),
            str(learner.device),
            learner.precision,
            sorted((part, list(own.flat.shape)) for part, own in learner.flat.items()),
            learner.agent.storage,
            repr(learner.sampler and learner.sampler.spec),
        ]
        name = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        self.path = kernels.cache_folder("vis_rpg") / f"updates-{name}.json"

    def read(self) -> dict[str, Any]:
        """Return all known figures; {} if there are none or the file is broken."""
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        numbers = ("eager_ms", "compile_ms", "compile_s")
        sound = isinstance(known, dict) and isinstance(known.get("choices", {}), dict)
        if sound and all(isinstance(known.get(key, 0.0), int | float) for key in numbers):
            return known
        return {}

    def write(self, **figures: Any) -> dict[str, Any]:
        """Add figures; return all that are known."""
        known = self.read() | figures
        with suppress(OSError):
            part = self.path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known, indent=2) + "\n")
            part.replace(self.path)
        return known
