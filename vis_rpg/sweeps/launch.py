"""Run the jobs of a sweep by a launcher plugin of Hydra: Ray, Slurm, processes of this machine.

Schedulers, queues and retries are the plugins' own. A job that is started again, since its machine
was lost or its time was up, continues from its last checkpoint if the sweep has `resume=true`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from vis_rpg.compose import COMPOSE_ERRORS, checked, config_files, did_you_mean, parse_override
from vis_rpg.errors import UserError, one_line, require

EXTRAS = {"ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm", "joblib": "joblib"}
"""The extra of this package that installs each launcher."""
IN_PROCESS = "basic"
"""Hydra's name of one job after the other in this process."""
QUIET = (
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra.sweep.dir=runs/sweeps/${now:%Y-%m-%d_%H-%M-%S}",
)
"""What Hydra keeps is its list of jobs and the logs of submitit; runs write into their `out`."""
FIXES = {"ray": ("+hydra.launcher.ray.init.object_store_memory=null",)}
"""The Ray plugin gives a size that Ray refuses when it joins a cluster; null leaves it to Ray."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    """The exit code; 0 is success."""
    line: str = ""
    """What to tell the user."""


@dataclass(frozen=True)
class Job:
    """What a worker calls with the composed config of one job; it is pickled on its way there.

    Args:
        attempt: Runs the command and returns how it ended.
        schema: The dataclass of its config.
        folder: The working directory, on storage that all machines share.
    """

    attempt: Callable[[DictConfig], Outcome]
    schema: type
    folder: str = field(default_factory=os.getcwd)

    def __call__(self, config: DictConfig) -> Outcome:
        """Run the command in the sweep's working directory; a fault of ours is told as well."""
        GlobalHydra.instance().clear()  # Hydra sends its own state along
        try:
            os.chdir(self.folder)
        except OSError as error:
            return Outcome(2, f"{self.folder}: {error.strerror}; all nodes must share this folder")
        try:
            return self.attempt(checked(config, self.schema))
        except Exception as error:  # else Hydra would not tell how the other jobs ended
            traceback.print_exc()
            return Outcome(1, f"{one_line(error)} (a fault of ours: its traceback is in the log)")


def launcher_of(words: Sequence[str]) -> str:
    """The launcher that Hydra's own settings choose, by default `IN_PROCESS`.

    Called within `config_files`.

    Raises:
        UserError: It is not installed, or there is none of this name.
    """
    parsed = map(parse_override, words)
    chosen = [each.value() for each in parsed if each.key_or_group == "hydra/launcher"]
    name = str(chosen[-1]) if chosen else IN_PROCESS
    known = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    require(
        name in known or name not in EXTRAS,
        f"hydra/launcher={name}: not installed; pip install 'vis-rpg[{EXTRAS.get(name)}]'",
    )
    near = did_you_mean(name, {*known, *EXTRAS})
    there = ", ".join(sorted({*known, *EXTRAS}))
    require(name in known, f"hydra/launcher={name}: no such launcher{near} (there are {there})")
    return name


def launch(
    job: Job,
    launcher: str,
    words: Sequence[str],
    config_name: str,
    config_dir: Path,
) -> list[tuple[str, Outcome]]:
    """Run every job of a sweep by a launcher, and wait for all of them.

    Args:
        job: What a worker calls.
        launcher: From `launcher_of`.
        words: The words of the command line, settings and Hydra's own.
        config_name: The YAML file to start from, without its ending.
        config_dir: The folder of the YAML files.

    Returns:
        The settings of each job that the sweep varies, and how it ended.

    Raises:
        UserError: The launcher does not take its settings, or lost jobs for good.
    """
    with config_files(config_dir):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        os.environ.setdefault("TQDM_DISABLE", "1")  # jobs inherit it: no bars of many in one log
        try:
            batches = hydra.multirun(config_name, job, [*QUIET, *FIXES.get(launcher, ()), *words])
        except COMPOSE_ERRORS as error:
            raise UserError(f"hydra/launcher={launcher}: {error}") from error
        except Exception as error:  # each engine has errors of its own
            raise UserError(
                f"hydra/launcher={launcher}: {one_line(error)}; checkpoints are kept: run the "
                "same command with resume=true"
            ) from error
    varied = [each.key_or_group for each in map(parse_override, words) if each.is_sweep_override()]
    return [
        (_settings(done.overrides, varied), done.return_value)
        for batch in batches
        for done in batch
    ]


def _settings(overrides: Sequence[str], varied: Sequence[str]) -> str:
    return " ".join(word for word in overrides if word.lstrip("+").split("=")[0] in varied)
