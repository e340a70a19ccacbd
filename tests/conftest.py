"""What every test runs under: one thread, rendering without a screen, whole tracebacks."""

from __future__ import annotations

import os

# MuJoCo and OpenMP read these when they are imported.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import torch

torch.set_num_threads(1)
