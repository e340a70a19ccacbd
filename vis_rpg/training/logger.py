"""Logs of a run: metrics.jsonl (one object a line), TensorBoard, and optionally W&B."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vis_rpg.errors import UserError, one_line


class Logger:
    """Writes the metrics of a run.

    A resumed run drops the lines after its checkpoint and continues the same W&B run.

    Args:
        out: The run's folder.
        wandb_project: None for no W&B.
        config: The whole config, for W&B.
        resume_step: The step to continue from; None for a new run.

    Raises:
        UserError: W&B cannot start; nothing is written then.
    """

    def __init__(
        self, out: Path, wandb_project: str | None, config: dict[str, Any], resume_step: int | None
    ) -> None:
        self.path = out / "metrics.jsonl"
        self.wandb = (
            None
            if wandb_project is None
            else _begin_wandb(out, wandb_project, config, resume_step is not None)
        )
        if resume_step is None:
            self.path.write_text("")
        elif self.path.exists():
            kept = [
                line
                for line in self.path.read_text(errors="replace").splitlines()
                if _step_of(line) <= resume_step
            ]
            part = self.path.with_suffix(".part")
            part.write_text("".join(line + "\n" for line in kept))
            part.replace(self.path)
        self.board = SummaryWriter(
            str(out / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )

    def write(self, metrics: dict[str, float | int]) -> None:
        """Write one line.

        Args:
            metrics: `step` and numbers; a NaN is written as null.
        """
        clean = without_nan(metrics)
        with open(self.path, "a") as file:
            file.write(json.dumps(clean) + "\n")
        for key, value in clean.items():
            if key != "step" and value is not None:
                self.board.add_scalar(key, value, int(metrics["step"]))
        if self.wandb is not None:
            self.wandb.log(clean, step=int(metrics["step"]))

    def close(self) -> None:
        """Close TensorBoard and W&B."""
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def without_nan(node: Any) -> Any:
    """Replace numbers that are not finite by None, which JSON can hold, however deep they lie."""
    if isinstance(node, dict):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _begin_wandb(out: Path, project: str, config: dict[str, Any], resumed: bool) -> Any:
    """Continue the W&B run whose id is in the run's folder, or start one and keep its id there."""
    kept = out / "wandb_id"
    try:
        import wandb

        name = kept.read_text().strip() if resumed and kept.exists() else None
        run = wandb.init(
            project=project,
            dir=str(out),
            config=config,
            id=name,
            resume="allow",
            reinit="create_new",
        )
    except ImportError:
        raise UserError(
            f"logger.wandb={project} needs the package wandb: pip install wandb, or use "
            "logger=default"
        ) from None
    except Exception as error:  # No account, no network: whatever wandb raises.
        raise UserError(
            f"logger.wandb={project}: W&B cannot begin ({one_line(error)}): set "
            "WANDB_MODE=offline, or use logger=default"
        ) from error
    kept.write_text(f"{run.id}\n")
    return run


def _step_of(line: str) -> float:
    """Read the step of a line; infinite for a truncated line, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
