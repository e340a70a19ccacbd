"""Write one self-contained page about a run: vis-rpg explore run=runs/x out=report.html."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vis_rpg.analysis.explored_states import Visits, read_visits
from vis_rpg.analysis.explorer.bonus import visit_bonus
from vis_rpg.analysis.explorer.live import Stage
from vis_rpg.analysis.explorer.rollouts import COUNT, Rollouts, record, replay, rollout_data
from vis_rpg.analysis.explorer.seeds import (
    Seed,
    config_table,
    curves,
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
    locate,
    output_folder,
    read,
)

HERE = Path(__file__).parent
MOST_BYTES = 20_000_000
"""Of a page."""


def main(config: ExploreConfig) -> None:
    """Write the page of a run or of a published agent, or serve it."""
    try:
        importlib.import_module("vis_rpg.analysis.explorer.figures")
    except ImportError:
        raise UserError(
            "vis-rpg explore needs the package bokeh: pip install 'vis-rpg[explore]'"
        ) from None
    torch.set_num_threads(1)
    run = locate(config.run)
    if config.serve:
        from vis_rpg.analysis.explorer.server import serve

        return serve(run, config.run, config.seed)
    data, stage = collect(run, config.run, config.seed)
    if stage is not None:
        stage.env.close()
    page = make_page(data)
    require(
        len(page) <= MOST_BYTES,
        f"run={config.run}: its page would have {len(page) / 1e6:.1f} MB, more than "
        f"{MOST_BYTES / 1e6:.0f}: give one of its seeds",
    )
    path = Path(config.out) if config.out else output_folder(config.run, None) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    print(f"page of {len(page) / 1e6:.1f} MB: {path}")


def make_page(data: dict[str, Any]) -> bytes:
    """Return the page of what was collected, its figures drawn."""
    from vis_rpg.analysis.explorer import figures

    drawn = [
        *([figures.curves_figure(next(iter(data["curves"].values())))] if data["curves"] else []),
        *([] if "missing" in data["map"] else [figures.map_figure(data["map"])]),
        *([] if "missing" in data["rollouts"] else [figures.z_figure(data["rollouts"])]),
    ]
    return fill(data | {"figures": drawn}, figures.bokeh_js())


def collect(run: Path, name: str, seed: int) -> tuple[dict[str, Any], Stage | None]:
    """Collect what the page shows, but for its figures, and the agent that rolls out.

    What a run lacks is said in its place; without rollouts there is no agent.

    Args:
        run: The folder of a run, of several seeds, or of a published agent.
        name: As the user calls it.
        seed: Of the rollouts.

    Raises:
        UserError: There is no run.
    """
    seeds = read_seeds(run)
    acting = acting_seed(seeds, run)
    views: dict[Path | None, ZView] = {}
    stages: list[Stage] = []
    rollouts = partial(_rollouts, seeds, acting, run, seed, views, stages)
    data = {
        "header": header(seeds, name if ":" in name else Path(name).name),
        "curves": curves(seeds),
        "map": _or_why("no map of explored states", lambda: _map(seeds, run, views)),
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


def _map(seeds: list[Seed], run: Path, views: dict[Path | None, ZView]) -> dict[str, Any]:
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
    data = map_data(visits, task, list(views.values()), bonuses)
    env.close()
    return data


def _rollouts(
    seeds: list[Seed],
    acting: Seed,
    run: Path,
    seed: int,
    views: dict[Path | None, ZView],
    stages: list[Stage],
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
    stages.append(Stage(actor, env, view, seed))
    return rollout_data(recorded, view, task_of(env)) | {
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
