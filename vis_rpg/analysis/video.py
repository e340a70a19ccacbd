"""Videos of rollouts, one row per sampled z, with slot masks next to the frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import cv2
import gymnasium
import numpy as np
import torch
from av.video.stream import VideoStream
from tqdm import tqdm

from perception.evaluation.visualise import grid, overlay
from perception.slots.model import SlotModel, SlotOutput
from perception.slots.perception import SlotPerception
from vis_rpg.agent.actor import Actor
from vis_rpg.analysis.evaluation import EpisodeStep, episode_seed, play
from vis_rpg.envs.make import task_of
from vis_rpg.envs.rendering.frames import VIDEO, rgb

ROWS, COLUMNS = 4, 3
CAPTION = 24
"""Height of the strip above each tile, in pixels."""
MOST_FRAMES = 120
"""Frames of one rollout at most; longer episodes show every k-th step."""
MOST_FPS = 30
CODECS = ("libx264", "h264", "libopenh264", "mpeg4")
INK, GOOD, PAPER = (230, 230, 230), (120, 230, 120), (24, 24, 28)


class SlotOverlay:
    """Draws the slot masks of an episode over its frames, each slot in a fixed colour."""

    def __init__(self, model: SlotModel) -> None:
        self.model = model
        self.slots: torch.Tensor | None = None

    def draw(self, obs: np.ndarray) -> np.ndarray:
        """Draw as `paint` does, enlarged to (256, 256, 3) uint8."""
        return letterbox(self.paint(obs), cv2.INTER_NEAREST)

    def paint(self, obs: np.ndarray) -> np.ndarray:
        """Draw the newest frame of a stack (2, 64, 64, 3) uint8 under its masks: (64, 64, 3)."""
        return overlay(obs[-1], self.encode(obs).decoded.masks[0].cpu().numpy())

    @torch.no_grad()
    def encode(self, obs: np.ndarray) -> SlotOutput:
        """Encode the newest frame of a stack; slots carry over between calls."""
        frame = torch.as_tensor(obs[-1:], device=self.model.backgrounds.device)
        output: SlotOutput = self.model(frame, self.slots)
        self.slots = output.slots
        return output


def record_rollouts(actor: Actor, env: gymnasium.Env, path: Path, seed: int = 0) -> None:
    """Write an MP4 of rollouts in rows of one z each.

    Raises:
        UserError: The environment cannot be rendered.
    """
    write_mp4(path, mosaic(rollout_rows(actor, env, seed)), frames_per_second(env))


def rollout_rows(
    actor: Actor, env: gymnasium.Env, seed: int = 0, rows: int = ROWS, columns: int = COLUMNS
) -> list[list[list[np.ndarray]]]:
    """Play rollouts and draw them.

    A row has one z, drawn from π(z|s₁) at its first start and acting by its mean there; the other
    columns sample their actions and so show how far one z reaches. A column has one start.

    Returns:
        rows x columns x steps of (H, W, 3) uint8 tiles.

    Raises:
        UserError: The environment cannot be rendered.
    """
    actor.generator.manual_seed(seed)
    tiles: list[list[list[np.ndarray]]] = []
    with tqdm(total=rows * columns, desc="recording", unit="episode") as bar:
        for row in range(rows):
            z, line = None, []
            for column in range(columns):
                steps = play(actor, env, episode_seed(seed, column), z, explore=column > 0)
                title = f"z{row + 1} {'sampled' if column else 'mean'}"
                line.append(_tiles(actor, env, steps, title))
                z = None if actor.agent.redraws else actor.z[0].clone()
                bar.update()
            tiles.append(line)
    return tiles


def _tiles(
    actor: Actor, env: gymnasium.Env, steps: Iterable[EpisodeStep], title: str
) -> list[np.ndarray]:
    perception = actor.agent.model.perception.unwrapped
    masks = SlotOverlay(perception.model) if isinstance(perception, SlotPerception) else None
    every = math.ceil(task_of(env).episode_length / MOST_FRAMES)
    tiles = []
    for index, step in enumerate(steps):
        # Every frame, drawn or not: slots carry over from frame to frame.
        views = [masks.draw(step.obs)] if masks else []
        if index % every == 0 or step.ended:
            picture = np.concatenate([render(env), *views], axis=1)
            tiles.append(add_caption(picture, f"{title}  return {step.total:.1f}", step.success))
    return tiles


def render(env: gymnasium.Env) -> np.ndarray:
    """Render the environment as (256, 256, 3) uint8.

    Raises:
        UserError: The environment has no picture.
    """
    picture = rgb(env.render(), task_of(env).name)
    return letterbox(picture, cv2.INTER_AREA if max(picture.shape) > VIDEO else cv2.INTER_LINEAR)


def letterbox(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """Fit a picture (H, W, 3) into a square of 256 pixels and keep its proportions."""
    height, width = picture.shape[:2]
    scale = VIDEO / max(height, width)
    scaled = cv2.resize(
        np.ascontiguousarray(picture),
        (round(width * scale), round(height * scale)),
        interpolation=interpolation,
    )
    down, right = VIDEO - scaled.shape[0], VIDEO - scaled.shape[1]
    sides = down // 2, down - down // 2, right // 2, right - right // 2
    return cv2.copyMakeBorder(scaled, *sides, cv2.BORDER_CONSTANT, value=PAPER)


def add_caption(picture: np.ndarray, text: str, success: bool) -> np.ndarray:
    """Put a strip with a caption above a picture, green and with the word success if it holds.

    Args:
        picture: (H, W, 3) uint8.
        text: The caption.
        success: Whether success holds.

    Returns:
        (24 + H, W, 3) uint8.
    """
    strip = np.full((CAPTION, picture.shape[1], 3), PAPER, np.uint8)
    colour, text = (GOOD, f"{text}  success") if success else (INK, text)
    cv2.putText(strip, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def mosaic(rows: list[list[list[np.ndarray]]]) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) of all rollouts; one that has ended keeps its last tile."""
    for index in range(max(len(tiles) for line in rows for tiles in line)):
        yield grid([[tiles[min(index, len(tiles) - 1)] for tiles in line] for line in rows])


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = 12) -> None:
    """Write frames (H, W, 3) uint8, H and W even, as H.264 in a pixel format that players read."""
    codec = next(name for name in CODECS if name in av.codecs_available)
    frames = iter(frames)
    first = next(frames)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=Fraction(fps)))
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = first.shape[:2]
        for picture in chain([first], frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames_per_second(env: gymnasium.Env) -> int:
    """Return the rate of the environment's videos."""
    return min(int(env.metadata.get("render_fps") or MOST_FPS), MOST_FPS)
