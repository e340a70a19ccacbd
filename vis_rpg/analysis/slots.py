"""Draw what slots see, of a run or of a slot model on a task."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig

from perception.discovery.collect import collect_random_trajectories
from perception.evaluation.evaluate import argmax_masks, compare, encode_episodes, worst_frames
from perception.evaluation.visualise import (
    draw_paths,
    enlarge,
    grid,
    overlay,
    reconstruction,
    sheet,
    spotlight,
)
from perception.slots.background import nearest_background
from perception.slots.model import SlotModel, SlotOutput
from perception.slots.perception import SlotPerception
from vis_rpg.analysis.video import add_caption, write_mp4
from vis_rpg.envs.make import make_env, task_of
from vis_rpg.envs.rendering.frames import FRAME
from vis_rpg.errors import UserError, require
from vis_rpg.training.load import load
from vis_rpg.training.published import output_folder

ROWS, COLUMNS = 5, 2
"""Of the page of failures."""
FACTOR = 3
"""Screen pixels for a pixel there."""


@dataclass
class Episode:
    """One episode of T frames, and what there is to know of it."""

    model: SlotModel
    frames: np.ndarray
    """(T, H, W, 3)."""
    segmentation: np.ndarray | None
    """(T, H, W) true labels: the objects of interest from 1 on, then the robot; None where the task
    cannot tell."""
    names: tuple[str, ...]
    """Of the objects of interest."""


def episode_of_run(run: str, seed: int) -> Episode:
    """An episode of a run's agent, seen by its slot model."""
    actor, env = load(run, seed=seed)
    perception = actor.agent.model.perception.unwrapped
    if not isinstance(perception, SlotPerception):
        raise UserError(f"run={run} sees without slots: give a run with perception=slots")
    truth = env.get_wrapper_attr("segmentation") if env.has_wrapper_attr("segmentation") else None
    obs, _ = env.reset(seed=seed)
    actor.reset()
    frames, segmentation, done = [obs[-1]], [truth(whole=True)] if truth else [], False
    while not done:
        obs, _, terminated, truncated, _ = env.step(actor.act(obs))
        frames.append(obs[-1])
        segmentation += [truth(whole=True)] if truth else []
        done = terminated or truncated
    labels = np.stack(segmentation) if truth else None
    return Episode(
        perception.model,
        np.stack(frames),
        labels,
        task_of(env).object_names,
    )


def episode_of_task(path: Path, name: str, env: gymnasium.Env, seed: int) -> Episode:
    """An episode of random actions in the task of this name, seen by a slot model."""
    try:
        model, card = SlotModel.load(path, (FRAME, FRAME))
    except ValueError as error:
        raise UserError(str(error)) from None
    task = task_of(env)
    if (trained_on := card.get("task", name)) != name:
        line = f"note: {path} was trained on task={trained_on} and is shown on task={name}"
        print(line, file=sys.stderr)
    trajectories = collect_random_trajectories(
        env, 1, task.episode_length, seed, truth=env.has_wrapper_attr("segmentation")
    )
    labels = None if trajectories.segmentation is None else trajectories.segmentation[0]
    return Episode(model, trajectories.frames[0], labels, task.object_names)


def failures(episode: Episode, sights: Sequence[SlotOutput]) -> np.ndarray | None:
    """Draw the worst cases by the IoU of an object under the best matching of its frame.

    Returns:
        Rows of the frame, the object's true mask and the slots; None if every mask is perfect, or
        the task cannot tell.
    """
    if episode.segmentation is None:
        return None
    labels = np.concatenate([argmax_masks(sight) for sight in sights])
    found = compare(
        episode.segmentation, labels, len(episode.names), sights[0].decoded.masks.shape[1]
    )
    names = (*episode.names, "robot")
    tiles = []
    for t, n in worst_frames(found.matched, ROWS * COLUMNS):
        frame, masks = episode.frames[t], sights[t].decoded.masks[0].numpy()
        views = [frame, spotlight(frame, episode.segmentation[t] == n + 1), overlay(frame, masks)]
        slot = f"slot {found.slots[t, n]}" if found.slots[t, n] >= 0 else "no slot"
        caption = f"{names[n]}  IoU {found.matched[t, n]:.2f}  {slot}  step {t}"
        tiles.append(
            add_caption(grid([[enlarge(view, FACTOR) for view in views]], gap=2), caption, False)
        )
    if not tiles:
        return None
    blank = [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    return grid([(tiles + blank)[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)], gap=8)


def main(config: DictConfig) -> None:
    """Draw the slots of a run or of a slot model over one episode."""
    require(
        (config.run is None) != (config.model is None),
        "give one of run=<folder of a run> and model=<slot model>",
    )
    if config.run is not None:
        episode = episode_of_run(config.run, config.seed)
    else:
        env = make_env({**config.task, "corrupt": config.corrupt}, "pixels", config.seed)
        episode = episode_of_task(Path(config.model), config.task.name, env, config.seed)
    model, frames = episode.model, episode.frames
    folder = output_folder(config.run or "runs/slots", config.out)

    sights = encode_episodes(model, frames[None])
    shown = np.linspace(0, len(frames) - 1, config.columns).round().astype(int)
    save(folder / "slots.png", sheet([frames[t] for t in shown], [sights[t] for t in shown]))
    coordinates = torch.cat([s.coordinates for s in sights]).numpy()
    images = [
        torch.as_tensor(x).permute(0, 3, 1, 2).float() for x in (frames[:1], model.backgrounds)
    ]
    floor = nearest_background(*images)[0].permute(1, 2, 0).byte().numpy()
    save(folder / "slot_paths.png", draw_paths(floor, coordinates))
    print(
        f"frames, masks, reconstruction: {folder / 'slots.png'}\nslot paths: "
        f"{folder / 'slot_paths.png'}"
    )
    if (page := failures(episode, sights)) is not None:
        save(folder / "slot_failures.png", page)
        print(f"worst frames by IoU; frame, true mask, slots: {folder / 'slot_failures.png'}")
    if config.video:
        pictures = [
            grid(
                [
                    [
                        enlarge(image, 4)
                        for image in (
                            frame,
                            overlay(frame, sight.decoded.masks[0].numpy()),
                            reconstruction(sight),
                        )
                    ]
                ]
            )
            for frame, sight in zip(frames, sights, strict=True)
        ]
        write_mp4(folder / "slots.mp4", pictures)
        print(f"video: {folder / 'slots.mp4'}")


def save(path: Path, image: np.ndarray) -> None:
    """Write an RGB picture."""
    require(cv2.imwrite(str(path), image[..., ::-1]), f"{path} cannot be written")
