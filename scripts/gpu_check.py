"""Run one stage of scripts/gpu_check.sh: python scripts/gpu_check.py STAGE OUT."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._triton import has_triton

from vis_rpg.benchmarks import updates as benchmark
from vis_rpg.benchmarks.envs import envs
from vis_rpg.compose import compose
from vis_rpg.envs.make import make_env
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.training import checkpoint, runtime
from vis_rpg.training.learner import Learner
from vis_rpg.training.trainer import Trainer

Line = dict[str, Any]
CUDA = torch.cuda.is_available()
SIZE = [] if CUDA else ["preset=debug"]
STATE = ["task=block_push", *SIZE]
PIXELS = [
    "task=block_push",
    "task.blocks=1",
    "obs=pixels",
    "preset=cpu" if CUDA else "preset=debug",
]
RUNTIMES = ("eager", "compile", "graph") if CUDA else ("eager", "compile")
UPDATES = 20
NEEDS_CUDA = 77  # the exit status by which scripts/gpu_check.sh knows it


def imports() -> Iterator[Line]:
    """Report versions and the device, and draw a picture."""
    import gymnasium
    import mujoco

    yield {
        **benchmark.machine(torch.device("cuda" if CUDA else "cpu")),
        "mujoco": mujoco.__version__,
        "gymnasium": gymnasium.__version__,
    }
    if CUDA:
        free, total = torch.cuda.mem_get_info()
        yield {
            "capability": torch.cuda.get_device_capability(),
            "cuda": torch.version.cuda,
            "free_gib": round(free / 2**30, 1),
        }
        yield {
            "triton": has_triton(),
            "total_gib": round(total / 2**30, 1),
            "cores": os.cpu_count(),
        }
    env = make_env(compose(PIXELS).task, "pixels")
    obs, _ = env.reset(seed=0)
    check(obs.std() > 1, f"frames are blank: standard deviation {obs.std():.3f}")
    yield {"frame_std": round(float(obs.std()), 2)}


READY = {
    "ready-seeds": [*STATE, "seeds=8"],
    "ready-bfloat16": [*STATE, "precision=bfloat16"],
    "ready-slots": benchmark.UPDATES["slots frozen"],
    "ready-cnn": benchmark.UPDATES["cnn"],
    "ready-learn": [*PIXELS, "seeds=8"],
}


def ready(words: list[str]) -> Iterator[Line]:
    """Time the first updates until all is compiled and captured; later stages use the cache."""
    if not CUDA:
        sys.exit(NEEDS_CUDA)
    trainer = filled([*words, f"runtime={RUNTIMES[-1]}"])
    seconds, each = runtime.warm_up(trainer.learner, RUNTIMES[-1], 10)
    yield {
        "setting": " ".join(words),
        "runtime": RUNTIMES[-1],
        "seconds_to_ready": round(seconds, 1),
        "ms_each": round(1e3 * each, 3),
    }


def updates(dtype: torch.dtype) -> Iterator[Line]:
    """Compare captured, compiled and eager runs: equal over 20 updates from the same replay."""
    ends: dict[str, dict[str, Tensor]] = {}
    for name in RUNTIMES:
        trainer = filled([*STATE, f"runtime={name}"], dtype)
        start = parameters(trainer.learner)
        begin = time.perf_counter()
        for _ in range(UPDATES):
            trainer.learner.step()
        ends[name] = parameters(trainer.learner)
        line: Line = {"runtime": name, "seconds": round(time.perf_counter() - begin, 1)}
        if name != "eager":
            line |= {"difference_over_movement": difference(ends[name], ends["eager"], start)}
        yield line
        wrong = {
            part: value
            for part, value in line.get("difference_over_movement", {}).items()
            if not value < LIMIT[dtype]
        }
        check(not wrong, f"runtime={name} differs from eager in {dtype}: {wrong}")


LIMIT = {torch.float32: 0.1, torch.float64: 1e-6}
"""Largest distance between two runs' parameters over their distance moved: Adam turns rounding
(TF32 on a GPU) into steps."""


def seeds() -> Iterator[Line]:
    """Compare eight seeds captured together with each alone: equal."""
    count, runtime = (8, "graph") if CUDA else (2, "eager")
    together = filled([*STATE, f"runtime={runtime}", f"seeds={count}"], torch.float64)
    starts = [parameters(together.learner, row) for row in range(count)]
    for _ in range(UPDATES):
        together.learner.step()
    for seed in (0, count - 1):
        alone = filled([*STATE, "runtime=eager", f"seed={seed}"], torch.float64)
        for _ in range(UPDATES):
            alone.learner.step()
        apart = difference(
            parameters(together.learner, seed), parameters(alone.learner), starts[seed]
        )
        yield {"seeds": count, "runtime": runtime, "seed": seed, "difference_over_movement": apart}
        check(
            max(apart.values()) < LIMIT[torch.float64],
            f"seed {seed} learns otherwise beside others: {apart}",
        )


def replay() -> Iterator[Line]:
    """Compare replay on the device and in pinned memory: equal batches, and the time of updates."""
    batches = {}
    for where in ("device", "host"):
        trainer = filled([*PIXELS, f"runtime={RUNTIMES[-1]}", f"agent.replay_device={where}"])
        learner, own = trainer.learner, trainer.runs[0].replay
        assert learner.sampler is not None
        spec = learner.sampler.spec
        count = spec.batch_size + spec.rnd_obs
        uniform = torch.from_numpy(np.random.default_rng(0).random(count)).to(own.device)
        batches[where] = pytree.tree_map(
            lambda x: None if x is None else x.cpu(),
            own.gather(own.storage, uniform, spec),
        )
        check(
            (learner.sampler.prefetcher is None) == (where == "device" or not CUDA),
            f"agent.replay_device={where}: batches are staged the wrong way",
        )
        for _ in range(2 * UPDATES):
            learner.step()
        begin = time.perf_counter()
        for _ in range(2 * UPDATES):
            learner.step()
        if CUDA:
            torch.cuda.synchronize()
        finite = all(bool(torch.isfinite(value).all()) for value in learner.sums.values())
        check(finite, f"agent.replay_device={where}: a loss is not finite")
        yield {
            "replay": where,
            "updates_per_s": round(2 * UPDATES / (time.perf_counter() - begin), 1),
        }
    pairs = zip(
        pytree.tree_leaves(batches["device"]), pytree.tree_leaves(batches["host"]), strict=True
    )
    same = all(a is b is None or torch.equal(a, b) for a, b in pairs)
    yield {"same_batches": same}
    check(same, "device and host gather different batches")


def resume() -> Iterator[Line]:
    """Resume a run from CPU to GPU and back, with the weights that were saved."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["task=maze", "preset=debug", f"out={folder}/run"]
        for index, device in enumerate(("cpu", "cuda", "cpu", "cuda") if CUDA else ("cpu", "cpu")):
            config = compose(
                [
                    *words,
                    f"device={device}",
                    f"steps={300 * (index + 1)}",
                    f"resume={'true' if index else 'false'}",
                ]
            )
            trainer = Trainer(config)
            if index:
                saved = checkpoint.load(checkpoint.latest(Path(folder, "run")))
                loaded = trainer.runs[0].agent.state_dict()
                same = all(
                    torch.equal(loaded[name].cpu(), value) for name, value in saved["agent"].items()
                )
                check(same, f"weights change on the way to {device}")
            [summary] = trainer.run()
            yield {
                "device": device,
                "steps": summary["steps"],
                "updates": summary["updates"],
                "runtime": trainer.runtime,
            }
            check(summary["steps"] == 300 * (index + 1), f"{device}: ended at {summary['steps']}")


def suite() -> Iterator[Line]:
    """Run the quick suite of `vis-rpg benchmark`."""
    yield from benchmark.suite("auto", quick=True)


def render() -> Iterator[Line]:
    """Time frames by EGL and by the ray-caster."""
    for backend in ("egl", "warp"):
        for task in ("block_push", "ant_push"):
            yield from (
                {"backend": backend, **line}
                for line in envs(task, 0.5, backend)
                if "pixels" in line["name"]
            )


def physics() -> Iterator[Line]:
    """Compare MuJoCo Warp's physics with MuJoCo's, and time both with few and many environments."""
    for task in ({"name": "block_push", "blocks": 2}, {"name": "cheetah_back"}):
        for count in (5, 1024) if CUDA else (2,):
            rng, errors = np.random.default_rng(0), []
            [warp], [exact] = (
                make_vector_envs({**task, "physics": kind}, "state", count, [0])
                for kind in ("warp", "mujoco")
            )
            seconds = {"warp": 0.0, "mujoco": 0.0}
            for each in (warp, exact):
                each.reset()
            for _ in range(5):
                exact.set_state(warp.get_state())
                actions = rng.uniform(-1, 1, (count, *warp.action_space.shape))
                found = []
                for kind, each in (("warp", warp), ("mujoco", exact)):
                    begin = time.perf_counter()
                    found.append(each.step(actions).obs)
                    seconds[kind] += time.perf_counter() - begin
                errors.append(float(np.abs(found[0] - found[1]).max()))
            yield {
                "task": task["name"],
                "envs": count,
                "stepped_in": warp.stepped_in,
                "median_error": float(np.median(errors)),
                "steps_per_s": {kind: round(5 * count / each) for kind, each in seconds.items()},
            }
            check(float(np.median(errors)) < 1e-3, f"{task['name']}: errors {errors}")


def learn(out: Path) -> Iterator[Line]:
    """Learn one-block BlockPush from pixels: eight seeds, three minutes or 60,000 interactions."""
    count, limit = (8, 180) if CUDA else (2, 30)
    words = [*PIXELS, f"seeds={count}", f"out={out}/run", *(["steps=60000"] if CUDA else [])]
    command = [sys.executable, "scripts/train.py", *words]
    with contextlib.suppress(subprocess.TimeoutExpired):  # metrics are written as it goes
        subprocess.run(command, timeout=limit, check=True)
    rows = []
    for path in sorted(Path(out, "run").glob("seed-*/metrics.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            rows.append(
                [
                    line["step"],
                    line["success"],
                    line["coverage"],
                    line["updates_per_s"],
                    path.parent.name.removeprefix("seed-"),
                ]
            )
    with open(out / "learn.csv", "w", newline="") as file:
        header = ["step", "success", "coverage", "updates_per_s", "seed"]
        csv.writer(file).writerows([header, *rows])
    check(bool(rows), "nothing was learned in time")
    last = max(row[0] for row in rows)
    ends = [row for row in rows if row[0] == last]
    yield {
        "steps": last,
        "seeds": len(ends),
        "success": [row[1] for row in ends],
        "coverage": [row[2] for row in ends],
    }
    yield {"updates_per_s": ends[0][3], "command": " ".join(command[1:])}


# Helpers ------------------------------------------------------------------------------------------


def filled(words: list[str], dtype: torch.dtype = torch.float32) -> Trainer:
    """Make a trainer with random actions in replay and updates of this precision."""
    trainer = benchmark.filled(words)
    if dtype == torch.float32:
        return trainer
    old = trainer.learner
    agents = [run.agent.to(dtype) for run in trainer.runs]
    learner = trainer.learner = Learner(agents, "float32", old.sampler, old.noise_generators)
    learner.use(trainer.config.runtime)
    update_step = learner.update_step

    def cast(part: Any) -> Any:
        return pytree.tree_map(
            lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, part
        )

    learner.update_step = lambda batch, noise, *phase: update_step(  # type: ignore[method-assign]
        cast(batch), cast(noise), *phase
    )
    return trainer


def parameters(learner: Learner, row: int = 0) -> dict[str, Tensor]:
    """Copy the parameters (P,) of each part."""
    return {part: own.flat[row].detach().clone() for part, own in learner.flat.items()}


def difference(
    first: dict[str, Tensor], second: dict[str, Tensor], start: dict[str, Tensor]
) -> dict[str, float]:
    """Measure how far two runs are apart, relative to how far they have moved."""
    return {
        part: float((first[part] - second[part]).norm() / (second[part] - start[part]).norm())
        for part in first
    }


def check(holds: bool, message: str) -> None:
    """Exit with the message unless a condition holds."""
    if not holds:
        raise SystemExit(message)


def main(name: str, out: Path) -> None:
    """Run a stage, print its results and append them to results.jsonl in `out`."""
    stages: dict[str, Callable[[], Iterator[Line]]] = {
        "imports": imports,
        "updates-float32": lambda: updates(torch.float32),
        "updates-float64": lambda: updates(torch.float64),
        "seeds": seeds,
        "replay": replay,
        "resume": resume,
        "suite": suite,
        "render": render,
        "physics": physics,
        "learn": lambda: learn(out),
    }
    stages |= {key: partial(ready, words) for key, words in READY.items()}
    if name not in stages:
        sys.exit(f"{name}: choose one of {', '.join(stages)}")
    for line in stages[name]():
        text = json.dumps({"stage": name, **line})
        print(text, flush=True)
        with open(out / "results.jsonl", "a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
