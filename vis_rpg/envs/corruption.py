"""Frames as a real camera gives them: with noise, compression, changing light and clutter.

One module for training, evaluation and object discovery. Frames are changed one at a time, where
they are drawn, with OpenCV: kornia's counterparts need batches and draw from torch's global
generator, which no environment could save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import gymnasium
import numpy as np
from numpy.typing import NDArray

from vis_rpg.errors import UserError, require

CHECK, GRATING, OFFSET = 3, 8, (3, 3)
"""In pixels: the side of the texture's squares, the period of the strip's grating, and how far a
painted shadow lies to the right of and below what throws it."""

Frame = NDArray[np.float32]


class CorruptedFrames(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Puts conditions on frames; masks of `segmentation` move along with a shaking camera.

    Of the scene come texture, shadow and strip; then light, shake and noise; last grey and jpeg,
    whatever the order in which they are given. Random numbers come from a generator of its own, so
    that actions lead to the same states as without conditions; it starts from the reset's seed and
    is saved with the environment. Pictures for videos stay clean.

    Args:
        env: One whose observations are stacked frames (F, H, W, 3) uint8, oldest first.
        conditions: Such as "noise:5" (CONDITIONS).

    Raises:
        UserError: For an unknown condition, a strength that cannot be, and for what lies on the
            background where the task does not tell what its pixels show.
    """

    def __init__(
        self, env: gymnasium.Env[np.ndarray, np.ndarray], conditions: Sequence[str]
    ) -> None:
        super().__init__(env)
        given = dict(map(parse, conditions))
        require(len(given) == len(conditions), f"corrupt={list(conditions)}: each condition once")
        self.conditions = {name: given[name] for name in CONDITIONS if name in given}
        self.masked = bool(given.keys() & {"texture", "shadow", "strip"})
        if env.has_wrapper_attr("segmentation"):
            self.segmentation = self._segmentation
        require(
            hasattr(self, "segmentation") or not self.masked,
            "conditions texture, shadow and strip lie on the background, and this task does not "
            "tell what its pixels show",
        )
        if env.has_wrapper_attr("get_state"):
            self.get_state, self.set_state = self._get_state, self._set_state
        self.rng, self.steps, self.shift = np.random.default_rng(), 0, (0.0, 0.0)
        self.frames = np.zeros(env.observation_space.shape or (), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: its first frame, changed once and repeated."""
        obs, info = super().reset(seed=seed, options=options)
        if seed is not None:
            self.rng = np.random.default_rng([seed, 1])
        self.steps = 0
        self.frames = np.repeat(self._corrupt(obs[-1])[None], len(obs), axis=0)
        return self.frames.copy(), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Carry out an action; the newest frame is changed, earlier ones stay as they were seen."""
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        self.frames = np.concatenate([self.frames[1:], self._corrupt(obs[-1])[None]])
        return self.frames.copy(), reward, terminated, truncated, info

    def _corrupt(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as the camera sees it."""
        self.shift = (0.0, 0.0)
        seen: Frame = np.divide(frame, 255, dtype=np.float32)
        if self.masked:
            self.background = self.env.get_wrapper_attr("segmentation")(whole=True) == 0
        for name, strength in self.conditions.items():
            seen = CONDITIONS[name].apply(self, seen, strength)
        return (seen * 255).round().clip(0, 255).astype(np.uint8)

    def _segmentation(self, whole: bool = False) -> NDArray[np.int64]:
        labels = self.env.get_wrapper_attr("segmentation")(whole)
        return shifted(labels.astype(np.float32), self.shift, cv2.INTER_NEAREST).astype(np.int64)

    def _get_state(self) -> dict[str, Any]:
        own = {"rng": self.rng.bit_generator.state, "steps": self.steps}
        return {
            "env": self.env.get_wrapper_attr("get_state")(),
            "corruption": own | {"frames": self.frames.copy(), "shift": list(self.shift)},
        }

    def _set_state(self, state: dict[str, Any]) -> dict[str, Any]:
        info: dict[str, Any] = self.env.get_wrapper_attr("set_state")(state["env"])
        own = state["corruption"]
        self.rng.bit_generator.state = own["rng"]
        self.steps, self.frames = int(own["steps"]), np.array(own["frames"], np.uint8)
        self.shift = float(own["shift"][0]), float(own["shift"][1])
        return info


def parse(condition: str) -> tuple[str, float]:
    """Return the name and the strength of "noise:5", or of "noise" with its usual strength."""
    name, _, text = condition.partition(":")
    known = ", ".join(f"{each}:{kind.usual:g}" for each, kind in CONDITIONS.items())
    require(name in CONDITIONS, f"condition {condition}: choose from {known}")
    kind = CONDITIONS[name]
    try:
        strength = float(text) if text else kind.usual
    except ValueError:
        strength = -1.0
    if not kind.least <= strength <= kind.most:
        raise UserError(
            f"condition {condition}: the strength must lie between {kind.least:g} and "
            f"{kind.most:g}, as in {name}:{kind.usual:g}"
        )
    return name, strength


def shifted(picture: Frame, shift: tuple[float, float], interpolation: int) -> Frame:
    """Move a picture (H, W, ...) by pixels to the right and down; what comes in repeats the rim."""
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    size = picture.shape[1], picture.shape[0]
    moved = cv2.warpAffine(
        picture, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.float32)


def _texture(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    y, x = np.indices(frame.shape[:2]) // CHECK
    factor = np.where(env.background, 1 + strength * (1 - 2 * ((x + y) % 2)), 1)
    return frame * factor[..., None].astype(np.float32)


def _shadow(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    things = cv2.GaussianBlur((~env.background).astype(np.float32), (5, 5), 0)
    dark = strength * shifted(things, OFFSET, cv2.INTER_NEAREST) * env.background
    return frame * (1 - dark[..., None])


def _strip(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    rows = round(strength)
    wave = np.sin((np.arange(frame.shape[1]) + env.steps) * 2 * np.pi / GRATING)
    behind = env.background[:rows, :, None]
    frame[:rows] = np.where(behind, (0.5 + 0.25 * wave)[:, None], frame[:rows])
    return frame


def _light(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    return frame * np.float32(1 + env.rng.uniform(-strength, strength))


def _shake(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    right, down = env.rng.uniform(-strength, strength, 2).tolist()
    env.shift = right, down
    return shifted(frame, env.shift, cv2.INTER_LINEAR)


def _noise(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    noise = env.rng.standard_normal(frame.shape, np.float32)
    return (frame + noise * np.float32(strength / 255)).clip(0, 1)


def _grey(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    return frame + np.float32(strength) * (grey - frame)


def _jpeg(env: CorruptedFrames, frame: Frame, strength: float) -> Frame:
    bgr = (frame[..., ::-1] * 255).round().clip(0, 255).astype(np.uint8)
    _, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(strength)])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None, "OpenCV reads what it has written"
    return np.divide(decoded[..., ::-1], 255, dtype=np.float32)


class Condition(NamedTuple):
    """What can be put on frames."""

    usual: float
    """The usual strength."""
    least: float
    most: float
    apply: Callable[[CorruptedFrames, Frame, float], Frame]


CONDITIONS = {
    "texture": Condition(0.15, 0.0, 1.0, _texture),
    "shadow": Condition(0.4, 0.0, 1.0, _shadow),
    "strip": Condition(8.0, 1.0, 64.0, _strip),
    "light": Condition(0.05, 0.0, 1.0, _light),
    "shake": Condition(1.0, 0.0, 8.0, _shake),
    "noise": Condition(5.0, 0.0, 255.0, _noise),
    "grey": Condition(1.0, 0.0, 1.0, _grey),
    "jpeg": Condition(90.0, 1.0, 100.0, _jpeg),
}
"""By name, in the order in which they come; strengths mean:

texture: a chequerboard on the background, brighter and darker by this share, which stays;
shadow: a soft copy beside everything that moves, darker by this share;
strip: so many rows at the top in which a grating scrolls by a pixel a step, behind all that moves;
light: the greatest share by which a frame is brighter or darker;
shake: the greatest shift of a frame, in pixels, along each axis;
noise: the std of Gaussian noise, of 255;
grey: the share of the colour that is lost;
jpeg: the quality.
"""
