"""Discover objects: python scripts/discover_objects.py task=block_push frames=6000 seed=0 out=assets/slots/block_push.safetensors"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.progress import track

from perception.alarms import alarms
from perception.collection import HOLD, Walks, wander
from perception.discovery import DiscoveryConfig, discover
from perception.encoding import frequencies_for
from perception.scores import resting_jitter, score
from perception.slot_model import SlotConfig
from vis_rpg.cli import require, run
from vis_rpg.envs.factory import make_env

VARIANTS: dict[str, list[dict[str, int]]] = {"block_push": [{"blocks": 1}, {"blocks": 2}]}
"""Tasks whose one slot model serves several scenes."""


def collect(config: DictConfig, frames: int, seed: int, truth: bool) -> list[Walks]:
    """`frames` frames in all, shared among the variants of the task."""
    variants = VARIANTS.get(config.task.name, [{}])
    walks = max(2, round(frames / config.walk / len(variants)))
    steps = frames // (walks * len(variants))
    collected = []
    for i, variant in enumerate(track(variants, "wandering")):
        task = {**config.task, **variant}
        collected.append(wander(make_env(task, "pixels", seed + i), walks, steps, seed + i, truth))
    return collected


def main(config: DictConfig) -> None:
    require(config.frames >= 100, f"frames={config.frames}: at least 100 are needed")
    torch.set_num_threads(1 if not torch.cuda.is_available() else torch.get_num_threads())
    began = time.monotonic()
    scenes = [walks.frames for walks in collect(config, config.frames, config.seed, truth=False)]
    slot_config = SlotConfig(slots=config.slots, width=config.width, frame_size=scenes[0].shape[2:4])
    training = DiscoveryConfig(steps=config.steps, seed=config.seed)
    model = discover(scenes, slot_config, training, lambda steps: track(steps, "discovering"))
    jitter = max(resting_jitter(model, frames) for frames in scenes)
    model.config = replace(model.config, frequencies=frequencies_for(jitter))
    minutes = (time.monotonic() - began) / 60
    for alarm in {alarm for frames in scenes for alarm in alarms(model, frames)}:
        print(f"alarm: {alarm}")

    scores = {}
    for walks, variant in zip(
        collect(config, config.held_out, config.seed + 10_000, truth=True), VARIANTS.get(config.task.name, [{}]), strict=True
    ):
        assert walks.segmentation is not None and walks.positions is not None
        name = " ".join(f"{key}={value}" for key, value in variant.items()) or "all"
        scores[name] = score(model, walks.frames, walks.segmentation, walks.positions)
    card = {
        "task": config.task.name,
        "command": f"python {' '.join([Path(sys.argv[0]).parent.name + '/' + Path(sys.argv[0]).name, *given()])}",
        "frames": sum(int(np.prod(frames.shape[:2])) for frames in scenes),
        "seed": config.seed,
        "updates": config.steps,
        "minutes": round(minutes, 1),
        "hardware": f"one core, {platform.machine()}",
        "torch": torch.__version__,
        "data": f"walks of {config.walk} frames, random actions held for 1 to {HOLD} steps, no reset at the time limit, so that blocks get "
        "away from their start; half of the frames with each variant of the task; no labels",
        "jitter": jitter,
        "scores": scores,
    }
    path = Path(config.out)
    model.save(path, card)
    path.with_suffix(".json").write_text(
        json.dumps(card | {"bytes": path.stat().st_size, "frequencies": model.config.frequencies}, indent=2) + "\n"
    )
    print(json.dumps(scores, indent=2))
    print(f"done: {path} ({path.stat().st_size / 1e3:.0f} kB), card {path.with_suffix('.json')}")


def given() -> list[str]:
    """The settings on the command line, without those that the command line adds for itself."""
    return [word for word in sys.argv[1:] if "=" in word and not word.startswith("hydra")]


if __name__ == "__main__":
    run(main, config_name="discover")
