"""Updates out of replay, and the ways to run them: eager, compiled, captured in CUDA graphs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._triton import has_triton

from vis_rpg.agent.batch import Batch
from vis_rpg.agent.rpg import Metrics
from vis_rpg.training.learner import Learner, optimizer_state, stack
from vis_rpg.training.replay_buffer import Replay, Request, Tables

Phase = tuple[bool, bool]


class Learning:
    """Draws batches and noise, updates M agents, and adds up what was learned; after the first few,
    an update waits for no device.

    replays: one for each agent, on the learner's device or on the host; tables: theirs together,
    (M, ...); generators: of the noise, on the learner's device; samplers: of the batches, on the
    replays' device. runtime: "eager", "compile", or "graph" (CUDA only: compiled where Triton is
    there, then captured).
    """

    def __init__(
        self,
        learner: Learner,
        replays: Sequence[Replay],
        tables: Tables,
        request: Request,
        generators: Sequence[torch.Generator],
        samplers: Sequence[torch.Generator],
        runtime: str,
    ) -> None:
        self.learner, self.replays, self.tables, self.request = learner, replays, tables, request
        self.generators, self.samplers = generators, samplers
        self.staging = Staging(learner.device) if replays[0].device != learner.device else None
        self.sums: Metrics = {}
        """Of each metric since the last `clear`, (M,)."""
        self.counts: dict[str, int] = {}
        self.names: dict[Phase, list[str]] = {}
        self.use(runtime)

    def use(self, runtime: str) -> None:
        """Run later updates this way; what must be compiled or captured is so when it is first
        needed."""
        self.run: Callable[[Phase], None] = self._turn
        self.learner.eager()
        if runtime == "compile" or (runtime == "graph" and has_triton()):
            self.learner.compile()
        if runtime == "graph":
            generators = self.generators if self.staging else [*self.generators, *self.samplers]
            self.run = Captured(self._turn, generators, self.learner.device)

    def warm_up(self, runtime: str, cycles: int) -> tuple[float, float]:
        """Use a runtime, compile and capture all that it needs, and time updates, without a trace
        of them in what is learned.

        Args:
            runtime: as in the constructor.
            cycles: of the updates that repeat (with and without policy and target), to time.

        Returns:
            Seconds until everything was compiled and captured, and then seconds an update.
        """
        config, device = self.learner.config, self.learner.device
        cycle = math.lcm(config.policy_every, config.target_every)

        def run(updates: int) -> float:
            begin = time.perf_counter()
            for _ in range(updates):
                self.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - begin

        with self._undone():
            begin = time.perf_counter()
            self.use(runtime)  # the kernels of a CPU may have to be built
            run(cycle * (Captured.WARM_UPS + 1 if runtime == "graph" else 1))
            first = time.perf_counter() - begin
            times = [run(cycle) for _ in range(cycles)]
        return first, statistics.median(times) / cycle

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Afterwards everything that updates change is as it was before, in the same memory, which
        captured graphs rely on."""
        learner = self.learner
        tensors = [rows.flat for rows in learner.rows.values()] + [learner.average.flat]
        tensors += [buffer for agent in learner.agents for buffer in agent.buffers()]
        before = [tensor.clone() for tensor in tensors]
        moments = {
            part: {name: value.clone() for name, value in optimizer_state(o).items()}
            for part, o in learner.optimizers.items()
        }
        streams = [
            (generator, generator.get_state()) for generator in [*self.generators, *self.samplers]
        ]
        sums, counts, updates = (
            {name: value.clone() for name, value in self.sums.items()},
            dict(self.counts),
            learner.updates,
        )
        staged = self.staging is not None and self.staging.batch is not None
        assert not staged, "a batch that was drawn ahead cannot be drawn again"
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
                for part, optimizer in learner.optimizers.items():
                    for name, value in optimizer_state(optimizer).items():
                        value.copy_(moments[part][name]) if name in moments[part] else value.zero_()
                for name, value in self.sums.items():
                    value.copy_(sums[name]) if name in sums else value.zero_()
            for generator, state in streams:
                generator.set_state(state)
            self.counts, learner.updates = counts, updates
            if self.staging and self.staging.batch is not None:
                self.staging.fill(self.draw())

    def step(self) -> None:
        """One update of every agent."""
        phase = self.learner.phase
        if self.staging and self.staging.batch is None:
            self.staging.fill(self.draw())
        self.run(phase)
        self.learner.updates += 1
        for name in self.names[phase]:
            self.counts[name] = self.counts.get(name, 0) + 1
        if self.staging:
            self.staging.fill(self.draw())  # while the device works on this one

    def draw(self) -> Batch:
        """A batch (M, ...) from the replays, on their device."""
        request, replay = self.request, self.replays[0]
        uniform = [
            own.draw(request, sampler)
            for own, sampler in zip(self.replays, self.samplers, strict=True)
        ]
        if len(uniform) == 1:
            return replay.gather(replay.tables, uniform[0], request)
        return torch.vmap(lambda tables, row: replay.gather(tables, row, request))(
            self.tables, torch.stack(uniform)
        )

    def redraw(self) -> None:
        """What is stored has been replaced: a batch that was drawn ahead is drawn anew."""
        if self.staging:
            self.staging.fill(self.draw())

    def clear(self) -> None:
        """Begin new sums."""
        for value in self.sums.values():
            value.zero_()
        self.counts.clear()

    def _turn(self, phase: Phase) -> None:
        """Everything that the device does for an update, so that it can be captured."""
        batch = self.draw() if self.staging is None else self.staging.batch
        assert batch is not None
        request, learner = self.request, self.learner
        noise = stack(
            [
                learner.agent.draw_noise(request.batch_size, request.first, generator)
                for generator in self.generators
            ]
        )
        metrics = learner.turn(batch, noise, *phase)
        self.names[phase] = list(metrics)
        for name, value in metrics.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(
                    len(learner.agents), device=learner.device, dtype=value.dtype
                )
            self.sums[name] += value


class Staging:
    """Brings batches from a replay on the host to the device: through pinned memory, into tensors
    that stay where they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batch: Batch | None = None
        """On the device."""
        self.pinned: list[Tensor | None] = []
        self.copied: torch.cuda.Event | None = None

    def fill(self, batch: Batch) -> None:
        """Begin to copy a batch; what the device still has to do comes first, and the
        host goes on."""
        tensors, tree = pytree.tree_flatten(batch)
        if self.batch is None:
            cuda = self.device.type == "cuda"
            self.pinned = [
                x if x is None else torch.empty_like(x, pin_memory=cuda) for x in tensors
            ]
            self.batch = pytree.tree_unflatten(
                [x if x is None else torch.empty_like(x, device=self.device) for x in tensors], tree
            )
            self.copied = torch.cuda.Event() if cuda else None
        elif self.copied is not None:
            self.copied.synchronize()  # the pinned memory is read no more
        for source, pinned, target in zip(
            tensors, self.pinned, pytree.tree_leaves(self.batch), strict=True
        ):
            if source is not None and pinned is not None:
                pinned.copy_(source)
                target.copy_(pinned, non_blocking=True)
        if self.copied is not None:
            self.copied.record()


class Captured:
    """Runs `turn` by CUDA graphs, one for each phase: a few times as it is, once captured, from
    then on replayed."""

    WARM_UPS = 3

    def __init__(
        self,
        turn: Callable[[Phase], None],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        """generators: on the device, all that `turn` draws from."""
        self.turn, self.generators = turn, generators
        self.graphs: dict[Phase, torch.cuda.CUDAGraph] = {}
        self.warmed: dict[Phase, int] = {}
        self.stream = torch.cuda.Stream(device)

    def __call__(self, phase: Phase) -> None:
        if self.warmed.setdefault(phase, 0) < self.WARM_UPS:
            self.warmed[phase] += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.turn(phase)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if phase not in self.graphs:
            self.graphs[phase] = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self.graphs[phase].register_generator_state(generator)
            # environments that use the device too go on in their own thread meanwhile
            with torch.cuda.graph(
                self.graphs[phase], stream=self.stream, capture_error_mode="thread_local"
            ):
                self.turn(phase)
        self.graphs[phase].replay()
