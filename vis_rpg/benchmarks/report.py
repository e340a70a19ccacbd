"""Measure speed, one JSON object per line: vis-rpg benchmark what=suite quick=true."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from vis_rpg.benchmarks import envs, peers, updates
from vis_rpg.checks import device, lacks_compiler
from vis_rpg.config import BenchmarkConfig
from vis_rpg.errors import require

STORED = Path("results/speed/counts.json")


def main(config: BenchmarkConfig) -> None:
    """Measure, print and write what the config asks for; raises `UserError` where a count grew."""
    kinds = {"suite": suite, "envs": step, "loop": profile, "counts": count, "peers": beside_others}
    found = kinds[config.what](config)
    if config.json:
        Path(config.json).write_text(json.dumps(found, indent=2) + "\n")


def told(lines: Iterable[updates.Line]) -> list[updates.Line]:
    """Print each line as soon as it is measured; return all."""
    kept = []
    for line in lines:
        kept.append(line)
        print(json.dumps(line), flush=True)
    return kept


def suite(config: BenchmarkConfig) -> dict[str, object]:
    """Measure updates, whole runs and environment steps, against the goals."""
    lines = told(updates.suite(config.device, config.quick))
    reached = updates.goals(lines)
    for line in reached if not config.quick else []:
        print(json.dumps(line))
    return {"machine": lines[0], "measured": lines[1:], "goals": reached}


def step(config: BenchmarkConfig) -> dict[str, object]:
    """Measure the environments."""
    lines = told(envs.envs(config.only_task, 0.1 if config.quick else 1.5, config.backend))
    return {"machine": updates.machine(torch.device("cpu")), "measured": lines}


def profile(config: BenchmarkConfig) -> dict[str, object]:
    """Measure the parts of a training step."""
    runtime, seconds = ("runtime=eager", 0.5) if config.quick else ("runtime=compile", 5.0)
    given = ["preset=cpu", f"device={config.device}", runtime]
    lines = told(
        {"name": f"training step, {name}"} | updates.loop_profile([*words, *given], seconds)
        for name, words in updates.LOOPS.items()
    )
    return {"machine": updates.machine(device(config.device)), "measured": lines}


def beside_others(config: BenchmarkConfig) -> dict[str, object]:
    """Train other libraries beside ours, from state and from pixels."""
    out = Path(config.out).absolute()
    require(not out.exists(), f"out={config.out} is there already: give a new folder")
    found = (line for obs in ("state", "pixels") for line in peers.peers(out, config.minutes, obs))
    return {"machine": updates.machine(torch.device("cpu")), "measured": told(found)}


def count(config: BenchmarkConfig) -> dict[str, object]:
    """Count operators and host-device syncs; with `check`, against the stored counts."""
    found = updates.counts(compiled=lacks_compiler("cpu") is None)
    print(json.dumps(found, indent=2))
    if config.check:
        require(STORED.exists(), f"check=true: {STORED} is not here; run this in a checkout")
        more = updates.regressions(found, json.loads(STORED.read_text()))
        meant = f"where that is meant: vis-rpg benchmark what=counts json={STORED}"
        require(not more, f"{'; '.join(more)}; {meant}")
    return found
