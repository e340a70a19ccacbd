"""Checkpoints: folders of safetensors and JSON, written atomically, the last two kept.

No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vis_rpg.errors import UserError, one_line, require
from vis_rpg.training.chunks import digest, write_tensors

FORMAT = "vis-rpg checkpoint 15"
KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a state as folder/step-N.

    Args:
        folder: The run's checkpoints.
        step: N, the run's interactions.
        state: Nested dicts and lists of tensors, arrays and JSON values.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: The disk is full; earlier checkpoints are not touched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"step-{step:010d}", folder / f".writing-{step}"
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    try:
        for left in folder.glob(".writing-*"):  # by a run that was killed
            shutil.rmtree(left)
        temporary.mkdir()
        tensor_file = temporary / "state.safetensors"
        write_tensors(tensor_file, tensors)
        written = {"tensor_bytes": tensor_file.stat().st_size, "tensor_digest": digest(tensor_file)}
        document = {"format": FORMAT, "step": step, **written, "state": tree}
        with open(temporary / "state.json", "w") as file:
            json.dump(document | {"digest": _document_digest(document)}, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    kept = complete(folder)[-KEPT:]
    for old in _numbered(folder):
        if old not in kept:
            shutil.rmtree(old)
    return path


def complete(folder: Path) -> list[Path]:
    """List the complete checkpoints in a folder, oldest first."""
    return [path for path in _numbered(folder) if (path / "state.json").exists()]


def _numbered(folder: Path) -> list[Path]:
    """List folders of checkpoints, incomplete ones included, oldest first; skip renamed ones."""
    return sorted(
        path
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdecimal() and path.is_dir()
    )


def latest(run: Path) -> Path:
    """Return the newest checkpoint of a run.

    Raises:
        UserError: There is none.
    """
    found = complete(run / "checkpoints")
    require(
        bool(found),
        f"{run}: no checkpoint there (looked for {run / 'checkpoints'}/step-*): give the "
        "folder of a run that was trained",
    )
    return found[-1]


def load(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint.

    Raises:
        UserError: A file is missing, damaged, or no checkpoint of this version.
    """
    way_out = "delete this folder to use the one before"
    try:
        document = json.loads((path / "state.json").read_text())
    except OSError as error:
        raise UserError(f"{path}: not a checkpoint (state.json: {error.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: broken checkpoint, state.json is cut short: {way_out}") from None
    require(
        isinstance(document, dict) and document.get("format") == FORMAT,
        f"{path}: not a checkpoint of this version (state.json does not say {FORMAT!r})",
    )
    require(
        document.pop("digest", None) == _document_digest(document),
        f"{path}: broken checkpoint, state.json is not as it was saved (its checksum "
        f"differs): {way_out}",
    )
    file_path = path / "state.safetensors"
    try:
        require(
            file_path.stat().st_size == document["tensor_bytes"],
            f"{path}: broken checkpoint, state.safetensors is cut short or another file: {way_out}",
        )
        # Copies, because the file is mapped: a run that goes on must not depend on a file that may
        # be replaced.
        tensors = {key: value.clone() for key, value in load_file(file_path).items()}
        if digest(file_path) != document["tensor_digest"]:
            broken = (
                f"NaN or infinity in {key}"
                for key, value in tensors.items()
                if not value.isfinite().all()
            )
            why = next(broken, "its checksum differs")
            raise UserError(
                f"{path}: broken checkpoint, state.safetensors is not as it was saved ({why}): "
                f"{way_out}"
            )
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: broken checkpoint, state.safetensors cannot be read ({error}): {way_out}"
        ) from None
    return cast(dict[str, Any], _join(document["state"], tensors))


def _document_digest(document: dict[str, Any]) -> str:
    """Checksum what state.json says, the same before writing and after reading."""
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _split(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return JSON in which tensors and arrays are references into `tensors`."""
    if isinstance(node, Tensor):
        tensors[name] = node
        return {"$tensor": name}
    if isinstance(node, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(node)).reshape(node.shape)
        return {"$array": name}
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, dict):
        return {str(key): _split(value, f"{name}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_split(value, f"{name}/{index}", tensors) for index, value in enumerate(node)]
    return node


def _join(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_join(value, tensors) for value in node]
    if isinstance(node, dict):
        if "$tensor" in node:
            return tensors[node["$tensor"]]
        if "$array" in node:
            return tensors[node["$array"]].numpy()
        return {key: _join(value, tensors) for key, value in node.items()}
    return node


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Turn a failure to use a checkpoint's contents into a UserError that names it.

    Args:
        path: The checkpoint.

    Raises:
        UserError: The contents do not fit this run.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the checkpoint does not fit this run ({one_line(error)}): give another out"
        ) from error
