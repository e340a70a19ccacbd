"""One process per run folder: a lock that the system releases however the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from vis_rpg.errors import UserError

NAME = ".lock"
LOST_S = 120.0
"""Seconds in which the lock of a machine that was lost is given back: NFS servers take 90."""


def lock(folder: Path, patience: float = 0.0) -> TextIO:
    """Make a run's folder and lock it until the returned file is closed.

    Args:
        folder: Of the run.
        patience: Seconds to wait for a process that has it.

    Raises:
        UserError: Another process has the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / NAME, "a+")  # noqa: SIM115 (stays open as long as the run)
    except OSError as error:
        raise UserError(
            f"out={folder}: cannot be written ({error.filename}: {error.strerror}); give "
            "another out"
        ) from None
    began = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            busy = f"out={folder}: {holder} is training there"
            if time.monotonic() - began >= patience:
                file.close()
                raise UserError(f"{busy}: wait until it ends, or give another out") from None
            if not told:
                line = f"{busy}; waiting {patience:.0f} s for its end, should it be lost"
                tqdm.write(line, file=sys.stderr)
            told = True
            time.sleep(0.2)
        except OSError:
            return file  # A file system without locks: nothing keeps others out.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
