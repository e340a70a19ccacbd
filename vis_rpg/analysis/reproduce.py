"""Reproduce a figure or table: vis-rpg reproduce fig=7 preset=cpu seeds=3 budget=150m.

Runs are trained one after the other in this process, as by vis-rpg train --multirun, so that a
budget or Ctrl-C ends them between two steps, with a checkpoint. Every curve's first run is measured
over its first interactions; the curves then get their seeds in turn. What is done is skipped.
"""

from __future__ import annotations

import math
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import cast

from tqdm import tqdm

from vis_rpg.analysis.reproduction import (
    Job,
    chosen,
    evaluate_run,
    listing,
    make_jobs,
    minutes_left,
    processor,
    title,
    train,
)
from vis_rpg.analysis.reproduction_report import draw, table, write_csv
from vis_rpg.bandit import figure as bandit
from vis_rpg.compose import compose
from vis_rpg.config import BanditConfig, ReproduceConfig
from vis_rpg.errors import UserError, require

MEASURED = 5_000
"""Interactions over which a run's speed is measured; the run continues from them."""
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(budget: str | None) -> float:
    """Read a budget such as 150m; infinite without one.

    Raises:
        UserError: It is none.
    """
    if budget is None:
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not found:
        raise UserError(f"budget={budget}: write a number and s, m or h, as in budget=150m")
    return float(found[1]) * UNITS[found[2]]


@contextmanager
def stopped_by_ctrl_c() -> Iterator[Event]:
    """Note the first Ctrl-C instead of raising; a second one raises as ever."""
    pressed = Event()

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)
        tqdm.write("Ctrl-C: stopping with a checkpoint; again to stop at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def main(config: ReproduceConfig) -> None:
    """Train what is missing within the budget; write CSV, picture and Markdown table into `out`.

    Raises:
        UserError: A setting cannot be, or runs failed; the others have gone on.
    """
    deadline = monotonic() + seconds_of(config.budget)
    if config.fig == 4 and config.table is None:
        reproduce_bandit(config)
        return
    figure = chosen(config)
    jobs = make_jobs(figure, config)
    name = f"fig{config.fig}" if config.fig else f"{config.table}-{figure.obs}"
    files = Path(config.out) / f"{name}-{config.preset}"
    heading = f"{figure.title}, preset={config.preset}"
    listed = listing(jobs, deadline - monotonic())
    print(f"{heading}, on {processor(jobs[0])}\n{listed}", flush=True)
    with stopped_by_ctrl_c() as pressed:

        def over() -> bool:
            return pressed.is_set() or monotonic() >= deadline

        unmeasured = [
            job
            for job, minutes in zip(jobs, minutes_left(jobs), strict=True)
            if minutes is None and job.config.seed == 0 and not job.failure
        ]
        for job in unmeasured:
            if not over():
                train(job, lambda count: over() or count >= MEASURED)
        if unmeasured and not over():
            print(f"\nmeasured:\n{listing(jobs, deadline - monotonic())}", flush=True)
        for job in jobs:
            if not over() and not job.done and not job.failure:
                train(job, lambda _: over())
                write(files, jobs, heading, config)
            if not over() and job.needs_evaluation:
                evaluate_run(job)
    write(files, jobs, heading, config)
    print(f"\n{listing(jobs, deadline - monotonic())}")
    print(f"figures: {files}.csv\ndrawing: {files}.png\ntable: {files}.md")
    if pressed.is_set():
        raise KeyboardInterrupt
    failed = [f"{title(job)}: {job.failure}" for job in jobs if job.failure]
    require(not failed, f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")


def write(files: Path, jobs: list[Job], heading: str, config: ReproduceConfig) -> None:
    """Write CSV, picture and table of the runs as they are."""
    files.parent.mkdir(parents=True, exist_ok=True)
    write_csv(Path(f"{files}.csv"), jobs)
    draw(Path(f"{files}.png"), jobs, heading)
    Path(f"{files}.md").write_text(table(jobs, heading, command_of(config)))


def command_of(config: ReproduceConfig) -> str:
    """Return the command line of these settings."""
    values = {
        key: getattr(config, key)
        for key in ("fig", "table", "obs", "preset", "seeds", "steps", "budget", "out")
    }
    words = [f"{key}={value}" for key, value in values.items() if value is not None]
    return shlex.join(["vis-rpg", "reproduce", *words])


def reproduce_bandit(config: ReproduceConfig) -> None:
    """Run Fig. 4, which takes less than half a minute a seed, unless it is there."""
    folder, seeds = Path(config.out) / "fig4", list(range(config.seeds))
    if (folder / "fig4.png").exists():
        found = {int(row["seed"]) for row in bandit.read(folder / "bandit.csv")}
        if found == set(seeds):
            print(f"done already: {folder}/bandit.csv {folder}/fig4.png")
            return
    composed = compose([f"seeds={seeds}"], "bandit")
    composed.out = str(folder)
    bandit.main(cast(BanditConfig, composed))
