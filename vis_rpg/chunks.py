"""Append-only files of rows, which checkpoints refer to: a checkpoint costs what is new since the one before."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vis_rpg.errors import UserError

Span = tuple[int, int]
"""Rows [start, end) by their number since the run began."""


class Chunks:
    """Files `<name>-<start>-<end>.safetensors` in a folder, each with rows [start, end) of several tensors."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.spans: list[Span] = []

    @property
    def end(self) -> int:
        """The number of the first row that is in no chunk."""
        return self.spans[-1][1] if self.spans else 0

    def path(self, span: Span) -> Path:
        return self.folder / f"{self.name}-{span[0]:010d}-{span[1]:010d}.safetensors"

    def append(self, tensors: dict[str, Tensor], start: int, end: int) -> None:
        """Write rows [start, end) as a new file, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path((start, end)), tensors)
        self.spans.append((start, end))

    def read(self, span: Span) -> dict[str, Tensor]:
        """The tensors of one chunk; raises UserError where it is missing or broken."""
        try:
            with safe_open(self.path(span), "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path(span)}: needed by a checkpoint of this run, but it cannot be read ({error})") from None

    def keep(self, spans: set[Span]) -> None:
        """Delete every file of this name in the folder but those of these spans, half-written ones of a killed run included."""
        wanted = {self.path(span) for span in spans}
        for path in self.folder.glob(f"{self.name}-*"):
            if path not in wanted:
                path.unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that is either whole or not there: written beside, flushed to the disk, renamed.

    Raises OSError where it cannot be written, a full disk among the reasons.
    """
    temporary = path.with_suffix(".part")
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:  # hides the system's error in its text
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def rows_of(tensors: dict[str, Tensor], numbers: Tensor) -> dict[str, Tensor]:
    """These rows of each tensor."""
    return {key: torch.index_select(value, 0, numbers.to(value.device)) for key, value in tensors.items()}
