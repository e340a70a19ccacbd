"""Videos of rollouts: one row for each sampled z, so that the modes are seen, with slot masks
beside the frames where there are slots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import gymnasium
import numpy as np
import torch
from av.video.stream import VideoStream

from perception.evaluation.visualise import grid, overlay
from perception.slots.model import SlotModel
from perception.slots.perception import SlotPerception
from vis_rpg.agent.actor import Actor
from vis_rpg.analysis.evaluation import Moment, episode_seed, play
from vis_rpg.envs.make import task_of
from vis_rpg.envs.rendering.frames import VIDEO, rgb

ROWS, COLUMNS = 4, 3
CAPTION = 24
"""Height of the strip above each tile, in pixels."""
MOST_FRAMES = 120
"""Of one rollout: of longer episodes only every k-th step is shown."""
MOST_FPS = 30
CODECS = ("libx264", "h264", "libopenh264", "mpeg4")
INK, GOOD, PAPER = (230, 230, 230), (120, 230, 120), (24, 24, 28)


class MaskView:
    """A slot model that watches an episode: the newest frame under its slot masks, one fixed colour
    for each slot."""

    def __init__(self, model: SlotModel) -> None:
        self.model = model
        self.slots: torch.Tensor | None = None

    @torch.no_grad()
    def picture(self, obs: np.ndarray) -> np.ndarray:
        """(256, 256, 3) uint8 for a frame stack (2, 64, 64, 3); slots are carried over from the
        call before."""
        frame = torch.as_tensor(obs[-1:], device=self.model.backgrounds.device)
        sight = self.model(frame, self.slots)
        self.slots = sight.slots
        return fit(overlay(obs[-1], sight.decoded.masks[0].cpu().numpy()), cv2.INTER_NEAREST)


def film(actor: Actor, env: gymnasium.Env, path: Path, seed: int = 0) -> None:
    """Write an MP4 of rollouts in rows of one z each. Raises UserError where the environment cannot
    be rendered."""
    write_mp4(path, mosaic(rollout_rows(actor, env, seed)), frames_per_second(env))


def rollout_rows(
    actor: Actor, env: gymnasium.Env, seed: int = 0, rows: int = ROWS, columns: int = COLUMNS
) -> list[list[list[np.ndarray]]]:
    """Rollouts as tiles: rows x columns x moments of (H, W, 3) uint8 pictures.

    A row has one z, drawn from π(z|s₁) at its first start, which acts by its mean; the others of
    the row sample their actions, so that a row shows how far one z reaches. A column has one start.
    Raises UserError where the environment cannot be rendered.
    """
    actor.generator.manual_seed(seed)
    tiles: list[list[list[np.ndarray]]] = []
    for row in range(rows):
        z, line = None, []
        for column in range(columns):
            moments = play(actor, env, episode_seed(seed, column), z, explore=column > 0)
            line.append(
                _tiles(actor, env, moments, f"z{row + 1} {'sampled' if column else 'mean'}")
            )
            z = actor.z[0].clone()
        tiles.append(line)
    return tiles


def _tiles(
    actor: Actor, env: gymnasium.Env, moments: Iterable[Moment], title: str
) -> list[np.ndarray]:
    """The tiles of one rollout."""
    perception = actor.agent.model.perception
    masks = MaskView(perception.model) if isinstance(perception, SlotPerception) else None
    every = math.ceil(task_of(env).episode_length / MOST_FRAMES)
    tiles = []
    for index, moment in enumerate(moments):
        views = (
            [masks.picture(moment.obs)] if masks else []
        )  # each one: slots are carried from frame to frame
        if index % every == 0 or moment.ended:
            views.insert(0, render(env))
            tiles.append(
                captioned(
                    np.concatenate(views, axis=1),
                    f"{title}  return {moment.total:.1f}",
                    moment.success,
                )
            )
    return tiles


def render(env: gymnasium.Env) -> np.ndarray:
    """The environment's picture as (256, 256, 3) uint8. Raises UserError where it has none."""
    picture = rgb(env.render(), task_of(env).name)
    return fit(picture, cv2.INTER_AREA if max(picture.shape) > VIDEO else cv2.INTER_LINEAR)


def fit(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """Any picture (H, W, 3) on a square of 256 pixels, its proportions kept."""
    height, width = picture.shape[:2]
    scale = VIDEO / max(height, width)
    scaled = cv2.resize(
        np.ascontiguousarray(picture),
        (round(width * scale), round(height * scale)),
        interpolation=interpolation,
    )
    square = np.full((VIDEO, VIDEO, 3), PAPER, np.uint8)
    top, left = (VIDEO - scaled.shape[0]) // 2, (VIDEO - scaled.shape[1]) // 2
    square[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return square


def captioned(picture: np.ndarray, text: str, success: bool) -> np.ndarray:
    """A picture (H, W, 3) under a strip with its caption, green with the word success while it
    holds: (24 + H, W, 3)."""
    strip = np.full((CAPTION, picture.shape[1], 3), PAPER, np.uint8)
    text += "  success" if success else ""
    cv2.putText(
        strip,
        text,
        (6, 17),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.45,
        GOOD if success else INK,
        1,
        cv2.LINE_AA,
    )
    return np.concatenate([strip, picture])


def mosaic(rows: list[list[list[np.ndarray]]]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of all rollouts side by side; one that has ended rests on its last tile."""
    for index in range(max(len(tiles) for line in rows for tiles in line)):
        yield grid([[tiles[min(index, len(tiles) - 1)] for tiles in line] for line in rows])


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = 12) -> None:
    """Write frames (H, W, 3) uint8, H and W even, as H.264 in the pixel format that every player
    reads."""
    codec = next(name for name in CODECS if name in av.codecs_available)
    frames = iter(frames)
    first = next(frames)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = first.shape[:2]
        for picture in chain([first], frames):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                )
            )
        container.mux(stream.encode())


def frames_per_second(env: gymnasium.Env) -> int:
    """At which its videos play."""
    return min(int(env.metadata.get("render_fps") or MOST_FPS), MOST_FPS)
