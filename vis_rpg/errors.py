"""Errors that the user can fix: each is one clear line and a non-zero exit, never a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


class UserError(Exception):
    """An error that the user can fix.

    Its message names the thing, the value, and the way out; `vis_rpg.cli` prints it as one line and
    exits with `exit_code`.
    """

    exit_code = 2


class ModelRejected(UserError):
    """A slot model was trained and written, but it is not good enough to use."""

    exit_code = 3


class RunStopped(UserError):
    """A run had to stop midway (NaN, an environment that raises, a full disk).

    Its last good checkpoint is kept.
    """


class WorkersFailed(RunStopped):
    """A worker process died again and again.

    The run can still be saved as it was before the step, except for its running episodes.
    """


def nearest(
    word: object, names: Iterable[str], least: float = 0.3, hint: str = " (nearest: {})"
) -> str:
    """Return a hint at the nearest name, or nothing.

    Args:
        word: What was written.
        names: Those that exist.
        least: Likeness in [0, 1] below which none is named. The last part of a dotted key counts
            nearly as much as the whole.
        hint: The hint, with {} for the name.
    """
    written = str(word)

    def likeness(name: str) -> float:
        tail = SequenceMatcher(None, name.rpartition(".")[2], written.rpartition(".")[2]).ratio()
        return max(SequenceMatcher(None, name, written).ratio(), 0.9 * tail)

    best = max(names, key=likeness, default="")
    return hint.format(best) if best and likeness(best) >= least else ""


def one_line(error: BaseException) -> str:
    """Format another library's error for a message: its kind and its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless a condition holds.

    Args:
        condition: What must hold.
        message: Names the thing, the value, and the way out.

    Raises:
        UserError: The condition does not hold.
    """
    if not condition:
        raise UserError(message)
