"""Logs of a run: metrics.jsonl (one object a line), TensorBoard, and W&B where it is asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Logger:
    """Writes metrics of a run folder; a resumed run drops the lines that came after its checkpoint."""

    def __init__(self, out: Path, wandb_project: str | None, config: dict[str, Any], resume_step: int | None) -> None:
        self.path = out / "metrics.jsonl"
        if resume_step is None:
            self.path.write_text("")
        elif self.path.exists():
            kept = [line for line in self.path.read_text(errors="replace").splitlines() if _step_of(line) <= resume_step]
            part = self.path.with_suffix(".part")
            part.write_text("".join(line + "\n" for line in kept))
            part.replace(self.path)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1)
        self.wandb = None
        if wandb_project is not None:
            import wandb

            self.wandb = wandb.init(project=wandb_project, dir=str(out), config=config, resume="allow", reinit="create_new")

    def write(self, metrics: dict[str, float | int]) -> None:
        """One line: `metrics` holds `step` and numbers; a NaN is written as null."""
        clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in metrics.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(clean) + "\n")
        for key, value in clean.items():
            if key != "step" and value is not None:
                self.board.add_scalar(key, value, int(metrics["step"]))
        if self.wandb is not None:
            self.wandb.log(clean, step=int(metrics["step"]))

    def close(self) -> None:
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that a kill cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
