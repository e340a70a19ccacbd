"""Measure speed, one JSON object a line: python scripts/benchmark.py suite [--quick] [--json FILE]
[--device auto] Measure the environments alone: python scripts/benchmark.py envs [--quick] [--task
NAME] [--backend auto] [--json FILE] Where the time of a training step goes: python
scripts/benchmark.py loop [--quick] [--device auto] [--json FILE] Count what no machine changes:
python scripts/benchmark.py counts [--check]"""

import argparse
import json
import sys
from pathlib import Path

import torch
from omegaconf import DictConfig

from vis_rpg.benchmarks import envs as env_benchmark
from vis_rpg.benchmarks.updates import (
    LOOPS,
    counts,
    goals,
    grown,
    loop_profile,
    machine,
    read_counts,
    suite,
)
from vis_rpg.config import device as device_of
from vis_rpg.config import lacks_compiler
from vis_rpg.errors import UserError

STORED = Path(__file__).resolve().parents[1] / "results" / "speed" / "counts.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("suite", "envs", "loop", "counts"), default="suite"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="suite: under 60 s on two cores; envs: short spans; both less exact",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything to FILE as well"
    )
    parser.add_argument("--device", default="auto", help="suite: auto | cpu | cuda | cuda:N")
    parser.add_argument("--task", metavar="NAME", help="envs: this task only")
    parser.add_argument(
        "--backend", default="auto", choices=("auto", "egl", "warp"), help="envs: render.backend"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"counts: fail where one has grown by more than 5%% over {STORED.name}",
    )
    arguments = parser.parse_args()
    try:
        if arguments.what == "counts":
            found = count(arguments.check)
        elif arguments.what == "envs":
            found = step(arguments.task, arguments.backend, arguments.quick)
        elif arguments.what == "loop":
            found = profile(arguments.device, arguments.quick)
        else:
            found = measure(arguments.device, arguments.quick)
    except UserError as error:
        sys.exit(f"error: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(device: str, quick: bool) -> dict[str, object]:
    lines = []
    for line in suite(device, quick):
        lines.append(line)
        print(json.dumps(line), flush=True)
    reached = goals(lines)
    for line in reached if not quick else []:
        print(json.dumps(line))
    return {"machine": lines[0], "measured": lines[1:], "goals": reached}


def step(task: str | None, backend: str, quick: bool) -> dict[str, object]:
    lines: list[dict[str, object]] = [machine(torch.device("cpu"))]
    for line in env_benchmark.envs(task, 0.1 if quick else 1.5, backend):
        lines.append(line)
        print(json.dumps(line), flush=True)
    return {"machine": lines[0], "measured": lines[1:]}


def profile(device: str, quick: bool) -> dict[str, object]:
    lines: list[dict[str, object]] = [machine(device_of(DictConfig({"device": device})))]
    for name, overrides in LOOPS.items():
        words = [
            *overrides,
            "preset=cpu",
            f"device={device}",
            *(["runtime=eager"] if quick else ["runtime=compile"]),
        ]
        lines.append(
            {"name": f"training step, {name}", **loop_profile(words, 0.5 if quick else 5.0)}
        )
        print(json.dumps(lines[-1]), flush=True)
    return {"machine": lines[0], "measured": lines[1:]}


def count(check: bool) -> dict[str, object]:
    found = counts(compiled=lacks_compiler(DictConfig({"device": "cpu"})) is None)
    print(json.dumps(found, indent=2))
    more = grown(found, read_counts(STORED)) if check else []
    if more:
        sys.exit(
            "\n".join(
                [
                    *more,
                    "where that is meant: python scripts/benchmark.py counts --json "
                    f"results/speed/{STORED.name}",
                ]
            )
        )
    return found


if __name__ == "__main__":
    main()
