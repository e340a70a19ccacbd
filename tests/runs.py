"""Tiny trained runs and the scripts that read them, shared by tests."""

from __future__ import annotations

import atexit
import runpy
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from vis_rpg.cli import compose
from vis_rpg.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


@cache
def trained(*overrides: str) -> Path:
    """The folder of a run with these overrides of preset=debug, trained once in a test session. Copy it before breaking it."""
    parent = Path(tempfile.mkdtemp(prefix="vis-rpg-test-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    Trainer(compose([*overrides, "preset=debug", "device=cpu", f"out={parent / 'run'}"])).run()
    return parent / "run"


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> int:
    """Run scripts/<name>.py with these words in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    try:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
