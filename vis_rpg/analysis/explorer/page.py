"""Write one self-contained page about runs: vis-rpg explore run=runs/x out=report.html."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vis_rpg.analysis.explored_states import Visits, read_visits
from vis_rpg.analysis.explorer.bonus import visit_bonus
from vis_rpg.analysis.explorer.live import Stage
from vis_rpg.analysis.explorer.rollouts import (
    COUNT,
    Rollouts,
    failures,
    record,
    replay,
    rollout_data,
)
from vis_rpg.analysis.explorer.rollouts import MOST_BYTES as MOST_PICTURE_BYTES
from vis_rpg.analysis.explorer.seeds import (
    Seed,
    comparison,
    config_table,
    curves,
    find_runs,
    header,
    read_seeds,
)
from vis_rpg.analysis.explorer.states import ZView, map_data, plane_of_places, plane_of_spread
from vis_rpg.analysis.publish import CURVES, median_run
from vis_rpg.config import ExploreConfig
from vis_rpg.envs.make import make_env, task_of
from vis_rpg.errors import UserError, require
from vis_rpg.training import checkpoint
from vis_rpg.training.episodes import recorded_episodes
from vis_rpg.training.load import load, load_whole_config
from vis_rpg.training.logger import without_nan
from vis_rpg.training.published import (
    interactions,
    is_published,
    output_folder,
    read,
)

HERE = Path(__file__).parent
MOST_BYTES = 20_000_000
"""Of a page."""


def main(config: ExploreConfig) -> None:
    """Write the page of runs or of published agents, or serve that of one."""
    try:
        importlib.import_module("vis_rpg.analysis.explorer.figures")
    except ImportError:
        raise UserError(
            "vis-rpg explore needs the package bokeh: pip install 'vis-rpg[explore]'"
        ) from None
    torch.set_num_threads(1)
    require(config.run != [], "run=[]: give the folder of a run")
    runs = find_runs(config.run)
    if config.serve:
        require(len(runs) == 1, f"serve=true: run={config.run} are {len(runs)} runs: give one")
        from vis_rpg.analysis.explorer.server import serve

        [(name, run)] = runs.items()
        return serve(run, name, config.seed)
    page = make_page(*collect_all(runs, config.seed))
    require(
        len(page) <= MOST_BYTES,
        f"run={config.run}: its page would have {len(page) / 1e6:.1f} MB, more than "
        f"{MOST_BYTES / 1e6:.0f}: give fewer runs, or one of the seeds",
    )
    first = config.run if isinstance(config.run, str) else config.run[0]
    path = Path(config.out) if config.out else output_folder(first, None) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    print(f"page of {len(page) / 1e6:.1f} MB: {path}")


def make_page(runs: Sequence[dict[str, Any]], different: dict[str, Any] | None = None) -> bytes:
    """Return the page of what was collected of runs, its figures drawn.

    Args:
        runs: From `collect`.
        different: From `comparison`; None for one run.
    """
    from vis_rpg.analysis.explorer import figures

    shown = []
    for run in runs:
        first = next((curve for own in (run, *runs) for curve in own["curves"].values()), None)
        drawn = [
            *([figures.curves_figure(first)] if first else []),
            *([] if "missing" in run["map"] else [figures.map_figure(run["map"])]),
            *([] if "missing" in run["rollouts"] else [figures.z_figure(run["rollouts"])]),
        ]
        shown.append(run | {"figures": drawn})
    return fill({"runs": shown, "different": different}, figures.bokeh_js())


def collect_all(
    runs: Mapping[str, Path], seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Collect what the page shows of several runs, and what differs between them.

    Of several, those that cannot be read are left out, and told.

    Args:
        runs: Folders by name.
        seed: Of the rollouts.

    Raises:
        UserError: The only run is none, or none of several is one.
    """
    seeds, lost = {}, []
    for name, run in runs.items():
        try:
            seeds[name] = read_seeds(run)
        except UserError as error:
            if len(runs) == 1:
                raise
            print(f"note: left out: {error}", file=sys.stderr)
            lost.append(f"{name} ({error})")
    require(bool(seeds), f"none of these is a run: {', '.join(lost)}")
    found = []
    for name in seeds:
        data, stage = collect(runs[name], name, seed, len(seeds))
        if stage is not None:
            stage.env.close()
        found.append(data)
    return found, comparison(seeds) | {"lost": lost} if len(runs) > 1 else None


def collect(run: Path, name: str, seed: int, runs: int = 1) -> tuple[dict[str, Any], Stage | None]:
    """Collect what the page shows, but for its figures, and the agent that rolls out.

    What a run lacks is said in its place; without rollouts there is no agent.

    Args:
        run: The folder of a run, of several seeds, or of a published agent.
        name: As the page calls it.
        seed: Of the rollouts.
        runs: That share the page.

    Raises:
        UserError: There is no run.
    """
    seeds = read_seeds(run)
    acting = acting_seed(seeds, run)
    views: dict[Path | None, ZView] = {}
    stages: list[Stage] = []
    rollouts = partial(_rollouts, seeds, acting, run, seed, views, stages, runs)
    data = {
        "name": name,
        "header": header(seeds, name),
        "curves": curves(seeds),
        "map": _or_why("no map of explored states", lambda: _map(seeds, run, views, runs)),
        "rollouts": _or_why("no rollouts", rollouts),
        "config": config_table(seeds),
        "live": None,
    }
    return data, stages[0] if stages else None


def acting_seed(seeds: Sequence[Seed], run: Path) -> Seed:
    """Return the seed that was published, or would be: that of median success."""
    if is_published(run):
        number = read(run).card["seed"]
        return next(seed for seed in seeds if seed.number == number)
    return seeds[median_run([[seed.last(key) for key in CURVES] for seed in seeds])]


def _or_why(what: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is found, or `missing` with the reason, which is printed as well."""
    try:
        return find()
    except UserError as error:
        why = f"{what}: {error}"
        print(f"note: {why}", file=sys.stderr)
        return {"missing": f"{why[0].upper()}{why[1:]}"}


def _map(
    seeds: list[Seed], run: Path, views: dict[Path | None, ZView], runs: int
) -> dict[str, Any]:
    """Return what the map shows; put the views of z of all seeds into `views`."""
    visits: list[tuple[int, Visits]] = []
    for seed in seeds:
        if seed.folder is None:
            raise UserError("a published agent has no record of visited states")
        visits.append((seed.number, read_visits(seed.folder)))
    config = load_whole_config(seeds[0].folder or run)
    env = make_env(config.task, "state")
    task = task_of(env)
    require(bool(task.object_names), f"{run}: task={config.task.name} names no objects of interest")
    for seed, (_, own) in zip(seeds, visits, strict=True):
        views[seed.folder] = plane_of_places(config.agent.latent.kind, own, task)

    def bonus(folder: Path, positions: np.ndarray) -> np.ndarray:
        actor, own = load(folder)
        own.close()
        return visit_bonus(actor.agent, env, positions)

    bonuses = [partial(bonus, seed.folder) for seed in seeds if seed.folder is not None]
    data = map_data(visits, task, list(views.values()), bonuses, runs)
    env.close()
    return data


def _rollouts(
    seeds: list[Seed],
    acting: Seed,
    run: Path,
    seed: int,
    views: dict[Path | None, ZView],
    stages: list[Stage],
    runs: int,
) -> dict[str, Any]:
    """Roll out the agent of one seed, replay its training, and return what the player shows.

    The agent is put into `stages`.
    """
    folder = acting.folder or run
    actor, env = load(folder, seed=seed)
    recorded = record(actor, env, seed, COUNT)
    note = _note(seeds, acting, interactions(folder), recorded)
    z = np.stack([rollout.z for rollout in recorded.rollouts])
    view = views.get(acting.folder) or plane_of_spread(acting.settings["agent.latent.kind"], z)
    if acting.folder is None:
        training = "A published agent has no recorded episodes of training."
    else:
        episodes = recorded_episodes(checkpoint.load(checkpoint.latest(folder)))
        replayed, lost = replay(actor, env, episodes)
        recorded.rollouts += replayed
        training = _training_note(len(replayed), lost)
    variance = recorded.state_variance
    stages.append(Stage(actor, env, view, seed, variance))
    pictures = MOST_PICTURE_BYTES // runs
    return rollout_data(recorded, view, task_of(env), variance, pictures) | {
        "slots": failures(recorded.rollouts),
        "note": f"{note} {training}",
        "seed": acting.number,
        "random_until": acting.settings["agent.seed_steps"],
    }


def _training_note(replayed: int, lost: int) -> str:
    """Say what there is of training."""
    if not replayed + lost:
        return (
            "This run has no recorded episodes of training yet (logger.episodes, which needs an "
            "environment whose state can be saved)."
        )
    told = (
        f"Below them are {replayed} episodes of its training, played again; bonus, Q and "
        "log p(z|s,a) are what the agent makes of them now."
    )
    if lost:
        told += f" {lost} more do not come to the recorded rewards on this machine."
    return told


def _note(seeds: list[Seed], acting: Seed, step: int, recorded: Rollouts) -> str:
    """Say what the rollouts by z are, and what is missing of them."""
    first = recorded.rollouts[0]
    if not first.z.size:
        latent = "starts without z"
    elif acting.settings["agent.latent.kind"] == "categorical" and len(recorded.rollouts) == len(
        first.z
    ):
        latent = "categories of z, all from one start"
    else:
        latent = "values of z from its prior, all from one start"
    which = f"the seed of median success, {acting.number}" if len(seeds) > 1 else "the agent"
    told = [
        f"{len(recorded.rollouts)} {latent}, by mean actions of {which}, at {step:,} interactions.",
        "A star marks success at the end. Reward and bonus are as the critic learns them.",
    ]
    if len(first.series) == 1:
        told[1] = "A star marks success at the end. This agent has no Q, bonus or p(z|s,a) to show."
    if recorded.no_pictures is not None:
        told.append(f"There are no pictures: {recorded.no_pictures}.")
    return " ".join(told)


def fill(data: dict[str, Any], bokeh: str) -> bytes:
    """Put data, style and scripts into page.html."""
    parts = {
        "style": (HERE / "page.css").read_text(),
        "data": json.dumps(without_nan(data)).replace("<", "\\u003c"),
        "bokeh": bokeh,
        "script": (HERE / "page.js").read_text(),
    }
    html = (HERE / "page.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], html).encode()
