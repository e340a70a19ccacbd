"""Leave out each ingredient of object discovery in turn.

    vis-rpg ablate-discovery task=block_push seeds=3 out=runs/ablation/block_push.json

Segment proposals alone, which is quick:

    vis-rpg ablate-discovery task=adroit_hammer kind=proposals seeds=5
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from perception.discovery.collect import Trajectories
from perception.discovery.common_fate import NothingToDiscover
from perception.discovery.train import initial_model
from perception.evaluation.evaluate import evaluate
from perception.evaluation.summary import WORDS
from perception.images import as_images
from perception.slots.decoder import Decoded
from perception.slots.model import SlotModel, SlotOutput
from vis_rpg.analysis.discovery_benchmark import (
    LOOKS,
    OTHERWISE,
    PAGE,
    check,
    collect,
    collect_held_out,
    discovery_config,
    hardware,
    learn,
    slot_config,
)

FIGURES = ("fg_ari", "ari", "worst_iou", "mean_position_r2", "video_fg_ari")
KINDS: dict[str, dict[str, list[str]]] = {
    "proposals": {
        "everything": [],
        "no static background": ["model.threshold=-1"],
        "most common colour as background": [
            "background.certain_share=0",
            "background.inpaint_rings=0",
        ],
        "nothing flickers": ["background.flicker_share=.inf"],
        "no shadows": ["background.shadow_share=.inf"],
        "nothing inpainted": ["background.inpaint_rings=0"],
        "one codebook": ["proposals.codebook_tries=1"],
        "no price of colour": ["proposals.colour_price=0", "proposals.hue_price=0"],
        "no price of hue": ["proposals.hue_price=0"],
        "nothing is rigid": ["proposals.rigid_std=1e-6"],
        "nothing turns": ["proposals.turning_coherence=.inf"],
        "colours not shared": ["proposals.second_place_share=.inf"],
        "no twins": ["proposals.alone_share=.inf"],
        "specks stay": ["segments.speck_distance=0"],
        "no splits": ["model.splits=0"],
    },
    "slots": {
        "everything": [],
        "one iteration on first frames": ["model.iterations=1"],
        "slots never carried in training": ["training.carried_frames=1"],
        "masks as coarse as tokens": ["model.pixel_channels=0"],
        "tokens of 4 x 4 pixels instead of 2 x 2": ["model.stride=4"],
        "both of these": ["model.pixel_channels=0", "model.stride=4"],
        "no slots of other rows": ["training.slot_shuffle_prob=0"],
        "unseen colours not assigned": ["segments.unseen_distance=.inf"],
        "reconstruction alone": ["training.pseudo_label_loss=false"],
    },
}
"""Overrides that leave out each ingredient: of segment proposals, scored by themselves before any
slot learns, and of trained models."""


class ProposalsOnly(SlotModel):
    """A model whose slots are its segment proposals: what slots learn.

    A slot holds its segment's latest place (x, y), by which twins are followed.
    """

    def __init__(self, model: SlotModel) -> None:
        super().__init__(model.config, model.backgrounds, model.proposals)
        self.alignment = model.alignment

    def forward(
        self,
        frames: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        assign_unseen: bool = True,
        skip: bool = False,
    ) -> SlotOutput:
        """Return the segment proposals of frames (B, H, W, 3) uint8 as masks."""
        seen = self.view(as_images(frames))
        images, alpha = seen.images, seen.alpha
        masks, places = self.proposals.follow(self.proposals(images, alpha), previous)
        decoded = Decoded(masks, images.new_zeros(*masks.shape[:2], 3), images)
        return SlotOutput(places, self.locate(masks, seen.shift), decoded, alpha)


def figures(
    config: DictConfig,
    kind: str,
    seed: int,
    frames: Sequence[np.ndarray],
    held_out: Mapping[str, Trajectories],
) -> dict[str, Any]:
    """Scores by scene of segment proposals or of a trained model; None if nothing is found."""
    try:
        if kind == "proposals":
            slots, training = slot_config(config, frames[0]), discovery_config(config, seed)
            rng = np.random.default_rng(seed)
            model: SlotModel = ProposalsOnly(initial_model(frames, slots, training, rng))
        else:
            model = learn(config, seed, frames)
    except NothingToDiscover:
        return dict.fromkeys(held_out)
    scores = {}
    for name, held in held_out.items():
        assert held.segmentation is not None
        scored = evaluate(model, held.frames, held.segmentation, held.objects, twins=held.twins)
        scores[name] = {key: scored[key] for key in FIGURES}
    return scores


def draw(results: Mapping[str, Mapping[int, Any]], title: str) -> Table:
    """Means over seeds and scenes, with the worst; scenes with other looks in a column apart."""
    table = Table(title=title)
    table.add_column("left out", no_wrap=True)
    for heading in (*(WORDS[figure] for figure in FIGURES), WORDS["fg_ari"] + OTHERWISE):
        table.add_column(heading)
    for name, seeds in results.items():
        scores = [(scene, values) for scenes in seeds.values() for scene, values in scenes.items()]
        known = [values for scene, values in scores if not scene.endswith(OTHERWISE)]
        otherwise = [values for scene, values in scores if scene.endswith(OTHERWISE)]
        table.add_row(name, *(cell(known, figure) for figure in FIGURES), cell(otherwise, "fg_ari"))
    return table


def cell(scores: Sequence[Mapping[str, Any] | None], figure: str) -> str:
    """Mean and worst of the known values of a figure."""
    values = [values[figure] for values in scores if values and values[figure] is not None]
    return f"{np.mean(values):.3f} ({min(values):.3f})" if values else "-"


def main(config: DictConfig) -> None:
    """Score the whole method and each ingredient left out, and write and print the table."""
    check(config)
    torch.set_num_threads(1)
    out = Path(config.out).with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    held_out = collect_held_out(config)
    usual = {name: held for name, held in held_out.items() if not name.endswith(OTHERWISE)}
    pointless = {
        "no splits": not config.model.splits,
        "no twins": config.task.get("looks") != "twins",
        "unseen colours not assigned": config.task.name not in LOOKS,
    }
    results: dict[str, dict[str, dict[int, Any]]] = {
        kind: {name: {} for name in ablations if not pointless.get(name)}
        for kind, ablations in KINDS.items()
        if config.kind in (kind, "all")
    }
    for seed in range(config.seed, config.seed + config.seeds):
        frames = [of.frames for of in collect(config, config.frames, seed, truth=False).values()]
        for kind, ablations in results.items():
            scored = usual if kind == "proposals" else held_out
            for name in track(ablations, f"ablating, seed {seed}, {kind}"):
                without = cast(
                    DictConfig, OmegaConf.merge(config, OmegaConf.from_dotlist(KINDS[kind][name]))
                )
                ablations[name][seed] = figures(without, kind, seed, frames, scored)
                facts = {"task": config.task.name, "hardware": hardware(), "results": results}
                out.write_text(json.dumps(facts, indent=2) + "\n")
    console = Console(width=None if sys.stdout.isatty() else PAGE)
    for kind, found in results.items():
        console.print(
            draw(found, f"{config.task.name}, {kind}: means (worst) of {config.seeds} seeds")
        )
    print(f"done: {out}")
