"""A checkpoint when a scheduler is about to end the process, before its grace time is over."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vis_rpg import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What says so: SIGTERM, and SIGUSR2 by submitit before a Slurm job's time is up."""


@contextmanager
def checkpoint_on_signal(save: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Note signals instead of ending at once; between two steps, save and then obey them.

    A noted signal goes to whoever had it before: by default the process ends, and submitit or Ray
    starts it again elsewhere. Signals that nobody handles but SIGTERM stay as they are. Of several
    processes all obey what one has noted.

    Args:
        save: Writes a checkpoint.

    Yields:
        To be called after each step. Returns False: if the signal does not end the process,
        training goes on.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python handles signals in the main thread alone
        return
    before = {each: signal.getsignal(each) or signal.SIG_DFL for each in SIGNALS}
    if before[signal.SIGUSR2] is signal.SIG_DFL:
        del before[signal.SIGUSR2]

    def listen() -> None:
        for each in before:
            signal.signal(each, lambda number, _: noted.append(number))

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def obey() -> bool:
        if number := distributed.maximum(noted[-1] if noted else 0):
            save()
            restore()
            noted[-1:] = []
            signal.raise_signal(number)
            listen()
        return False

    listen()
    try:
        yield obey
    finally:
        restore()
        if noted:  # during the end of a run, which has saved its last checkpoint
            signal.raise_signal(noted.pop())
