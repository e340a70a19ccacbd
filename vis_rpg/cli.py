"""The command line: `vis-rpg COMMAND key=value ...`, with one clear line per mistake.

Settings are checked before any work starts. Exit codes: 0 done, 1 a fault of ours (with its
traceback), 2 the user's to mend, 3 a model that was made and rejected, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    split_launcher,
    sweep,
)
from vis_rpg.config import SCHEMAS
from vis_rpg.errors import UserError, require
from vis_rpg.resources import CONFIG_DIR
from vis_rpg.schema import describe, flatten, shown
from vis_rpg.sweeps.launch import IN_PROCESS, Job, Outcome, launch, launcher_of

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
    "tune": ("tune", "vis_rpg.sweeps.tune", "search settings by Ray Tune and ASHA"),
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
  -m, --multirun      run every combination of the values in key=a,b, one after the other, or with
                      hydra/launcher=ray | submitit_slurm | submitit_local | joblib side by side
  --config-dir DIR    add the YAML files of a folder, such as DIR/task/mine.yaml for task=mine
  --config-path DIR   take the YAML files of this folder only
  --config-name NAME  start from NAME.yaml"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _thread_ended(error: threading.ExceptHookArgs) -> None:
    """Print a traceback, but where TensorBoard's thread finds the disk full and hands that on."""
    if not (isinstance(error.exc_value, OSError) and error.exc_value.errno in FULL):
        threading.__excepthook__(error)


def main(command: str | None = None) -> None:
    """Run a command, by default the one that the command line names, and end the process."""
    threading.excepthook = _thread_ended
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
    sys.exit(run(partial(_call, module), words, config_name, usage=f"vis-rpg {name}: {about}"))


def _call(module: str, config: DictConfig) -> None:
    import_module(module).main(config)


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
    schema = schema or SCHEMAS[config_name]
    try:
        sweep_of = _parse(words, config_name, config_dir, schema, usage)
        if sweep_of.launcher == IN_PROCESS:
            return max((_report(_attempt(job, config)) for config in sweep_of.jobs), default=0)
        launched = launch(
            Job(partial(_attempt, job), schema),
            sweep_of.launcher,
            sweep_of.words,
            sweep_of.config_name,
            sweep_of.config_dir,
        )
        return max(_report(outcome, f"{settings}: ") for settings, outcome in launched)
    except UserError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        return 130


@dataclass
class _Sweep:
    """The jobs of a command line, one without --multirun, and where they run."""

    jobs: list[DictConfig]
    launcher: str
    words: list[str]
    config_name: str
    config_dir: Path


def _parse(
    words: Sequence[str], config_name: str, config_dir: Path, schema: type, usage: str
) -> _Sweep:
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
    folder = args.config_path.absolute()
    with config_files(folder):
        settings, hydras = split_launcher(args.settings, args.multirun)
        launcher = launcher_of(hydras)
        jobs = [
            compose_unchecked([*searched, *own], args.config_name)
            for own in sweep(settings, args.multirun)
        ]
        if args.help:
            _print_help(usage, schema, jobs[0], groups_of(args.config_name))
    if args.cfg:
        print("\n".join(OmegaConf.to_yaml(config) for config in jobs), end="")
    if args.help or args.cfg:
        return _Sweep([], IN_PROCESS, [], args.config_name, folder)
    jobs = [checked(config, schema) for config in jobs]
    return _Sweep(jobs, launcher, [*searched, *hydras, *settings], args.config_name, folder)


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


def _attempt(job: Callable[[DictConfig], None], config: DictConfig) -> Outcome:
    """Run a job; an error that the user can mend becomes one line."""
    try:
        job(config)
    except UserError as error:
        return Outcome(error.exit_code, f"{error}")
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        where = error.filename or config.get("out") or Path.cwd()
        full = f"no space left for {where}: free some, then run again"
        line = full if error.errno in FULL else f"{where}: {error.strerror}"
        return Outcome(UserError.exit_code, line)
    return Outcome(0)


def _report(outcome: Outcome, which: str = "") -> int:
    """Say why a job failed, if it did; return its exit code."""
    if outcome.line:
        _say(f"error: {which}{outcome.line}")
    return outcome.code


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
