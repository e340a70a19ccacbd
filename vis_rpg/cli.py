"""The command line of every script: Hydra, with one clear line per mistake and no output folders of
its own.

A script ends in `if __name__ == "__main__": run(main)`. Settings are checked against the YAML
defaults before any work starts: a key or an option that does not exist, a value of another kind
than its default (null as a default takes any; a text may become null), a key that is required
(`???`) and missing. Exit codes: 0 done, 1 a fault of ours (with its traceback), 2 the user's to
mend, 3 a model that was made and rejected, 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from vis_rpg.compose import VERSION_BASE, compose_checked, parse_override, require, resolve
from vis_rpg.errors import UserError
from vis_rpg.resources import CONFIG_DIR

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
"""What the system says of a path that is the user's to mend; a file that is not there may be a
fault of ours."""
# A run keeps its own folder and logs; Hydra is to write nothing, except a sweep's record.
HYDRA_SETTINGS = {
    "hydra.run.dir": ".",
    "hydra.output_subdir": "null",
    "hydra.sweep.dir": "runs/multirun",
    "hydra.sweep.subdir": ".",
    "hydra/job_logging": "disabled",
}


def run(
    main: Callable[[DictConfig], None], config_name: str = "train", config_dir: Path = CONFIG_DIR
) -> None:
    """Compose the config from the command line, check it, and call `main` with it, interpolations
    resolved.

    Hydra's flags (--help, --cfg job, --multirun, ...) work as ever. Ends the process with 2 after a
    `UserError`, a full disk or a path that cannot be written, with 3 after `ModelRejected`, and
    with 130 after Ctrl-C, each with one line on stderr; in a sweep the other jobs still run.
    """
    try:
        code = _run(main, config_name, config_dir)
    except UserError as error:
        _say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        sys.exit(130)
    if code:
        sys.exit(code)


def _run(main: Callable[[DictConfig], None], config_name: str, config_dir: Path) -> int:
    args, unknown = get_args_parser().parse_known_intermixed_args()
    require(
        not unknown,
        f"{' '.join(unknown)}: no such flag; settings are written key=value, as in seed=0",
    )
    if args.config_path:
        config_dir = Path(args.config_path).absolute()
    # Shell completion reads unfinished words.
    if not args.shell_completion:
        searched = [_search(Path(args.config_dir).absolute())] if args.config_dir else []
        for job in _jobs(args.overrides, args.multirun):
            compose_checked(searched + job, args.config_name or config_name, config_dir)

    code = 0

    def job_main(cfg: DictConfig) -> None:
        nonlocal code
        try:
            main(resolve(cfg))
        except UserError as error:
            _say(f"error: {error}")
            code = max(code, error.exit_code)
        except OSError as error:
            if error.errno not in (*FULL, *FORBIDDEN):
                raise
            where = error.filename or cfg.get("out") or Path.cwd()
            full = f"no space left for {where}: free some, then run again"
            _say(f"error: {full}" if error.errno in FULL else f"error: {where}: {error.strerror}")
            code = max(code, UserError.exit_code)

    given = {word.partition("=")[0] for word in args.overrides}
    settings = {"hydra.job.name": Path(sys.argv[0]).stem, **HYDRA_SETTINGS}
    ours = [f"{key}={value}" for key, value in settings.items() if key not in given]
    flags = [word for word in sys.argv[1:] if word not in args.overrides]
    # Hydra wants all overrides in one place.
    sys.argv[1:] = [*ours, *args.overrides, *flags]
    hydra.main(config_path=str(config_dir), config_name=config_name, version_base=VERSION_BASE)(
        job_main
    )()
    return code


def _search(folder: Path) -> str:
    """The override that adds a folder of configs, quoted, since a path may hold anything."""
    quoted = str(folder).replace('"', '\\"')
    return f'hydra.searchpath=["file://{quoted}"]'


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr, flush=True)


def _jobs(overrides: Sequence[str], multirun: bool) -> Iterator[list[str]]:
    """The overrides of each job: one, or every combination of a sweep's values."""
    parsed = [parse_override(word) for word in overrides]
    for override in parsed:
        require(
            multirun or not override.is_sweep_override(),
            f"{override.input_line}: several values; write {override.get_key_element()}=[...] "
            "for a list, or add --multirun to run each",
        )
    # A glob stands for options that exist: there is nothing in it to check.
    fixed = [o for o in parsed if not o.is_sweep_override()]
    swept = [o for o in parsed if o.is_discrete_sweep() and "glob(" not in str(o.input_line)]
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in swept
    ]
    for combination in itertools.product(*values):
        yield [*(str(o.input_line) for o in fixed), *combination]
