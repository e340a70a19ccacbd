"""Errors that the user can fix: each is one clear line and a non-zero exit, never a traceback."""


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


def one_line(error: Exception) -> str:
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
