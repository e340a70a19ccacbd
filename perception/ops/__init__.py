"""Operators of both packages: a torch implementation each, and kernels for compiled CPU code.

Everything works under `torch.func.vmap`. B is a batch, T time, K inputs, N outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.ops import kernels

Backend = Literal["auto", "torch", "kernels"]
BACKEND: Backend = "auto"
"""`auto`: kernels in compiled code once `kernels.load()` has succeeded, torch elsewhere. Inputs
that the kernels do not take run in torch."""


def _uses_kernels() -> bool:
    compiled = BACKEND == "auto" and kernels.LOADED and torch.compiler.is_compiling()
    return BACKEND == "kernels" or compiled


def elu_(x: Tensor) -> Tensor:
    """Apply ELU in place.

    Compiled code uses `exp`, which fuses into one pass of a third of the time of `expm1` on a CPU
    and is equal within 1e-7.
    """
    if torch.compiler.is_compiling():
        return torch.where(x > 0, x, x.clamp(max=0.0).exp() - 1.0)
    return F.elu_(x)


def mlp(
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Literal["elu", "leaky_relu"] = "elu",
) -> Tensor:
    """Apply linear layers with an activation between them.

    Args:
        x: Inputs (..., K_i), read as one tensor of their concatenation.
        weights: (N_l, K_l) of each layer.
        biases: (N_l,) of each layer.
        activation: Applied after every layer but the last.

    Returns:
        (..., N of the last layer).
    """
    if _uses_kernels() and kernels.takes_chain(x, [w.shape[-2] for w in weights[:-1]]):
        return kernels.chain(x, list(weights), list(biases), activation)
    out = x[0] if len(x) == 1 else torch.cat(list(x), -1)
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if index:
            out = elu_(out) if activation == "elu" else F.leaky_relu(out)
        out = F.linear(out, weight, bias)
    return out


def ensemble_mlp(
    x: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], members: int
) -> Tensor:
    """Apply the first members of an ensemble of three-layer MLPs with ELU and one output each.

    Args:
        x: Inputs (B, K_i) of all members, read as one tensor of their concatenation.
        weights: (M * N, K), (M, N, N) and (M, 1, N) for M members of hidden width N.
        biases: (M * N,), (M, 1, N) and (M, 1).
        members: How many of the M to run.

    Returns:
        (members, B).
    """
    (first, second, last), hidden = weights, weights[1].shape[-1]
    if _uses_kernels() and kernels.takes_chain(x, [hidden]):
        outputs = []
        for i in range(members):
            rows = slice(i * hidden, (i + 1) * hidden)
            own = (
                [first[rows], second[i], last[i]],
                [biases[0][rows], biases[1][i, 0], biases[2][i]],
            )
            outputs.append(kernels.chain(x, *own, "elu").mT)
        return torch.cat(outputs)
    rows = slice(members * hidden)
    joined = x[0] if len(x) == 1 else torch.cat(list(x), -1)
    out = elu_(F.linear(joined, first[rows], biases[0][rows]))
    out = out.unflatten(-1, (members, hidden)).transpose(0, 1)
    out = elu_(torch.baddbmm(biases[1][:members], out, second[:members].mT))
    return (out * last[:members]).sum(-1) + biases[2][:members]


def gru_gates(inputs: Tensor, recurrent: Tensor, h: Tensor) -> Tensor:
    """Take one GRU step from its two products (Cho et al. 2014, PyTorch's convention).

    Args:
        inputs: Product of the input, (..., 3 * N).
        recurrent: Product of the state, (..., 3 * N).
        h: The state (..., N).

    Returns:
        The next state (..., N), in the precision of h.
    """
    sizes = (2 * h.shape[-1], h.shape[-1])
    input_gates, input_new = inputs.split(sizes, -1)
    gates, new = recurrent.split(sizes, -1)
    reset, update = torch.sigmoid(input_gates + gates).chunk(2, -1)
    new = torch.tanh(torch.addcmul(input_new, reset, new))
    return torch.lerp(new.to(h.dtype), h, update.to(h.dtype))


def gru_step(x: Tensor, h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Take one step of `gru`: x (B, K), h (B, N) -> the next state (B, N)."""
    if _uses_kernels() and kernels.takes_gru(x, h):
        return kernels.gru(x.unsqueeze(0), h, list(weights), list(biases)).squeeze(0)
    return gru_gates(F.linear(x, weights[0], biases[0]), F.linear(h, weights[1], biases[1]), h)


def gru(x: Tensor, h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Take GRU steps with known inputs, whose products are computed at once.

    Args:
        x: (T, B, K).
        h: The initial state, (B, N).
        weights: (3 * N, K) and (3 * N, N).
        biases: (3 * N,) twice.

    Returns:
        The state after each step, (T, B, N).
    """
    if _uses_kernels() and kernels.takes_gru(x, h):
        return kernels.gru(x, h, list(weights), list(biases))
    states = []
    for inputs in F.linear(x, weights[0], biases[0]):
        h = gru_gates(inputs, F.linear(h, weights[1], biases[1]), h)
        states.append(h)
    return torch.stack(states)


def frame_pairs(frames: Tensor) -> Tensor:
    """Pair each frame with the one before it.

    Args:
        frames: (1 + T, B, H, W, 3) uint8.

    Returns:
        (T, B, 6, H, W) in [-0.5, 0.5], channels last in memory, the fastest layout for
        convolutions.
    """
    pairs = torch.cat([frames[:-1], frames[1:]], dim=-1)
    return pairs.float().div_(255).sub_(0.5).movedim(-1, 2)


def conv_pairs(frames: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Apply 3 x 3 convolutions of stride 2 and padding 1, ReLU between them, to frame pairs.

    Args:
        frames: (1 + T, B, H, W, 3) uint8.
        weights: (N_l, K_l, 3, 3) of each layer; the first reads 6 channels.
        biases: (N_l,) of each layer.

    Returns:
        (T, B, N * H' * W'), channels first.
    """
    if _uses_kernels() and kernels.takes_frames(frames, list(weights)):
        return kernels.encode(frames, list(weights), list(biases))
    pairs = frame_pairs(frames)
    out = pairs.flatten(0, 1)
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = F.conv2d(F.relu(out) if index else out, weight, bias, stride=2, padding=1)
    return out.flatten(1).unflatten(0, pairs.shape[:2])
