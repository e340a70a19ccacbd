"""Measure speed: updates, environment steps, frames, whole runs, and model FLOP utilisation."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from vis_rpg.benchmarks.op_counter import OperatorCounter
from vis_rpg.checks import device as device_of
from vis_rpg.checks import lacks_compiler
from vis_rpg.compose import compose
from vis_rpg.envs.make import make_env
from vis_rpg.envs.vector.sync import SyncVectorEnv
from vis_rpg.errors import one_line
from vis_rpg.origin import hardware
from vis_rpg.training.learner import Learner
from vis_rpg.training.memory import prepare
from vis_rpg.training.runtime import CudaGraphRunner
from vis_rpg.training.trainer import Trainer

Line = dict[str, Any]
BLOCKS = ["task=block_push"]
SMALL_BATCH = ["agent.batch_size=128", "exploration.batch_size=128"]
UPDATES = {
    "state": [*BLOCKS, "obs=state"],
    "state, bfloat16": [*BLOCKS, "obs=state", "precision=bfloat16"],
    "state, 8 seeds": [*BLOCKS, "obs=state", "seeds=8"],
    "slots frozen": [*BLOCKS, "obs=pixels", "perception=slots"],
    "cnn": [*BLOCKS, "obs=pixels", "perception=cnn", *SMALL_BATCH],
}
RUNS = {
    "block_push from state": [*BLOCKS, "obs=state"],
    "block_push from state, 8 seeds": [*BLOCKS, "obs=state", "seeds=8"],
}
STEPPED = {"maze": ["task=maze"], "block_push": BLOCKS}
LOOPS = {"state": [*BLOCKS, "task.blocks=1"], "slots": [*BLOCKS, "task.blocks=1", "obs=pixels"]}
FILLED = 250
"""Random interactions per seed before an update is measured: fewer than an episode of each
environment."""
COUNTED = {
    "state": [*BLOCKS, "obs=state"],
    "state, learned prior": [*BLOCKS, "obs=state", "agent.latent.prior=learned"],
    "mbsac": [*BLOCKS, "obs=state", "agent=mbsac"],
    "state, 2 seeds": [*BLOCKS, "obs=state", "seeds=2"],
    "slots frozen": [*BLOCKS, "obs=pixels", "perception=slots"],
    "cnn": [*BLOCKS, "obs=pixels", "perception=cnn"],
}
GROWTH = 1.05
"""Largest accepted ratio of a count to the stored one."""


# What is measured ---------------------------------------------------------------------------------


def suite(device: str, quick: bool) -> Iterator[Line]:
    """Measure one setting after another.

    Args:
        device: As in the config.
        quick: Leave out what must compile and shorten spans (under a minute on two cores); on a
            GPU, measure the runtime that `auto` takes.

    Yields:
        A JSON object for the machine, then one for each setting.
    """
    chosen = device_of(device)
    prepare(chosen)
    yield machine(chosen)
    cuda = chosen.type == "cuda"
    repeats, least = (3, 0.3) if quick else (5, 4.0)
    compiler_lacks = lacks_compiler(device)
    for name, overrides in UPDATES.items():
        for runtime in ("eager", "compile", "graph"):
            words = [*overrides, f"device={device}", f"runtime={runtime}"]
            line = {"name": f"update, {name}", "runtime": runtime}
            slow = runtime != "eager" or {"seeds=8", "precision=bfloat16"} & set(overrides)
            left_out = (runtime != "graph" and name != "state") if cuda else slow
            if (runtime == "graph" and not cuda) or (quick and left_out):
                continue
            if runtime == "compile" and compiler_lacks:
                yield {**line, "not_measured": f"needs {compiler_lacks}"}
                continue
            if quick and not cuda and SMALL_BATCH[0] in overrides:
                words += ["agent.batch_size=16", "exploration.batch_size=16"]
            try:
                yield {**line, **update_speed(words, repeats, least)}
            except Exception as error:  # the other settings are still measured
                yield {**line, "failed": one_line(error)}
    for name, overrides in RUNS.items():
        if cuda or not quick:
            speed = run_speed([*overrides, f"device={device}"], 4.0 if quick else 10.0)
            yield {"name": f"run, {name}", **speed}
    for name, overrides in STEPPED.items():
        for obs in ("state", "pixels"):
            what = "steps" if obs == "state" else "steps with frames 64 x 64"
            yield {"name": f"{what}, {name}", **step_speed(overrides, obs, repeats, least)}


def machine(device: torch.device) -> Line:
    """Describe the hardware and the versions of the libraries."""
    return {
        "name": "machine",
        "device": str(device),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def gemm_rate(device: torch.device, seconds: float) -> float:
    """Measure float32 matrix products in GFLOP/s (TF32 on a GPU).

    The best of square sizes counts, so that utilisation is not flattered, and on a CPU the best of
    both of torch's libraries: MKL makes half of what oneDNN does on AMD's processors.
    """
    products: list[tuple[int, Callable[[], object]]] = []
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = torch.randn(2, size, size, device=device)
        products.append((size, partial(torch.mm, a, b)))
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            products.append(
                (size, partial(torch.nn.functional.linear, a.to_mkldnn(), b.to_mkldnn()))
            )
    span = seconds / 5 / len(products)
    return max(
        2 * size**3 / statistics.median(timed(product, 5, span, device)) / 1e9
        for size, product in products
    )


def timed(
    call: Callable[[], object], repeats: int, least: float, device: torch.device
) -> list[float]:
    """Time a call after a warm-up.

    Args:
        call: The call.
        repeats: Number of groups of calls.
        least: Seconds of one group at least.
        device: A GPU is synchronized after each group.

    Returns:
        Seconds per call in each group.
    """

    def group(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    group(1)
    count = max(1, round(least / max(group(1), 1e-7)))
    return [group(count) / count for _ in range(repeats)]


def filled(overrides: list[str]) -> Trainer:
    """Make a trainer whose replays hold random actions and which has not learned yet.

    Its folder is a temporary one, which goes with it.
    """
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    config = compose(
        [
            *overrides,
            f"out={folder.name}",
            "agent.replay_capacity=5000",
            f"agent.seed_steps={FILLED}",
            f"logger.log_every={10**9}",
        ]
    )
    trainer = Trainer(config)
    weakref.finalize(trainer, folder.cleanup)
    while trainer.step_count < FILLED:
        trainer.step()
    if config.runtime != "auto":
        trainer.learner.use(config.runtime)
    return trainer


def update_speed(overrides: list[str], repeats: int, least: float) -> Line:
    """Measure updates/s with sampling, at the paper's sizes.

    One cycle has `policy_every` updates, in the last of which the policy steps. The matrix rate is
    measured in turns with it, since the speed of a shared machine changes.

    Args:
        overrides: Settings of the run.
        repeats: Number of turns.
        least: Seconds of one turn at least.

    Returns:
        Medians over the turns, with MFU: FLOP of the updates over those of matrix products.
    """
    trainer = filled(overrides)
    learner, settings, device = trainer.learner, trainer.config.agent, trainer.device
    seeds = len(trainer.runs)

    def cycle() -> None:
        for _ in range(settings.policy_every):
            learner.step()

    cycle()
    gflop = (
        count_update(learner, settings.policy_every)["gflop"]
        if trainer.config.runtime == "eager"
        else None
    )
    for _ in range(2 * CudaGraphRunner.WARM_UPS):
        if device.type == "cuda":
            cycle()
    turns = [
        (gemm_rate(device, least / 4), timed(cycle, 1, least, device)[0]) for _ in range(repeats)
    ]
    rate, seconds = (statistics.median(values) for values in zip(*turns, strict=True))
    per_s = settings.policy_every / seconds
    line: Line = {
        "updates_per_s": round(per_s, 3),
        "batch_size": settings.batch_size,
        "gemm_gflop_per_s": round(rate, 1),
    }
    if seeds > 1:
        line |= {"seeds": seeds, "seed_updates_per_s": round(seeds * per_s, 3)}
    gflop = gflop or eager_gflop(overrides)
    line |= {"gflop_per_update": round(gflop, 2), "mfu": round(per_s * gflop / rate, 3)}
    if device.type == "cuda":
        line |= launches(cycle, settings.policy_every)
    line["fastest_and_slowest"] = [
        round(settings.policy_every / f([s for _, s in turns]), 3) for f in (min, max)
    ]
    return line


def launches(cycle: Callable[[], None], updates: int) -> Line:
    """Count the kernels that a GPU runs in an update.

    Raises:
        RuntimeError: The host waits for the GPU within an update.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        cycle()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        cycle()
        torch.cuda.synchronize()
    kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return {"kernels_per_update": kernels / updates, "host_syncs": 0}


def eager_gflop(overrides: list[str]) -> float:
    """Return GFLOP of one update of all seeds; compiled code hides products from the counter."""
    trainer = filled([*overrides, "runtime=eager"])
    return float(count_update(trainer.learner, trainer.config.agent.policy_every)["gflop"])


def count_update(learner: Learner, updates: int) -> Line:
    """Count operators, GFLOP and host-device syncs per update, over this many updates."""
    with OperatorCounter() as counter:
        for _ in range(updates):
            learner.step()
    return {
        "operators": counter.operators / updates,
        "gflop": counter.flop / updates / 1e9,
        "host_syncs": counter.host_syncs / updates,
    }


def run_speed(overrides: list[str], seconds: float) -> Line:
    """Measure interactions/s of a whole run after warm-up, of all seeds together."""
    trainer = filled(overrides)
    for _ in range(4 * CudaGraphRunner.WARM_UPS):
        trainer.step()
    begin, before = time.perf_counter(), trainer.step_count
    waited = dict(trainer.waited)
    while time.perf_counter() - begin < seconds:
        trainer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    took = time.perf_counter() - begin
    steps = len(trainer.runs) * (trainer.step_count - before)
    shares = {
        f"{name.removesuffix('_s')}_share": round((trainer.waited[name] - waited[name]) / took, 3)
        for name in waited
    }
    return {"interactions_per_s": round(steps / took, 1), "seeds": len(trainer.runs), **shares}


def loop_profile(overrides: list[str], seconds: float) -> Line:
    """Measure milliseconds of each part of a training step, each alone, and of the whole step.

    In a whole step frozen perception and the environments run in parallel with the update.
    """
    trainer = filled(overrides)
    run, device = trainer.runs[0], trainer.device
    with trainer.acting_in_one_thread():
        actions = run.select_action()
        result = run.envs.step(actions.cpu().numpy())
        seen = run.encode(result)
        parts: dict[str, Callable[[], object]] = {
            "acting": run.select_action,
            "physics and frames": lambda: run.envs.step(actions.cpu().numpy()),
            "seeing": lambda: run.encode(result),
            "replay": lambda: run.record_step(actions, result, seen),
        }
        line: Line = {
            name: round(1e3 * statistics.median(timed(call, 5, seconds / 5, device)), 2)
            for name, call in parts.items()
        }
        for _ in range(4 * CudaGraphRunner.WARM_UPS):
            trainer.step()

        def update() -> None:
            trainer.thread.submit(trainer.learner.step).result()  # where it was compiled

        line["update"] = round(1e3 * statistics.median(timed(update, 5, seconds / 5, device)), 2)
        line["whole step"] = round(
            1e3 * statistics.median(timed(trainer.step, 5, seconds / 5, device)), 2
        )
        return {
            "envs": len(run.envs),
            "threads": trainer.threads,
            "runtime": trainer.runtime,
            "ms": line,
        }


def step_speed(overrides: list[str], obs: str, repeats: int, least: float) -> Line:
    """Measure interactions/s of one process; from pixels one frame is rendered at each."""
    config = compose(overrides)
    envs = SyncVectorEnv(lambda _: make_env(config.task, obs), config.agent.envs, 0)
    envs.reset()
    rng = np.random.default_rng(0)
    seconds = statistics.median(
        timed(
            lambda: envs.step(rng.uniform(-1, 1, (len(envs), *envs.action_space.shape))),
            repeats,
            least,
            torch.device("cpu"),
        )
    )
    return {"steps_per_s": round(len(envs) / seconds, 1), "envs": len(envs)}


# Figures against goals ----------------------------------------------------------------------------


def goals(lines: list[Line]) -> list[Line]:
    """Compare the project's goals with what was measured, None where a measurement is missing.

    Ratios of a CPU compare updates at one matrix rate, which changes by a tenth on a shared machine
    between one setting and the next.
    """
    cuda = lines[0]["device"] != "cpu"
    at = {(line["name"].removeprefix("update, "), line.get("runtime")): line for line in lines[1:]}
    best = "graph" if cuda else "compile"

    def figure(name: str, key: str = "updates_per_s", runtime: str | None = best) -> float | None:
        value = at.get((name, runtime), {}).get(key)
        return None if value is None else float(value)

    def ratio(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else round(a / b, 3)

    def over_state(name: str, key: str = "updates_per_s", runtime: str = best) -> float | None:
        def at_one_rate(name: str, key: str) -> float | None:
            value, rate = (
                figure(name, key, runtime),
                figure(name, "gemm_gflop_per_s", runtime),
            )
            return None if value is None or rate is None else value / rate

        return ratio(at_one_rate(name, key), at_one_rate("state", "updates_per_s"))

    one = figure("state")
    rows: list[tuple[str, float | None, float]]
    if cuda:
        rows = [
            ("state, updates/s", one, 700),
            ("state, graph over eager", ratio(one, figure("state", runtime="eager")), 4.5),
            (
                "state, 8 seeds, seed-updates/s",
                figure("state, 8 seeds", "seed_updates_per_s"),
                2500,
            ),
            ("slots frozen over state", ratio(figure("slots frozen"), one), 0.9),
            ("CNN, batch 128, updates/s", figure("cnn"), 500),
            (
                "BlockPush from state, interactions/s",
                figure("run, block_push from state", "interactions_per_s", None),
                3000,
            ),
            (
                "the same, eight seeds together",
                figure("run, block_push from state, 8 seeds", "interactions_per_s", None),
                8000,
            ),
        ]
    else:
        rows = [
            ("state, MFU", figure("state", "mfu"), 0.85),
            ("state, bfloat16 over float32", over_state("state, bfloat16"), 1.6),
            (
                "state, 8 seeds over one, seed-updates/s",
                over_state("state, 8 seeds", "seed_updates_per_s"),
                1.0,
            ),
            ("slots frozen over state", over_state("slots frozen"), 0.9),
            ("slots frozen over state, eager", over_state("slots frozen", runtime="eager"), 0.9),
            (
                "CNN, batch 128, MFU",
                figure("cnn", "mfu"),
                0.75,
            ),
        ]
    return [
        {"what": what, "measured": value, "goal": goal, "met": value is not None and value >= goal}
        for what, value, goal in rows
    ]


# Counts -------------------------------------------------------------------------------------------


def counts(compiled: bool) -> Line:
    """Count operators and host-device syncs of an update of each setting at debug size.

    Args:
        compiled: Count compilations after the first updates too.
    """
    found: Line = {}
    for name, overrides in COUNTED.items():
        trainer = filled([*overrides, "preset=debug", "device=cpu", "runtime=eager"])
        for _ in range(2):
            trainer.learner.step()
        counted = count_update(trainer.learner, 2)
        found[name] = {
            "operators": counted["operators"],
            "mflop": round(1e3 * counted["gflop"], 3),
            "host_syncs": counted["host_syncs"],
        }
    if compiled:
        found["compilations after warm-up"] = {"state": recompilations(["task=maze"])}
    return found


def recompilations(overrides: list[str]) -> int:
    """Count compilations of a compiled update after its first four."""
    from torch._dynamo.utils import counters

    trainer = filled([*overrides, "preset=debug", "device=cpu", "runtime=compile"])
    for _ in range(4):
        trainer.learner.step()
    before = counters["stats"]["unique_graphs"]
    for _ in range(6):
        trainer.learner.step()
    return int(counters["stats"]["unique_graphs"] - before)


def regressions(now: Line, stored: Line) -> list[str]:
    """List what has grown by more than 5% over the stored counts, or is not stored."""
    lines = []
    for name, figures in now.items():
        for key, value in figures.items():
            before = stored.get(name, {}).get(key)
            if before is None:
                lines.append(f"{name}: {key} is not stored yet")
            elif value > GROWTH * before:
                lines.append(f"{name}: {key} has grown from {before} to {value}")
    return lines
