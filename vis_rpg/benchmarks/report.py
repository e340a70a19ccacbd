"""Measure speed, one JSON object per line: vis-rpg benchmark what=suite quick=true."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vis_rpg.benchmarks import envs, updates
from vis_rpg.checks import device, lacks_compiler
from vis_rpg.config import BenchmarkConfig
from vis_rpg.errors import require

STORED = Path("results/speed/counts.json")


def main(config: BenchmarkConfig) -> None:
    """Measure, print and write what the config asks for; raises `UserError` where a count grew."""
    measure = {"suite": suite, "envs": step, "loop": profile, "counts": count}[config.what]
    found = measure(config)
    if config.json:
        Path(config.json).write_text(json.dumps(found, indent=2) + "\n")


def suite(config: BenchmarkConfig) -> dict[str, object]:
    """Measure updates, whole runs and environment steps, against the goals."""
    lines = []
    for line in updates.suite(config.device, config.quick):
        lines.append(line)
        print(json.dumps(line), flush=True)
    reached = updates.goals(lines)
    for line in reached if not config.quick else []:
        print(json.dumps(line))
    return {"machine": lines[0], "measured": lines[1:], "goals": reached}


def step(config: BenchmarkConfig) -> dict[str, object]:
    """Measure the environments."""
    lines: list[dict[str, object]] = []
    for line in envs.envs(config.only_task, 0.1 if config.quick else 1.5, config.backend):
        lines.append(line)
        print(json.dumps(line), flush=True)
    return {"machine": updates.machine(torch.device("cpu")), "measured": lines}


def profile(config: BenchmarkConfig) -> dict[str, object]:
    """Measure the parts of a training step."""
    lines: list[dict[str, object]] = []
    runtime = "runtime=eager" if config.quick else "runtime=compile"
    for name, overrides in updates.LOOPS.items():
        words = [*overrides, "preset=cpu", f"device={config.device}", runtime]
        profiled = updates.loop_profile(words, 0.5 if config.quick else 5.0)
        lines.append({"name": f"training step, {name}", **profiled})
        print(json.dumps(lines[-1]), flush=True)
    return {"machine": updates.machine(device(config.device)), "measured": lines}


def count(config: BenchmarkConfig) -> dict[str, object]:
    """Count operators and host-device syncs; with `check`, against the stored counts."""
    found = updates.counts(compiled=lacks_compiler("cpu") is None)
    print(json.dumps(found, indent=2))
    if config.check:
        require(STORED.exists(), f"check=true: {STORED} is not here; run this in a checkout")
        more = updates.regressions(found, updates.read_counts(STORED))
        meant = f"where that is meant: vis-rpg benchmark what=counts json={STORED}"
        require(not more, f"{'; '.join(more)}; {meant}")
    return found
