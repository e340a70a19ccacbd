"""What is known of a run's seeds, or of those of a published agent: settings and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from vis_rpg.analysis.curves import average, minutes_of, seed_runs
from vis_rpg.analysis.explored_states import read_metrics
from vis_rpg.analysis.publish import CURVES, portable
from vis_rpg.config import TrainConfig
from vis_rpg.errors import require
from vis_rpg.schema import describe, flatten, shown
from vis_rpg.training import published
from vis_rpg.training.load import damaged, load_config, runtime_record

MOST_LINES = 300
"""Of a seed's metrics that are drawn."""
FIRST_KEYS = ("success", "return", "coverage")
"""Curves that are offered first."""
NOT_CURVES = ("step", "wall_s")
NOT_COMPARED = ("seed", "seeds", "out", "resume")
"""Settings in which runs differ without being different."""


@dataclass
class Seed:
    """One seed."""

    number: int
    folder: Path | None
    """Of the run; None for a published agent, whose card has all that is left of it."""
    settings: dict[str, Any]
    """By dotted key."""
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    commit: str | None
    minutes: float | None

    def last(self, key: str) -> float | None:
        """Return the newest value of a metric, None where there is none."""
        return self.metrics[-1].get(key)


def find_runs(given: str | Sequence[str]) -> dict[str, Path]:
    """Return the folder of each run by the name that the page calls it.

    Args:
        given: A run, as of `vis-rpg explore`, or the folder of a sweep's; or several of these.
    """
    found: dict[Path, str] = {}
    for name in [given] if isinstance(given, str) else given:
        folder = published.locate(name)
        inside = [] if _is_run(folder) else sorted(filter(_is_run, folder.glob("*")))
        for path, called in [(path, str(path)) for path in inside] or [(folder, name)]:
            found.setdefault(path.resolve(), called)
    names = list(found.values())
    short = [name if ":" in name else path.name for path, name in found.items()]
    if len(names) > 1 and len({*short}) == len(short):
        names = short
    return dict(zip(names, found, strict=True))


def _is_run(folder: Path) -> bool:
    return (
        published.is_published(folder)
        or (folder / "config.yaml").exists()
        or any(folder.glob("seed-*"))
    )


def read_seeds(run: Path) -> list[Seed]:
    """Read the seeds of a run, or of a published agent.

    Raises:
        UserError: This is neither, or a file is broken.
    """
    if published.is_published(run):
        return _published_seeds(run)
    return [_read_seed(folder) for folder in seed_runs(run)]


def _read_seed(folder: Path) -> Seed:
    config, metrics = load_config(folder), read_metrics(folder)
    try:
        settings, number = flatten(portable(config)), int(config.seed)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError) as error:
        raise damaged(folder, error) from None
    commit = runtime_record(folder).get("commit")
    return Seed(number, folder, settings, metrics, commit, minutes_of(metrics[-1:])[0])


def _published_seeds(folder: Path) -> list[Seed]:
    card = published.read(folder).card
    seeds = []
    for own in card["seeds"]:
        columns = {"step": own["interactions"]} | {key: own[key] for key in CURVES}
        metrics = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        settings = flatten(card["config"]) | {"seed": own["seed"]}
        commit, minutes = card["commit"], own["minutes"]
        seeds.append(Seed(own["seed"], None, settings, metrics, commit, minutes))
    require(bool(seeds), f"{folder}: its card tells of no seed")
    return seeds


def header(seeds: Sequence[Seed], name: str) -> dict[str, Any]:
    """Return what the top of the page says of the whole run."""
    first = seeds[0].settings
    commits = sorted({seed.commit or "not recorded" for seed in seeds})
    perception, agent = first.get("perception.name"), first.get("agent.name")
    return {
        "title": f"{first['task.name']} from {first['obs.kind']}",
        "facts": [
            ["run", name],
            ["task", str(first["task.name"])],
            ["observation", f"{first['obs.kind']}, perception={perception}"],
            ["agent", f"{agent}, exploration={first.get('exploration.name')}"],
            ["commit of the training", ", ".join(commits)],
            ["seeds", ", ".join(str(seed.number) for seed in seeds)],
        ],
        "seeds": [
            [seed.number, seed.metrics[-1]["step"], *map(seed.last, FIRST_KEYS), seed.minutes]
            for seed in seeds
        ],
        "different": [key for key in differing(seeds) if key not in ("seed", "out")],
    }


def differing(seeds: Sequence[Seed]) -> list[str]:
    """Return the settings that are not the same in all seeds."""
    keys = {key: None for seed in seeds for key in seed.settings}
    return [key for key in keys if len({_shown(seed.settings, key) for seed in seeds}) > 1]


def config_table(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Return each setting with its meaning and value, or values where seeds differ."""
    meanings = dict(describe(TrainConfig))
    changed = differing(seeds)
    rows = []
    for key in {key: None for seed in seeds for key in seed.settings}:
        values = [_shown(seed.settings, key) for seed in seeds]
        known = meanings.get(key, "")
        rows.append([key, values if key in changed else values[:1], known])
    return {"rows": rows, "seeds": [seed.number for seed in seeds]}


def comparison(runs: Mapping[str, Sequence[Seed]]) -> dict[str, Any]:
    """Return what differs between the settings of runs, and nothing else of them.

    Args:
        runs: Seeds of each run by its name.

    Returns:
        `keys`, and `rows`, for each run its values of these, in which those of seeds that differ
        are named one after the other.
    """
    keys = {key: None for seeds in runs.values() for seed in seeds for key in seed.settings}
    values = {
        key: [
            ", ".join({_shown(seed.settings, key): None for seed in seeds})
            for seeds in runs.values()
        ]
        for key in keys
        if key not in NOT_COMPARED
    }
    different = {key: own for key, own in values.items() if len({*own}) > 1}
    rows = [[own[k] for own in different.values()] for k in range(len(runs))]
    return {"keys": [*different], "rows": rows}


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return shown(settings[key]) if key in settings else "-"


def curves(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Return the curves of each metric that was logged.

    Returns:
        By key, those of FIRST_KEYS first, of them what is not always 0: `seeds`, a list of
        {seed, x, y}, and, for several seeds that have interactions in common, `mean` with x, y,
        low and high.
    """
    logged = {key: None for seed in seeds for key in seed.metrics[-1] if key not in NOT_CURVES}
    keys = [key for key in FIRST_KEYS if key in logged]
    keys.sort(key=lambda key: not any(line.get(key) for seed in seeds for line in seed.metrics))
    found = {key: _curve(seeds, key) for key in [*keys, *sorted(logged.keys() - {*keys})]}
    return {key: curve for key, curve in found.items() if curve["seeds"]}


def _curve(seeds: Sequence[Seed], key: str) -> dict[str, Any]:
    drawn, points = [], []
    for seed in seeds:
        known = [line for line in seed.metrics if isinstance(line.get(key), int | float)]
        if not known:
            continue
        rows = np.linspace(0, len(known) - 1, min(MOST_LINES, len(known))).round().astype(int)
        x, y = ([known[row][name] for row in rows] for name in ("step", key))
        drawn.append({"seed": seed.number, "x": x, "y": rounded(y)})
        points.append(np.array([x, y], float))
    curve: dict[str, Any] = {"seeds": drawn}
    if len(points) > 1 and max(x[0] for x, _ in points) <= min(x[-1] for x, _ in points):
        mean = average(key, points)
        low, high = mean.interval
        values = {"x": mean.x, "y": mean.mean, "low": low, "high": high}
        curve["mean"] = {name: rounded(own) for name, own in values.items()}
    return curve


def rounded(values: Any, digits: int = 5) -> list[Any]:
    """Round numbers to so many significant digits, for a page of little weight."""
    return [float(f"{float(value):.{digits}g}") for value in values]
