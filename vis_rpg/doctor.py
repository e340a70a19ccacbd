"""What works on this machine, in one screen: processor, GPU, compiler, tasks, pictures, extras."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires, version

import torch
from omegaconf import DictConfig

from perception.ops.kernels import MULTIPLIES_BFLOAT16
from vis_rpg.checks import lacks_compiler
from vis_rpg.origin import commit, hardware

TASKS = {
    "task=block_push obs=state": ({"name": "block_push"}, "state"),
    "task=block_push obs=pixels": ({"name": "block_push"}, "pixels"),
    "task=adroit_door obs=state": ({"name": "adroit_door"}, "state"),
    "task=metaworld_stick_pull obs=state": ({"name": "metaworld_stick_pull"}, "state"),
    "task=cabinet_sparse obs=state": ({"name": "cabinet_sparse"}, "state"),
    "task=cabinet_sparse obs=pixels": ({"name": "cabinet_sparse"}, "pixels"),
}
"""One task of each library and kind of picture, as `make_env` takes it."""
PROBE = """
import json, sys
from vis_rpg.envs.make import make_env
from vis_rpg.errors import UserError
try:
    make_env(json.loads(sys.argv[1]), sys.argv[2], seed=0)
except UserError as error:
    sys.exit(f"error: {error}")
"""
SECONDS = 120
"""Time that a task has to start."""


def lacks(task: dict[str, str], obs: str) -> str | None:
    """Start a task in a process of its own, which a broken driver may end.

    Args:
        task: As `make_env` takes it.
        obs: state | pixels.

    Returns:
        Why it does not start; None where it does.
    """
    words = [sys.executable, "-c", PROBE, json.dumps(task), obs]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"has not started within {SECONDS} s"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()
    if done.returncode < 0:
        return f"its process ended with signal {-done.returncode}"
    return said[-1].removeprefix("error: ") if said else f"ended with {done.returncode}"


def extras() -> dict[str, str | None]:
    """Return what each extra of the package lacks here, None where all of it is installed."""
    found: dict[str, str | None] = {}
    for line in requires("vis-rpg") or []:
        if extra := re.search(r"""extra == ['"]([\w-]+)['"]""", line):
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            found.setdefault(extra[1], None)
            try:
                distribution(name)
            except PackageNotFoundError:
                found[extra[1]] = f"{name} is missing: pip install 'vis-rpg[{extra[1]}]'"
    return found


def gpus() -> str:
    """Name the GPUs that PyTorch can use."""
    each = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in each)


def findings() -> Iterator[tuple[str, str | None, str]]:
    """Yield what was looked at, what it lacks (None: nothing) and, where it works, what it is."""
    yield "vis-rpg", None, f"{version('vis-rpg')}, {commit()}"
    names = "torch", "mujoco", "gymnasium", "numpy"
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    yield "Python", None, f"{platform.python_version()}, {versions}"
    yield "processor", None, hardware(torch.device("cpu"))
    there = torch.cuda.is_available()
    yield "device=cuda", None if there else "PyTorch sees no GPU", gpus() if there else ""
    lacking = lacks_compiler("cpu")
    yield "runtime=compile on a CPU", lacking and f"needs {lacking}", "a compiler is there"
    half = None if MULTIPLIES_BFLOAT16 else "the processor has no instructions for it"
    yield "precision=bfloat16 on a CPU", half, "pays compiled, on AMD and with AMX (results/speed)"
    for words, (task, obs) in TASKS.items():
        yield words, lacks(task, obs), "starts"
    for name, missing in extras().items():
        yield f"extra {name}", missing, "installed"


def main(config: DictConfig) -> None:
    """Print what works here and, of the rest, what it takes."""
    for what, missing, found in findings():
        print(f"{what:<36}{'yes' if missing is None else 'no ':<5}{missing or found}", flush=True)
