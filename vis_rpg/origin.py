"""What code and what hardware something was made with."""

from __future__ import annotations

import functools
import os
import subprocess
from importlib.metadata import version

import torch

from perception.ops import kernels
from vis_rpg.resources import ROOT


@functools.cache
def commit() -> str:
    """Return the commit of a checkout, with -dirty where files differ; else the version."""
    if (ROOT / ".git").exists():  # not that of a checkout around an environment of packages
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        try:
            found = subprocess.run(words, capture_output=True, text=True, check=True)
            return found.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return f"vis-rpg {version('vis-rpg')}"


def hardware(device: torch.device) -> str:
    """Name a GPU, or the processor with the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = kernels.processor("model name").rpartition(":")[2].strip()
    return f"{name}, {os.cpu_count()} cores"
