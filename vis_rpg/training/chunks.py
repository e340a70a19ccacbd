"""Append-only files of rows: checkpoints refer to them, so that each writes only new rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vis_rpg.errors import UserError, require

Span = tuple[int, int]
"""Rows [start, end), numbered since the run began."""


class Chunks:
    """Files `<name>-<start>-<end>.safetensors` with rows [start, end) of several tensors.

    Args:
        folder: Where they lie.
        name: Their common name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.spans: list[Span] = []
        self.digests: dict[str, str] = {}
        """Checksum of each file, by its name."""

    @property
    def end(self) -> int:
        """Number of the first row that is in no chunk."""
        return self.spans[-1][1] if self.spans else 0

    def path(self, span: Span) -> Path:
        """Return the file of rows [start, end)."""
        return self.folder / f"{self.name}-{span[0]:010d}-{span[1]:010d}.safetensors"

    def append(self, tensors: dict[str, Tensor], start: int, end: int) -> None:
        """Write rows [start, end) as a new file, atomically.

        Raises:
            OSError: It cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path((start, end))
        write_tensors(path, tensors)
        self.digests[path.name] = digest(path)
        self.spans.append((start, end))

    def read(self, span: Span) -> dict[str, Tensor]:
        """Read one chunk.

        Returns:
            Each column, (rows, ...).

        Raises:
            UserError: The file is missing or its checksum differs.
        """
        path = self.path(span)
        try:
            require(
                digest(path) == self.digests.get(path.name),
                f"{path}: needed by a checkpoint of this run, but it is not as it was "
                "written (its checksum differs)",
            )
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: needed by a checkpoint of this run, but it cannot be read ({error})"
            ) from None

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs, as JSON."""
        names = [self.path(span).name for span in self.spans]
        return {
            "spans": [list(span) for span in self.spans],
            "digests": {name: self.digests[name] for name in names},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with the files that `state` names."""
        self.spans, self.digests = (
            [(start, end) for start, end in state["spans"]],
            dict(state["digests"]),
        )

    def keep(self, spans: set[Span]) -> None:
        """Delete all files of this name but those of `spans`, half-written ones included."""
        wanted = {self.path(span) for span in spans}
        for path in self.folder.glob(f"{self.name}-*"):
            if path not in wanted:
                path.unlink()


def digest(path: Path) -> str:
    """Return the checksum of a file.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically: to a temporary file, flushed to the disk, renamed.

    Raises:
        OSError: It cannot be written, for instance because the disk is full.
    """
    temporary = path.with_suffix(".part")
    try:
        with open(temporary, "wb") as file:  # save_file's are readable for their owner alone
            file.write(
                save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def rows_of(tensors: dict[str, Tensor], numbers: Tensor) -> dict[str, Tensor]:
    """Select the rows `numbers` of each tensor."""
    return {
        key: torch.index_select(value, 0, numbers.to(value.device))
        for key, value in tensors.items()
    }
