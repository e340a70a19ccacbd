"""Discover objects.

    vis-rpg discover-objects task=block_push seed=0
        out=assets/slots/block_push.safetensors

Judge the method on several seeds:

    vis-rpg discover-objects task=block_push seeds=5
        out=runs/discovery/block_push.safetensors

A model with a known failure on held-out frames is written as *.rejected.safetensors, and the
command exits with 3.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from perception.discovery.collect import ACTION_REPEAT, Trajectories, collect_random_trajectories
from perception.discovery.common_fate import ProposalConfig
from perception.discovery.train import DiscoveryConfig, discover
from perception.encoding import frequencies_for
from perception.evaluation.diagnostics import ADVICE, diagnose_failures
from perception.evaluation.evaluate import evaluate, resting_jitter
from perception.evaluation.summary import draw_table, summarise
from perception.slots.background import BackgroundConfig
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.segments import SegmentConfig
from vis_rpg.checks import device, lacks_compiler
from vis_rpg.envs.make import make_env, task_of
from vis_rpg.errors import ModelRejected, UserError, require

VARIANTS: dict[str, list[dict[str, int]]] = {"block_push": [{"blocks": 1}, {"blocks": 2}]}
"""Tasks whose one slot model serves several scenes."""
LOOKS = {"block_push": range(1, 9)}
"""Seeds of other looks of a task's objects, on which models are tested and never trained."""
OTHERWISE = ", other looks"
"""Suffix of the names of scenes with other looks."""
BARS = {
    "block_push": {"fg_ari": 0.97, "ari": 0.90, "worst_iou": 0.65, "mean_position_r2": 0.99},
    "maze": {"ari": 0.90, "worst_iou": 0.65, "mean_position_r2": 0.99},
    "metaworld": {"fg_ari": 0.90, "ari": 0.80, "worst_iou": 0.60, "mean_position_r2": 0.95},
    "cabinet": {"fg_ari": 0.90, "ari": 0.80, "worst_iou": 0.60, "mean_position_r2": 0.95},
    "adroit": {"fg_ari": 0.85, "ari": 0.75, "worst_iou": 0.55, "mean_position_r2": 0.90},
    "cheetah": {"ari": 0.80, "worst_iou": 0.55, "mean_position_r2": 0.90},
}
"""Least scores wanted in the scenes of each family, by how the family's name begins."""
OTHERWISE_BARS = {"fg_ari": 0.90}
DERIVED = {
    "frame_size",
    "backgrounds",
    "clusters",
    "compressed",
    "darkest",
    "frequencies",
    "twins",
    "segments",
    "seed",
    "compiled",
    "precision",
    "background",
    "proposals",
}
"""Settings of the model and its training that follow from frames and other settings."""
HELD_OUT = 10_000
"""Seed of the frames that models are scored on; far from those of training."""
POSITIONS = ("position_r2", "mean_position_r2", "worst_position_r2")
"""Scores that mean nothing over several looks: each may choose other slots, so that no single map
of positions fits all."""
PAGE = 150
"""Columns of the table if the output is no terminal."""


def scenes_of(config: DictConfig) -> dict[str, gymnasium.Env[Any, Any]]:
    """The environments that the task's slot model serves, by name."""
    return {
        " ".join(f"{key}={value}" for key, value in variant.items()) or "all": make_env(
            {
                **config.task,
                **variant,
                "corrupt": config.corrupt,
                "shadows": config.render.shadows,
            },
            "pixels",
        )
        for variant in VARIANTS.get(config.task.name, [{}])
    }


def collect(config: DictConfig, frames: int, seed: int, truth: bool) -> dict[str, Trajectories]:
    """Collect `frames` frames in all, shared among the scenes of the task.

    Every seed and scene has its own random numbers.
    """
    envs = scenes_of(config)
    count = max(2, round(frames / config.trajectory_length / len(envs)))
    steps = frames // (count * len(envs))
    collected = {}
    for i, (name, env) in enumerate(track(envs.items(), "collecting", len(envs))):
        collected[name] = collect_random_trajectories(
            env, count, steps, seed * len(envs) + i, truth, config.randomized_reset
        )
        env.close()
    return collected


def collect_held_out(config: DictConfig, truth: bool = True) -> dict[str, Trajectories]:
    """Collect held-out frames of the task's scenes, and with truth also with other looks.

    Looks follow each other in the trajectories of a scene.
    """
    held_out = collect(config, config.held_out, HELD_OUT, truth)
    looks = LOOKS.get(config.task.name, ()) if truth else ()
    others = [
        collect(
            DictConfig({**config, "task": {**config.task, "looks": look}}),
            config.held_out // len(looks),
            HELD_OUT + look,
            truth=True,
        )
        for look in looks
    ]
    names = held_out if looks else ()
    return held_out | {name + OTHERWISE: joined([of[name] for of in others]) for name in names}


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Trajectories of the same length and objects as one."""
    frames, segmentation = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("frames", "segmentation")
    )
    return replace(parts[0], frames=frames, segmentation=segmentation, positions=None)


def slot_config(config: DictConfig, frames: np.ndarray) -> SlotConfig:
    """Of a model of frames (E, T, H, W, 3)."""
    segments = SegmentConfig(**config.segments)
    return SlotConfig(**config.model, segments=segments, frame_size=frames.shape[2:4])


def discovery_config(config: DictConfig, seed: int) -> DiscoveryConfig:
    """Make the settings of one training."""
    return DiscoveryConfig(
        **config.training,
        precision=config.precision,
        compiled=config.runtime == "compile",
        seed=seed,
        background=BackgroundConfig(**config.background),
        proposals=ProposalConfig(**config.proposals),
    )


def learn(
    config: DictConfig,
    seed: int,
    scenes: Sequence[np.ndarray],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> SlotModel:
    """Train a slot model on frames (E, T, H, W, 3) of each scene."""
    slots, training = slot_config(config, scenes[0]), discovery_config(config, seed)
    return discover(scenes, slots, training, progress, device(config.device))


def train(
    config: DictConfig, seed: int, held_out: dict[str, Trajectories], path: Path
) -> tuple[dict[str, Any], Path]:
    """Train and write one model.

    Returns:
        Its card, and where it lies: at `path`, or next to it as *.rejected.* if it has a known
        failure on held-out frames.
    """
    began = time.monotonic()
    collected = list(collect(config, config.frames, seed, truth=False).values())
    scenes = [trajectories.frames for trajectories in collected]
    try:
        progress = partial(track, description=f"discovering, seed {seed}")
        model = learn(config, seed, scenes, progress)
    except ValueError as error:  # nothing stands out
        raise UserError(f"task={config.task.name}: {error}") from None
    jitter = max(resting_jitter(model, frames) for frames in scenes)
    model.config = replace(model.config, frequencies=frequencies_for(jitter))
    minutes = (time.monotonic() - began) / 60
    failures = {
        failure
        for name, held in held_out.items()
        if not name.endswith(OTHERWISE)
        for failure in diagnose_failures(model, held.frames, held.segmentation)
    }
    for failure in sorted(failures):
        advice = next(advice for begins, advice in ADVICE.items() if failure.startswith(begins))
        print(f"failure: {failure}; try: {advice}")
    if failures:
        path = path.with_suffix(f".rejected{path.suffix}")
    scores = {
        name: evaluate(
            model, held.frames, held.segmentation, held.objects, held.positions, held.twins
        )
        | (dict.fromkeys(POSITIONS) if name.endswith(OTHERWISE) else {})
        for name, held in held_out.items()
        if held.segmentation is not None
    }
    card = {
        "task": config.task.name,
        "command": command(),
        "frames": sum(int(np.prod(frames.shape[:2])) for frames in scenes),
        "seed": seed,
        "updates": config.training.steps,
        "minutes": round(minutes, 1),
        "hardware": hardware(),
        "torch": torch.__version__,
        "data": described(config, collected[0].randomized),
        "jitter": jitter,
        "failures": sorted(failures),
        "scores": scores,
    }
    model.save(path, card)
    print(f"model: {path} (slots: {model.config.slots}; {path.stat().st_size / 1e3:.0f} kB)")
    return card | {"bytes": path.stat().st_size, "frequencies": model.config.frequencies}, path


def check(config: DictConfig) -> None:
    """Raise UserError, in one line, for a setting that cannot be."""
    device(config.device)
    lacking = lacks_compiler(config.device) if config.runtime == "compile" else None
    require(lacking is None, f"runtime=compile needs {lacking}, or use runtime=eager")
    given = DERIVED & {*config.model, *config.training}
    require(not given, f"{', '.join(sorted(given))}: follows from the frames and other settings")


def main(config: DictConfig) -> None:
    """Train one slot model or several, score them on held-out frames, and write them."""
    check(config)
    torch.set_num_threads(1)  # such small products gain nothing from more
    envs = scenes_of(config)
    objects = {name: task_of(env).object_names for name, env in envs.items()}
    known = all(env.has_wrapper_attr("segmentation") for env in envs.values())
    require(
        known or config.seeds == 1,
        f"seeds={config.seeds}: {config.task.name} does not tell what its pixels show, so "
        "nothing can be scored",
    )
    for env in envs.values():
        env.close()
    held_out = collect_held_out(config, known)
    objects |= {name: objects[name.removesuffix(OTHERWISE)] for name in held_out}
    seeds, out = range(config.seed, config.seed + config.seeds), Path(config.out)
    cards: dict[int, dict[str, Any]] = {}
    paths: list[Path] = []
    for seed in seeds:
        own = out if config.seeds == 1 else out.with_name(f"{out.stem}-seed-{seed}{out.suffix}")
        cards[seed], path = train(config, seed, held_out, own)
        paths.append(path)
        if config.seeds == 1:
            written = write(path.with_suffix(".json"), cards[seed])
        else:  # after every seed, so that a run that is stopped leaves what it has
            written = write(
                out.with_name(f"{out.stem}-seeds.json"),
                results(cards, summaries(config, cards, objects)),
            )
    if known:
        width = None if sys.stdout.isatty() else PAGE
        Console(width=width).print(
            draw_table(
                summaries(config, cards, objects), seeds, f"{config.task.name}: held-out episodes"
            )
        )
    print(f"done: {written}")
    if rejected := [path for path in paths if path.stem.endswith(".rejected")]:
        raise ModelRejected(
            "known failures on held-out frames (above, with what to try): rejected "
            f"{', '.join(map(str, rejected))}"
        )


def summaries(
    config: DictConfig, cards: Mapping[int, Mapping[str, Any]], objects: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """`summarise` of the seeds' scores by scene, with the IoU of each object under its name."""
    bars = next(
        (
            bars
            for family, bars in BARS.items()
            if config.task.get("family", config.task.name).startswith(family)
        ),
        {},
    )
    summary = {}
    for scene, names in objects.items():
        scores = {seed: card["scores"][scene] for seed, card in cards.items()}
        each = {
            seed: {f"IoU: {name}": iou for name, iou in zip(names, score["iou"], strict=True)}
            for seed, score in scores.items()
        }
        wanted = OTHERWISE_BARS if scene.endswith(OTHERWISE) else bars
        summary[scene] = summarise({seed: scores[seed] | each[seed] for seed in scores}, wanted)
    return summary


def results(cards: Mapping[int, dict[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The file of all seeds: what they share, their summary, and what differs."""
    own = ("seed", "minutes", "jitter", "failures", "scores", "bytes", "frequencies")
    shared = {key: value for key, value in next(iter(cards.values())).items() if key not in own}
    return shared | {
        "summary": summary,
        "seeds": [{key: card[key] for key in own} for card in cards.values()],
    }


def write(path: Path, values: Mapping[str, Any]) -> Path:
    """Write values as JSON and return the path."""
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path


def described(config: DictConfig, randomized: bool) -> str:
    """How the frames were collected, in words; randomized: whether resets truly were."""
    scenes = len(VARIANTS.get(config.task.name, [{}]))
    shared = f"; as many frames of each of the task's {scenes} scenes" if scenes > 1 else ""
    conditions = [*config.corrupt, *(["the renderer's shadows"] if config.render.shadows else [])]
    seen = f"; frames under {', '.join(conditions)}" if conditions else ""
    return (
        f"trajectories of {config.trajectory_length} frames from "
        f"{'randomized' if randomized else 'plain'} resets, random actions repeated for 1 to "
        f"{ACTION_REPEAT} steps and no reset at the time limit, so that objects get far from "
        f"their start{shared}; no labels{seen}"
    )


def hardware() -> str:
    """Name the processor and the number of threads."""
    return f"{platform.machine()}, CPU threads: {torch.get_num_threads()}"


def command() -> str:
    """The command line that makes such a model."""
    return " ".join(["vis-rpg discover-objects", *(word for word in sys.argv[1:] if "=" in word)])
