"""How object discovery does under each condition of a real camera.

    vis-rpg test-conditions task=block_push seeds=5 out=runs/conditions/block_push.json

A repeated command goes on with what is missing.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from perception.discovery.collect import Trajectories
from perception.discovery.common_fate import NothingToDiscover
from perception.evaluation.evaluate import evaluate
from perception.evaluation.summary import WORDS
from perception.slots.model import SlotModel
from vis_rpg.analysis.discovery_ablation import FIGURES, cell
from vis_rpg.analysis.discovery_benchmark import (
    HELD_OUT,
    PAGE,
    check,
    collect,
    hardware,
    learn,
    scenes_of,
)
from vis_rpg.envs.corruption import CONDITIONS, parse
from vis_rpg.envs.tasks.block_push import NAMED_LOOKS
from vis_rpg.errors import require

ALL = ("clean", *(f"{name}:{kind.usual:g}" for name, kind in CONDITIONS.items()))
"""The conditions if none are given, beside other looks where the task has them."""


OF_THE_TABLE = ("agent", "exploration", "seed", "seeds", "conditions", "protocols", "out", "device")
"""Settings that choose rows of the table, or do not change them."""


def conditions_of(config: DictConfig) -> list[str]:
    """The conditions that a config asks for.

    Raises:
        UserError: For one that there is not.
    """
    looks = NAMED_LOOKS if config.task.name == "block_push" else ()
    for condition in config.conditions:
        for part in () if condition in ("clean", *looks) else condition.split("+"):
            parse(part)
    return list(config.conditions) or [*ALL, *looks]


def under(config: DictConfig, condition: str) -> DictConfig:
    """Return the config with a condition, or several joined by +, on all frames."""
    changed: dict[str, Any] = {}
    if condition in NAMED_LOOKS:
        changed = {"task": {"looks": condition}}
    elif condition != "clean":
        changed = {"corrupt": condition.split("+")}
    return cast(DictConfig, OmegaConf.merge(config, changed))


def scores(model: SlotModel | None, held_out: dict[str, Trajectories]) -> dict[str, Any]:
    """Figures of a model by scene; None for each where nothing was found."""
    found: dict[str, Any] = dict.fromkeys(held_out)
    for name, held in held_out.items() if model else ():
        assert model and held.segmentation is not None
        scored = evaluate(model, held.frames, held.segmentation, held.objects, twins=held.twins)
        found[name] = {figure: scored[figure] for figure in FIGURES}
    return found


def main(config: DictConfig) -> None:
    """Train and test under every condition, and write and print the table."""
    check(config)
    conditions = conditions_of(config)
    require(
        not config.corrupt and not config.task.get("looks"),
        "corrupt=[...] and task.looks: give them as conditions=[...]",
    )
    for env in scenes_of(config).values():
        require(
            env.has_wrapper_attr("segmentation"),
            f"task={config.task.name} does not tell what its pixels show, so nothing can be scored",
        )
        env.close()
    torch.set_num_threads(1)
    out = Path(config.out).with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = {key: value for key, value in whole.items() if key not in OF_THE_TABLE}
    facts: dict[str, Any] = {"hardware": hardware(), "settings": settings, "results": {}}
    if out.exists():
        facts = json.loads(out.read_text())
        require(
            facts["settings"] == settings,
            f"{out} has results of other settings: choose another out=",
        )
    results = facts["results"]

    @lru_cache(1)  # a seed's clean model is tested under all conditions
    def learned(seed: int, condition: str) -> SlotModel | None:
        own = under(config, condition)
        frames = [of.frames for of in collect(own, config.frames, seed, truth=False).values()]
        try:
            return learn(own, seed, frames)
        except NothingToDiscover:
            return None

    for seed in range(config.seed, config.seed + config.seeds):
        for protocol in config.protocols:
            for condition in conditions:
                if condition == "clean" and protocol != "clean":
                    continue
                known = results.setdefault(condition, {}).setdefault(protocol, {})
                if str(seed) in known:
                    continue
                model = learned(seed, condition if protocol == "L" else "clean")
                held_out = collect(under(config, condition), config.held_out, HELD_OUT, truth=True)
                if condition == "twins":  # one block has none
                    held_out.pop("blocks=1")
                known[str(seed)] = scores(model, held_out)
                out.write_text(json.dumps(facts, indent=1) + "\n")
                print(f"seed {seed}, {condition}, {protocol}: {known[str(seed)]}", flush=True)
    Console(width=None if sys.stdout.isatty() else PAGE).print(draw(results, config.task.name))
    print(f"done: {out}")


def draw(results: dict[str, dict[str, dict[str, Any]]], task: str) -> Table:
    """Means over seeds and scenes with the worst, a row for each condition and protocol."""
    table = Table(title=f"{task}: means (worst) of seeds and scenes")
    for heading in ("condition", "protocol", *(WORDS[figure] for figure in FIGURES)):
        table.add_column(heading, no_wrap=heading in ("condition", "protocol"))
    for condition, protocols in results.items():
        for protocol, seeds in protocols.items():
            rows = [values for scenes in seeds.values() for values in scenes.values()]
            table.add_row(condition, protocol, *(cell(rows, figure) for figure in FIGURES))
    return table
