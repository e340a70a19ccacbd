"""What each ingredient is worth: python scripts/ablate_discovery.py task=block_push seeds=3
out=runs/ablation/block_push.json What things are found by alone, which is quick: python
scripts/ablate_discovery.py task=adroit_hammer kind=things seeds=5"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from discover_objects import (
    HELD_OUT,
    LOOKS,
    OTHERWISE,
    PAGE,
    check,
    collect,
    collect_otherwise,
    hardware,
    learn,
    settings,
)
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from perception.discovery import common_fate as finding
from perception.discovery import train as discovery
from perception.discovery.collect import Trajectories
from perception.evaluation.evaluate import evaluate
from perception.evaluation.summary import WORDS
from perception.slots import attention as slot_attention
from perception.slots import background
from perception.slots import model as slot_model
from perception.slots import segments as things
from perception.slots.decoder import Decoded
from perception.slots.model import SlotConfig, SlotModel, SlotOutput
from vis_rpg.cli import run
from vis_rpg.compose import require
from vis_rpg.config import device

FIGURES = ("fg_ari", "ari", "worst_iou", "mean_position_r2", "video_fg_ari")


def median(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What most background subtraction begins with: the median over time, (E, T, H, W, 3) -> (H, W,
    3)."""
    return np.median(clips.reshape(-1, *clips.shape[2:]), axis=0).astype(np.uint8)


def everywhere(frames: Tensor, background: Tensor, threshold: float, softness: float) -> Tensor:
    """A foreground that is all of each frame (B, 3, H, W): (B, H, W)."""
    return torch.ones_like(frames[:, 0])


@dataclass(frozen=True)
class Without:
    """How one ingredient is left out, or added: settings of the model and of its training, and
    constants of modules, with other values."""

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    """module.NAME -> value."""
    predict: bool = False
    """Whether slots go from frame to frame by a predictor that knows the action."""


MODULES = {
    "background": background,
    "discovery": discovery,
    "finding": finding,
    "slot_attention": slot_attention,
    "slot_model": slot_model,
    "things": things,
}
NO_LIMBS, NO_ADOPTION = "no limbs", "no adoption of strange colours"
SLOTS = {
    "everything": Without(),
    "one iteration on first frames": Without(model={"iterations": 1}),
    "no gradient to queries through iterations": Without(
        constants={"slot_attention.straight_through": lambda start, queries: start}
    ),
    "slots never carried in training": Without(constants={"discovery.CARRIED": 1}),
    "masks as coarse as tokens": Without(model={"fine": 0}),
    "tokens of 4 x 4 pixels instead of 2 x 2": Without(model={"stride": 4}),
    "both of these": Without(model={"fine": 0, "stride": 4}),
    "no slots of other rows": Without(training={"slot_shuffle_prob": 0.0}),
    NO_ADOPTION: Without(constants={"things.STRANGE": np.inf}),
}
"""What slots learn by, and what a trained model is worth without it."""
RANDOM = {"features": 0.1, "backbone": "resnet18"}
ADDED: dict[str, Without] = {
    "an action-conditioned predictor": Without(predict=True),
    "pixels at rest count a fifth": Without(training={"static_pixel_weight": 0.2}),
    "contrast of slots over time": Without(training={"contrast": 0.1}),
    "features of a random ResNet-18": Without(training=RANDOM),
}
"""What is known to help slot models elsewhere."""
OTHERS = {
    "everything": Without(),
    **{f"everything, and {name}": with_it for name, with_it in ADDED.items()},
    "reconstruction alone": Without(training={"pseudo_label_loss": False}),
    **{
        f"reconstruction, and {name}": replace(
            with_it, training={**with_it.training, "pseudo_label_loss": False}
        )
        for name, with_it in ADDED.items()
    },
    "reconstruction, and all of these": Without(
        training={
            "pseudo_label_loss": False,
            "static_pixel_weight": 0.2,
            "contrast": 0.1,
            **RANDOM,
        },
        predict=True,
    ),
}
"""What a trained model is worth with them, and without the things that were found, as slot models
usually learn."""
THINGS = {
    "everything": Without(),
    "no static background": Without(
        constants={
            f"{module}.foreground_alpha": everywhere for module in ("slot_model", "discovery")
        }
    ),
    "median as background": Without(constants={"discovery.estimate_background": median}),
    "nothing painted in": Without(constants={"background.RINGS": 0}),
    "one palette": Without(constants={"finding.PALETTES": 1}),
    "no price of colour": Without(constants={"finding.UNLIKE": 0.0, "finding.HUE": 0.0}),
    "no price of hue": Without(constants={"finding.HUE": 0.0}),
    "nothing is rigid": Without(constants={"finding.RIGID": 1e-6}),
    "nothing turns": Without(constants={"finding.TURNING": np.inf}),
    "colours not shared": Without(constants={"finding.SECOND": np.inf}),
    "specks stay": Without(constants={"things.SUCH": 0.0}),
    NO_LIMBS: Without(model={"joints": 0}),
}
"""What things are found by, and what they alone are worth without it, before any slot learns to see
them."""
TRAINED = ("slots", "others")
KINDS = {"things": THINGS, "slots": SLOTS, "others": OTHERS}


class ProposalsOnly(SlotModel):
    """Sees things as they were found: what slots are taught."""

    def __init__(self, model: SlotModel) -> None:
        super().__init__(model.config, model.backgrounds, model.things)

    def see(
        self,
        images: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        assign_unseen: bool = True,
        action: Tensor | None = None,
    ) -> SlotOutput:
        alpha = self.foreground(images)[0]
        masks = self.things(images, alpha)
        nothing = images.new_zeros(*masks.shape[:2], self.config.width)
        return SlotOutput(
            nothing, self.locate(masks), Decoded(masks, nothing[..., :3], images), alpha
        )


@contextmanager
def constants(values: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts, constants (module.NAME) have other values."""
    places = {name: (MODULES[name.split(".")[0]], name.split(".")[1]) for name in values}
    usual = {name: getattr(*place) for name, place in places.items()}
    try:
        for name, value in values.items():
            setattr(*places[name], value)
        yield
    finally:
        for name, value in usual.items():
            setattr(*places[name], value)


def figures(
    config: DictConfig,
    kind: str,
    without: Without,
    seed: int,
    frames: Mapping[str, Trajectories],
    held_out: Mapping[str, Trajectories],
) -> dict[str, Any]:
    """Scores by scene without an ingredient, of things alone or of a trained model; None where
    nothing is found at all."""
    model_settings = {**config.model, **without.model}
    with constants(without.constants):
        try:
            if kind == "things":
                scenes = [trajectories.frames for trajectories in frames.values()]
                slots = SlotConfig(**model_settings, frame_size=scenes[0].shape[2:4])
                model: SlotModel = ProposalsOnly(
                    discovery.untrained(scenes, slots, np.random.default_rng(seed))
                )
            else:
                training = settings(config, seed, **without.training)
                model = learn(
                    list(frames.values()), model_settings, training, without.predict, device(config)
                )
        except ValueError:
            return dict.fromkeys(held_out)
        scores = {}
        for name, trajectories in held_out.items():
            assert trajectories.segmentation is not None
            scored = evaluate(
                model,
                trajectories.frames,
                trajectories.segmentation,
                trajectories.objects,
                trajectories.actions,
            )
            scores[name] = {key: scored[key] for key in FIGURES}
    return scores


def draw(results: Mapping[str, Mapping[int, Any]], title: str) -> Table:
    """Means over seeds and scenes, with the worst beside each; scenes with other looks in a column
    of their own."""
    table = Table(title=title)
    table.add_column("left out or added", no_wrap=True)
    for heading in (*(WORDS[figure] for figure in FIGURES), WORDS["fg_ari"] + OTHERWISE):
        table.add_column(heading)
    for name, seeds in results.items():
        scores = [(scene, values) for scenes in seeds.values() for scene, values in scenes.items()]
        known = [values for scene, values in scores if not scene.endswith(OTHERWISE)]
        otherwise = [values for scene, values in scores if scene.endswith(OTHERWISE)]
        table.add_row(name, *(cell(known, figure) for figure in FIGURES), cell(otherwise, "fg_ari"))
    return table


def cell(scores: Sequence[Mapping[str, Any] | None], figure: str) -> str:
    """Mean and worst of what is known of a figure."""
    values = [values[figure] for values in scores if values and values[figure] is not None]
    return f"{np.mean(values):.3f} ({min(values):.3f})" if values else "-"


def main(config: DictConfig) -> None:
    check(config)
    require(
        config.kind in (*KINDS, "all"), f"kind={config.kind}: choose one of {', '.join(KINDS)}, all"
    )
    torch.set_num_threads(1)
    out = Path(config.out).with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    known = collect(config, config.held_out, HELD_OUT, truth=True)
    pointless = {NO_LIMBS: not config.model.joints, NO_ADOPTION: config.task.name not in LOOKS}
    kinds = {
        kind: {name: without for name, without in ablations.items() if not pointless.get(name)}
        for kind, ablations in KINDS.items()
        if config.kind in (kind, "all")
    }
    held_out = {"things": known}
    if kinds.keys() & TRAINED:
        held_out |= dict.fromkeys(
            TRAINED, known | collect_otherwise(config, config.held_out, HELD_OUT)
        )
    results: dict[str, dict[str, dict[int, Any]]] = {
        kind: {name: {} for name in ablations} for kind, ablations in kinds.items()
    }
    for seed in range(config.seed, config.seed + config.seeds):
        frames = collect(config, config.frames, seed, truth=False)
        for kind, ablations in kinds.items():
            for name, without in track(ablations.items(), f"ablating, seed {seed}, {kind}"):
                results[kind][name][seed] = figures(
                    config, kind, without, seed, frames, held_out[kind]
                )
                out.write_text(
                    json.dumps(
                        {"task": config.task.name, "hardware": hardware(), "results": results},
                        indent=2,
                    )
                    + "\n"
                )
    console = Console(width=None if sys.stdout.isatty() else PAGE)
    for kind, found in results.items():
        console.print(
            draw(found, f"{config.task.name}, {kind}: means (worst) of {config.seeds} seeds")
        )
    print(f"done: {out}")


if __name__ == "__main__":
    run(main, config_name="ablate")
