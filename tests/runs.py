"""Tiny trained runs, what they leave behind, and the scripts that read them, shared by tests."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from vis_rpg.cli import main
from vis_rpg.compose import compose
from vis_rpg.training import checkpoint
from vis_rpg.training.trainer import Trainer

GAUSSIAN = ("task=maze", "steps=150")
CATEGORICAL = (
    "task=block_push",
    "agent.latent.kind=categorical",
    "agent.latent.dim=5",
    "steps=100",
)
WITHOUT_Z = ("task=maze", "agent=mbsac", "steps=100")
"""Overrides of runs that several files read: `trained` trains them once for all."""
ROOT = Path(__file__).resolve().parents[1]
RUN_FILES = {
    "config.yaml",
    "runtime.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "replay",
    "visits",
    "summary.json",
    ".lock",
}
"""The contents of a run's folder when it is done."""
WALL_CLOCK = ("wall_s", "updates_per_s", "steps_per_s", "wait_env_s", "wait_device_s")


@cache
def trained(*overrides: str) -> Path:
    """The folder of a run with these overrides of preset=debug, trained once in a test session.
    Copy it before breaking it."""
    parent = Path(tempfile.mkdtemp(prefix="vis-rpg-test-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    Trainer(compose([*overrides, "preset=debug", "device=cpu", f"out={parent / 'run'}"])).run()
    return parent / "run"


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> int:
    """Run a command with these words in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    try:
        main(name.replace("_", "-"))
    except SystemExit as end:
        return (
            end.code if isinstance(end.code, int) else int(end.code is not None)
        )  # a message is an exit code of 1
    return 0


def lines(out: Path) -> list[dict[str, Any]]:
    """Everything that metrics.jsonl says."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def facts(out: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says that is no matter of the clock."""
    return [
        {key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines(out)
    ]


def final(out: Path) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    return checkpoint.load(checkpoint.latest(out))


def comparable(out: Path) -> dict[str, Any]:
    """The newest checkpoint of a run without what a run killed on the way may have otherwise:
    times, and where files are cut."""
    state = final(out)
    del state["wall_s"]
    for name in ("replay", "visits"):
        del state[name]["spans"], state[name]["digests"]
    return state


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two states differ, to the last bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if hasattr(first, "dtype"):
        return [] if (first == second).all() else [where]
    if isinstance(first, dict):
        missing = [f"{where}.{key}" for key in first.keys() ^ second.keys()]
        return missing + [
            found
            for key in first.keys() & second.keys()
            for found in differences(first[key], second[key], f"{where}.{key}")
        ]
    if isinstance(first, list):
        if len(first) != len(second):
            return [where]
        return [
            found
            for index, (a, b) in enumerate(zip(first, second, strict=True))
            for found in differences(a, b, f"{where}[{index}]")
        ]
    return [] if first == second or first != first and second != second else [where]
