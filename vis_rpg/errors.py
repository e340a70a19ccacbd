"""Errors that are the user's to mend: each is one clear line and a non-zero exit, never a
traceback."""


class UserError(Exception):
    """Names the thing, the value, and the way out; `vis_rpg.cli` prints it as one line and exits
    with `exit_code`."""

    exit_code = 2


class ModelRejected(UserError):
    """A model was made and written aside, because it is not good enough to use."""

    exit_code = 3


class RunStopped(UserError):
    """A run that had to stop midway (NaN, an environment that raises, a full disk); the last good
    checkpoint is kept."""


class WorkersFailed(RunStopped):
    """A worker process died again and again. The run can still be saved as it was before the step,
    its running episodes aside."""


def one_line(error: Exception) -> str:
    """What another library raised, as part of a message: its kind and its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds; the message names the thing, the
    value, and the way out."""
    if not condition:
        raise UserError(message)
