"""Fused CPU kernels (fused.cpp), forward and backward: linear layers, GRU steps, convolutions.

Torch takes a product, a bias and an activation as three passes over memory, and their gradients as
five. Here whatever follows a product is computed while its sums are still in registers, and blocks
of rows go through all layers while they are in the cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

ACTIVATIONS = ("none", "elu", "leaky_relu")
"""In the order of fused.cpp."""
SOURCE = Path(__file__).with_name("fused.cpp")
LOADED = False
"""Whether `load` has succeeded."""
FLAGS = (
    "-O3",
    "-w",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-std=c++20",
    "-shared",
    "-fPIC",
)
ROWS = 64
"""Rows from which a kernel is worth its call."""
WIDTH = 32
"""Widths of a GRU's input and state, and channels after each convolution, are multiples of this."""


@functools.cache
def load() -> None:
    """Compile the kernels for this processor (half a minute), or load them from `cache_folder()`.

    Raises:
        OSError: There is no compiler or it fails.
    """
    # Imported late: the import prints a warning where there is a CUDA compiler and no GPU.
    from torch.utils import cpp_extension

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("no C++ compiler")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    sources = [SOURCE, *sorted(SOURCE.parent.glob("fused*.h"))]
    made_of = "\n".join(
        [
            *(source.read_text() for source in sources),
            *FLAGS,
            version,
            torch.__version__,
            processor(),
        ]
    )
    folder = cache_folder()
    path = folder / f"fused-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary, path.name)
            includes = [f"-I{place}" for place in cpp_extension.include_paths()]
            libraries = [
                *(f"-L{place}" for place in cpp_extension.library_paths()),
                "-ltorch_cpu",
                "-lc10",
            ]
            command = [compiler, *FLAGS, *includes, str(SOURCE), *libraries, "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = next(
                    (line for line in done.stderr.splitlines() if "error" in line),
                    f"it ended with {done.returncode}",
                )
                raise OSError(f"{compiler} cannot compile {SOURCE}: {why}")
            os.replace(made, path)
    torch.ops.load_library(path)
    _describe()
    global LOADED
    LOADED = True


def cache_folder(name: str = "perception") -> Path:
    """Make and return the folder that caches what was compiled or measured on this machine.

    It lies in the user's cache folder. If the user has no writable home, it is a private temporary
    folder, and a line says so.

    Args:
        name: Name of the folder.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), name)
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        why = f"{folder} cannot be written"
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home.
        why = str(error)
    return _temporary_folder(name, why)


@functools.cache
def _temporary_folder(name: str, why: str) -> Path:
    folder = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # What lies there is loaded as code.
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    print(
        f"no cache folder ({why}): compiled kernels are kept in {folder}; XDG_CACHE_HOME "
        "names another",
        file=sys.stderr,
    )
    return folder


def processor(about: str = "flags") -> str:
    """Return a line about the processor, by default what `-march=native` depends on."""
    try:
        return next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(about)
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


_FLAGS = processor().split()
MULTIPLIES_BFLOAT16 = "avx512_bf16" in _FLAGS
"""Whether this processor has the bfloat16 instructions of these kernels."""
TAKES_BFLOAT16 = MULTIPLIES_BFLOAT16 and "amx_bf16" not in _FLAGS
"""Whether bfloat16 is these kernels' to multiply: where there is AMX, torch is faster."""


def takes_chain(x: Sequence[Tensor], between: Iterable[int]) -> bool:
    """Whether `chain` takes these inputs.

    It takes enough float32 rows on a CPU without autocast, or, if widths are even and
    `TAKES_BFLOAT16`, with autocast to bfloat16.

    Args:
        x: Inputs (..., K_i).
        between: Widths of the layers before the last.
    """
    fits = (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in x)
        and x[0].numel() >= ROWS * x[0].shape[-1]
    )
    return fits and (not _half() or (TAKES_BFLOAT16 and not any(width % 2 for width in between)))


def takes_gru(x: Tensor, h: Tensor) -> bool:
    """Whether `gru` takes inputs x (T, B, K) and state h (B, N)."""
    return takes_chain([x], ()) and not any(t.shape[-1] % WIDTH for t in (x, h))


def _half() -> bool:
    """Whether factors are bfloat16: autocast to float16 on a CPU is not used here."""
    return torch.is_autocast_enabled("cpu")


def chain(
    x: Sequence[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str = "elu"
) -> Tensor:
    """Apply linear layers with an activation between them, where `takes_chain` holds after `load`.

    Under `torch.vmap` all rows of the mapped axis are one call. Under autocast, factors (gradients'
    too) and values between layers are rounded to bfloat16; sums, results and gradients are float32.

    Args:
        x: Inputs (..., K_i), read as one tensor of their concatenation.
        weights: (N_l, K_l) of each layer.
        biases: (N_l,) of each layer.
        activation: One of ACTIVATIONS.

    Returns:
        (..., N of the last layer).
    """
    # An agent without z has an input of width 0.
    rows = [t.reshape(-1, t.shape[-1]) for t in x if t.shape[-1]]
    out = torch.ops.perception.chain(
        rows, weights, biases, ACTIVATIONS.index(activation), _half(), False
    )
    return out[-1].view(*x[0].shape[:-1], -1)


def gru(x: Tensor, h: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Take GRU steps with known inputs, where `takes_gru` holds after `load`.

    K and N are multiples of `WIDTH`. Under `torch.vmap` and autocast it behaves as `chain`.

    Args:
        x: (T, B, K).
        h: The initial state (B, N).
        weights: (3N, K) and (3N, N), in PyTorch's order.
        biases: (3N,) twice.

    Returns:
        The state after each step, (T, B, N).
    """
    return torch.ops.perception.gru(x, h, weights, biases, _half(), False)[0]


def takes_frames(frames: Tensor, weights: list[Tensor]) -> bool:
    """Whether `encode` takes these: two or more uint8 frames in time on a CPU, without autocast.

    Weights must be float32, with multiples of `WIDTH` channels.
    """
    return (
        frames.device.type == "cpu"
        and frames.dtype == torch.uint8
        and frames.shape[-5] > 1
        and frames.shape[-4] > 0
        and all(w.dtype == torch.float32 and w.shape[-4] % WIDTH == 0 for w in weights)
        and not torch.is_autocast_enabled("cpu")
    )


def encode(frames: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Apply 3 x 3 convolutions of stride 2, padding 1, ReLU between, where `takes_frames` holds.

    They read each frame, in [-0.5, 0.5], together with the one before it. `load` must have
    succeeded. Under `torch.vmap` it behaves as `chain`.

    Args:
        frames: (T + 1, B, H, W, C) uint8.
        weights: (N_l, K_l, 3, 3) of each layer; the first reads both frames' channels.
        biases: (N_l,) of each layer.

    Returns:
        (T, B, N * H' * W'), channels first.
    """
    return torch.ops.perception.encode(frames, weights, biases, False)[0]


def _describe() -> None:
    """Register shape rules for tracing and vmap rules with torch."""

    def front(groups: int, t: Any, dim: int | None) -> Any:
        if dim is None:
            return t.expand(groups, *t.shape) if isinstance(t, Tensor) else t
        return t.movedim(dim, 0)

    def mapped(op: Any, info: Any, dims: Any, *inputs: Any) -> Any:
        own = functools.partial(front, info.batch_size)
        out = op(*pytree.tree_map(own, inputs, dims))
        return out, [0] * len(out)

    def empty(*like: Tensor) -> list[Tensor]:
        return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in like]

    @torch.library.register_fake("perception::chain")
    def _(
        x: list[Tensor],
        weights: list[Tensor],
        biases: list[Tensor],
        activation: int,
        half: bool,
        keep: bool,
    ) -> list[Tensor]:
        between = torch.bfloat16 if half else torch.float32
        hidden = [
            x[0].new_empty(*x[0].shape[:-1], w.shape[-2], dtype=between)
            for w in weights[:-1]
            if keep
        ]
        return [*hidden, x[0].new_empty(*x[0].shape[:-1], weights[-1].shape[-2])]

    @torch.library.register_fake("perception::chain_backward")
    def _(
        gradient: Tensor,
        x: list[Tensor],
        weights: list[Tensor],
        biases: list[Tensor],
        hidden: list[Tensor],
        activation: int,
        half: bool,
        of_x: bool,
        of_weights: bool,
    ) -> list[Tensor]:
        whole = gradient.new_empty(*gradient.shape[:-1], sum(t.shape[-1] for t in x))
        return [*([whole] if of_x else []), *empty(*([*weights, *biases] if of_weights else []))]

    @torch.library.register_fake("perception::gru")
    def _(
        x: Tensor, h: Tensor, weights: list[Tensor], biases: list[Tensor], half: bool, keep: bool
    ) -> list[Tensor]:
        (*steps, _), n = x.shape, h.shape[-1]
        return [h.new_empty(*steps, n), *([h.new_empty(*steps, 4, n)] if keep else [])]

    @torch.library.register_fake("perception::gru_backward")
    def _(
        gradient: Tensor,
        x: Tensor,
        h: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        out: Tensor,
        gates: Tensor,
        half: bool,
        of_x: bool,
        of_weights: bool,
    ) -> list[Tensor]:
        return empty(h, *([x] if of_x else []), *([*weights, *biases] if of_weights else []))

    @torch.library.register_fake("perception::encode")
    def _(frames: Tensor, weights: list[Tensor], biases: list[Tensor], keep: bool) -> list[Tensor]:
        *groups, steps, batch, h, w, _ = frames.shape
        kept = []
        for index, weight in enumerate(weights):
            h, w = (h + 1) // 2, (w + 1) // 2
            if keep and index > 1:
                kept.append((2 * h + 1, 2 * w + 1, weight.shape[-3]))
        shapes = [(weights[-1].shape[-4] * h * w,), *kept]
        return [weights[0].new_empty(*groups, steps - 1, batch, *shape) for shape in shapes]

    @torch.library.register_fake("perception::encode_backward")
    def _(
        gradient: Tensor,
        frames: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        kept: list[Tensor],
    ) -> list[Tensor]:
        return empty(*weights, *biases)

    for name in ("chain", "gru", "encode"):
        rule = functools.partial(mapped, getattr(torch.ops.perception, name))
        torch.library.register_vmap(f"perception::{name}", rule)
