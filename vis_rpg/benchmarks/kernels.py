"""Whole updates per second with the C++ kernels, without them, and with products by oneDNN.

`python -m vis_rpg.benchmarks.kernels OUT.json [SECONDS]` times compiled updates in turns, in one
process, and adds a line for each setting.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perception import ops
from vis_rpg.benchmarks.updates import UPDATES, filled, machine
from vis_rpg.errors import one_line

SETTINGS = {
    f"{name}, preset={preset}": [*UPDATES[name], f"preset={preset}"]
    for preset in ("cpu", "paper")
    for name in ("state", "slots frozen", "cnn")
}
BLOCK_S = 2.0
"""Seconds of one turn."""


@torch.library.custom_op("vis_rpg::onednn_linear", mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply x (B, K) by weight (N, K) transposed and add bias (N,), by oneDNN: (B, N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    of_x = onednn_linear(gradient.contiguous(), weight.t().contiguous(), None)
    of_weight = onednn_linear(gradient.t().contiguous(), x.t().contiguous(), None)
    return of_x, of_weight, gradient.sum(0)


onednn_linear.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2])
)


class OneDnn:
    """`torch.nn.functional` whose `linear` is `onednn_linear`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply a linear layer (N, K) to x (..., K): (..., N)."""
        flat = x.flatten(0, -2).contiguous()
        return onednn_linear(flat, weight.contiguous(), bias).unflatten(0, x.shape[:-1])


VARIANTS: dict[str, tuple[ops.Backend, Any]] = {
    "kernels": ("auto", F),
    "torch": ("torch", F),
    "torch, oneDNN": ("torch", OneDnn()),
}


def compare(overrides: list[str], seconds: float) -> dict[str, Any]:
    """Time each variant in turns.

    Returns:
        Median updates per second over blocks, and ratios of the kernels to the others as the median
        over rounds.
    """
    steps: dict[str, Callable[[], None]] = {}
    for name, (backend, functional) in VARIANTS.items():
        ops.BACKEND, ops.F = backend, functional  # as it is traced, so it stays
        words = [*overrides, "device=cpu", "runtime=compile"]
        learner = filled(words).learner
        for _ in range(4):
            learner.step()
        steps[name] = learner.step
    ops.BACKEND, ops.F = "auto", F
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(max(3, round(seconds / BLOCK_S / len(VARIANTS)))):
        for name, step in steps.items():
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < BLOCK_S or count % 2:
                step()
                count += 1
            rates[name].append(count / (time.perf_counter() - begin))
    medians = {name: round(float(np.median(own)), 2) for name, own in rates.items()}
    ratios = {
        f"kernels over {name}": round(
            float(np.median(np.array(rates["kernels"]) / np.array(own))), 3
        )
        for name, own in rates.items()
        if name != "kernels"
    }
    return {"updates_per_s": medians, **ratios}


if __name__ == "__main__":
    out, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    lines: list[dict[str, Any]] = [machine(torch.device("cpu"))]
    for name, overrides in SETTINGS.items():
        try:
            lines.append({"name": name, **compare(overrides, seconds)})
        except Exception as error:  # compilers and caches raise anything: time the others
            lines.append({"name": name, "failed": one_line(error)[:300]})
        print(json.dumps(lines[-1]), flush=True)
        out.write_text(json.dumps(lines, indent=1) + "\n")
