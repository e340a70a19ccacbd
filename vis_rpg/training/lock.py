"""One process per run folder: a lock that the system releases however the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from vis_rpg.errors import UserError

NAME = ".lock"


def lock(folder: Path) -> TextIO:
    """Make a run's folder and lock it until the returned file is closed.

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
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"out={folder}: {holder} is training there: wait until it ends, or give another out"
        ) from None
    except OSError:
        return file  # A file system without locks: nothing keeps others out.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
