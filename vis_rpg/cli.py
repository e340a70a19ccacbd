"""The command line: `vis-rpg COMMAND key=value ...`, with one clear line per mistake.

Settings are checked before any work starts. Exit codes: 0 done, 1 a fault of ours (with its
traceback), 2 the user's to mend, 3 a model that was made and rejected, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf

from vis_rpg.completion import script
from vis_rpg.compose import (
    checked,
    compose_unchecked,
    config_files,
    did_you_mean,
    groups_of,
    sweep,
)
from vis_rpg.config import SCHEMAS
from vis_rpg.errors import UserError, require
from vis_rpg.resources import CONFIG_DIR
from vis_rpg.schema import describe, flatten, shown

COMMANDS = {
    "train": ("train", "vis_rpg.training.trainer", "train agents"),
    "evaluate": ("evaluate", "vis_rpg.analysis.report", "evaluate a run and record rollouts"),
    "publish": (
        "publish",
        "vis_rpg.analysis.publish",
        "make a run an agent that others can load, in a folder or on the Hugging Face Hub",
    ),
    "diagnose": (
        "diagnose",
        "vis_rpg.analysis.diagnosis",
        "compare what a run's critics, model and bonus expect with what happens",
    ),
    "explore": (
        "explore",
        "vis_rpg.analysis.explorer.page",
        "write a page about a run to open in a browser: curves, explored states, rollouts by z",
    ),
    "discover-objects": (
        "discover",
        "vis_rpg.analysis.discovery_benchmark",
        "learn to see the objects of a task, without labels",
    ),
    "visualise-slots": (
        "visualise_slots",
        "vis_rpg.analysis.slots",
        "draw what the slots of a run or of a slot model see",
    ),
    "visualise-states": (
        "visualise_states",
        "vis_rpg.analysis.explored_states",
        "draw the states that a run visited, by z and by interaction",
    ),
    "visualise-tasks": (
        "visualise_tasks",
        "vis_rpg.analysis.tasks",
        "draw the first observation of every task",
    ),
    "plot-curves": ("plot_curves", "vis_rpg.analysis.curves", "draw learning curves over seeds"),
    "reproduce": (
        "reproduce",
        "vis_rpg.analysis.reproduce",
        "run a figure or table of the paper: curves, picture and table by one command",
    ),
    "benchmark": ("benchmark", "vis_rpg.benchmarks.report", "measure speed"),
    "dreamer": ("dreamer", "vis_rpg.benchmarks.dreamer", "train SheepRL's Dreamers on a task"),
    "ablate-discovery": (
        "ablate",
        "vis_rpg.analysis.discovery_ablation",
        "leave out each ingredient of object discovery in turn",
    ),
    "test-conditions": (
        "conditions",
        "vis_rpg.analysis.discovery_conditions",
        "test object discovery under noise, light, shaking and other conditions",
    ),
    "bandit": ("bandit", "vis_rpg.bandit.figure", "train and draw Fig. 4, on the one-step bandit"),
    "pathwise": (
        "pathwise",
        "vis_rpg.pathwise.figure",
        "train through known dynamics: RPG, trajectory optimisation and REINFORCE",
    ),
    "doctor": (
        "doctor",
        "vis_rpg.doctor",
        "say what works on this machine, and what the rest needs",
    ),
}
"""The config file, the module whose `main` runs, and the purpose of each command."""
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
"""Errors of a path that is the user's to mend; a file that is not there may be a fault of ours."""
FLAGS = """\
flags:
  -h, --help          show this
  --cfg job           show the config, and run nothing
  -m, --multirun      run every combination of the values in key=a,b
  --config-dir DIR    add the YAML files of a folder, such as DIR/task/mine.yaml for task=mine
  --config-path DIR   take the YAML files of this folder only
  --config-name NAME  start from NAME.yaml"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(command: str | None = None) -> None:
    """Run a command, by default the one that the command line names, and end the process."""
    words = [*([command] if command else []), *sys.argv[1:]]
    if not words or words[0] in ("-h", "--help"):
        print("usage: vis-rpg COMMAND [key=value ...] (vis-rpg COMMAND --help says more)\n")
        print("\n".join(f"  {name:<18}{about}" for name, (*_, about) in COMMANDS.items()))
        print('\nbash completes commands and settings after: eval "$(vis-rpg --completion)"')
        return
    if words[0] == "--version":
        print(f"vis-rpg {version('vis-rpg')}")
        return
    if words[0] == "--completion":
        print(script({name: config for name, (config, *_) in COMMANDS.items()}, CONFIG_DIR), end="")
        return
    name, *words = words
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        _say(f"error: {name}: no such command{near} (there are {', '.join(COMMANDS)})")
        sys.exit(UserError.exit_code)
    config_name, module, about = COMMANDS[name]

    def job(config: DictConfig) -> None:
        import_module(module).main(config)

    sys.exit(run(job, words, config_name, usage=f"vis-rpg {name}: {about}"))


def run(
    job: Callable[[DictConfig], None],
    words: Sequence[str],
    config_name: str = "train",
    config_dir: Path = CONFIG_DIR,
    schema: type | None = None,
    usage: str = "",
) -> int:
    """Compose and check the config of each job of a command line, then run the jobs.

    Args:
        job: Called with each config, interpolations resolved.
        words: Settings and flags.
        config_name: The YAML file to start from, without its ending.
        config_dir: The folder of the YAML files.
        schema: The dataclass of the config; by default that of `config_name`.
        usage: The first line of what --help says.

    Returns:
        The exit code. A mistake is one line on stderr; in a sweep the other jobs still run.
    """
    try:
        jobs = _jobs(words, config_name, config_dir, schema, usage)
        return max((_run(job, config) for config in jobs), default=0)
    except UserError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        return 130


def _jobs(
    words: Sequence[str], config_name: str, config_dir: Path, schema: type | None, usage: str
) -> list[DictConfig]:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir", type=Path)
    parser.add_argument("--config-path", type=Path, default=config_dir)
    parser.add_argument("--config-name", default=config_name)
    args, unknown = parser.parse_known_intermixed_args(words)
    require(
        not unknown,
        f"{' '.join(unknown)}: no such flag; settings are written key=value, as in seed=0",
    )
    searched = []
    if args.config_dir:  # quoted, since a path may hold anything
        folder = str(args.config_dir.absolute()).replace('"', '\\"')
        searched = [f'hydra.searchpath=["file://{folder}"]']
    schema = schema or SCHEMAS[config_name]
    with config_files(args.config_path.absolute()):
        jobs = [
            compose_unchecked([*searched, *own], args.config_name)
            for own in sweep(args.settings, args.multirun)
        ]
        if args.help:
            _print_help(usage, schema, jobs[0], groups_of(args.config_name))
    if args.cfg:
        print("\n".join(OmegaConf.to_yaml(config) for config in jobs), end="")
    return [] if args.help or args.cfg else [checked(config, schema) for config in jobs]


def _print_help(usage: str, schema: type, config: DictConfig, groups: dict[str, list[str]]) -> None:
    print(f"{usage}\n\n{FLAGS}\n")
    if groups:
        print("groups of settings:")
        print("\n".join(f"  {group}={' | '.join(options)}" for group, options in groups.items()))
    values = flatten(OmegaConf.to_container(config))
    meanings = {key: meaning for key, meaning in describe(schema) if key in values}
    print("\nsettings:")
    print(
        "\n".join(
            f"  {f'{key}={shown(values[key])}':<38}  {about}" for key, about in meanings.items()
        )
    )


def _run(job: Callable[[DictConfig], None], config: DictConfig) -> int:
    try:
        job(config)
    except UserError as error:
        _say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        where = error.filename or config.get("out") or Path.cwd()
        full = f"no space left for {where}: free some, then run again"
        _say(f"error: {full}" if error.errno in FULL else f"error: {where}: {error.strerror}")
        return UserError.exit_code
    return 0


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
