"""Pictures of the tasks: stacks of small frames for learning, larger ones for videos, and masks for metrics."""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
from typing import Any

import cv2
import numpy as np

from vis_rpg.errors import UserError, one_line

FRAME = 64
"""Side of the frames that observations are made of, in pixels."""
VIDEO = 256
"""Side of the pictures that `render()` returns, in pixels."""
STACK = 2
"""Frames in one observation."""
HIDDEN = 5
"""A group of geoms that MuJoCo does not draw."""
NO_EGL = "pictures of MuJoCo scenes need EGL: install libegl1, libegl-mesa0 and libgl1-mesa-dri (Debian, Ubuntu), or use obs=state"


def default_to_headless_gl() -> None:
    """Choose MuJoCo's GL back end before MuJoCo is imported: EGL, or none where it is missing, so that state still works."""
    if not sys.platform.startswith("linux"):
        return
    if os.environ.get("MUJOCO_GL", "egl") == "egl":
        try:
            ctypes.CDLL("libEGL.so.1")
            os.environ["MUJOCO_GL"] = "egl"
        except OSError:
            os.environ["MUJOCO_GL"] = "disabled"
    # Mesa's software rasteriser: frames this small cost less without its worker threads.
    os.environ.setdefault("LP_NUM_THREADS", "0")


default_to_headless_gl()


class FrameStack:
    """The newest frames of an episode, oldest first: (2, 64, 64, 3) uint8."""

    def __init__(self) -> None:
        self.frames = np.zeros((STACK, FRAME, FRAME, 3), np.uint8)

    def start(self, frame: np.ndarray) -> np.ndarray:
        """Begin an episode: its first frame (64, 64, 3), repeated."""
        self.frames = np.repeat(frame[None], STACK, axis=0)
        return self.frames.copy()

    def push(self, frame: np.ndarray) -> np.ndarray:
        """Drop the oldest frame and append the newest (64, 64, 3)."""
        self.frames = np.concatenate([self.frames[1:], frame[None]])
        return self.frames.copy()


class Camera:
    """Pictures of one MuJoCo model from one of its cameras (a name) or from a free-standing one (an MjvCamera); no shadows, no
    reflections.

    squeeze: a scene much wider than high is drawn this many times wider than the picture, then averaged over as many columns for each
    of the picture's; sky: whether the model's own sky is drawn; without it, what no geom covers is black. Raises UserError where no GL
    context can be made.
    """

    def __init__(self, model: Any, camera: str | Any, size: int, samples: int, squeeze: int = 1, sky: bool = False) -> None:
        import mujoco

        if not hasattr(mujoco.gl_context, "GLContext"):
            raise UserError(NO_EGL)
        quality, frame = model.vis.quality, model.vis.global_
        quality.offsamples, quality.shadowsize = samples, 0
        # Nearly all of a small frame's cost is in triangles: round geoms get half as many each way as by default.
        quality.numslices, quality.numstacks = (12, 6) if size == FRAME else (28, 16)
        frame.offwidth, frame.offheight = size * squeeze, size
        try:
            self._renderer = mujoco.Renderer(model, size, size * squeeze, max_geom=64 + 2 * (model.ngeom + model.nsite))
        except Exception as error:  # each GL back end fails in its own way, with its own exception
            raise UserError(f"{NO_EGL} ({one_line(error)})") from error
        atexit.register(self._renderer.close)  # later than that, EGL is gone and freeing the context fails aloud
        self._renderer.scene.flags[:] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = sky
        self._model, self._camera, self._squeeze = model, camera, squeeze
        self._groups = model.geom_group.copy()
        self._without_sites = mujoco.MjvOption()
        self._without_sites.sitegroup[:] = 0

    def picture(self, data: Any) -> np.ndarray:
        """(size, size, 3) uint8."""
        self._renderer.update_scene(data, camera=self._camera)
        if self._model.nmesh:
            self._model.geom_group[self._outside(data)] = HIDDEN
            self._renderer.update_scene(data, camera=self._camera)
            self._model.geom_group[:] = self._groups
        wide = self._renderer.render()
        return wide if self._squeeze == 1 else cv2.resize(wide, wide.shape[:1] * 2, interpolation=cv2.INTER_AREA)

    def _outside(self, data: Any) -> np.ndarray:
        """(geoms,) bool: those that lie wholly beside the picture. A robot's meshes there would cost as much as those that are seen."""
        left, right = self._renderer.scene.camera  # of two eyes, whose mean is the camera
        (fx, fy, fz), (ux, uy, uz) = left.forward.tolist(), left.up.tolist()
        axes = np.array([[fx, ux, fy * uz - fz * uy], [fy, uy, fz * ux - fx * uz], [fz, uz, fx * uy - fy * ux]])
        along, up, aside = ((data.geom_xpos - (left.pos + right.pos) / 2) @ axes).T
        slope = float(left.frustum_top / left.frustum_near)
        beyond = (np.maximum(np.abs(up), np.abs(aside)) - slope * along) / math.hypot(1.0, slope)  # frames are square: one slope both ways
        radius = self._model.geom_rbound
        return (radius > 0) & (beyond > radius * 1.01 + 1e-3)  # planes have no radius

    def geoms(self, data: Any) -> np.ndarray:
        """Which geom each pixel shows, seen through the markers that a model calls sites: (size, size) int, -1 where there is none; of a
        squeezed picture's columns the (upper) median."""
        shown = self._segments(data, self._without_sites)[..., 0]
        return np.sort(shown.reshape(len(shown), -1, self._squeeze), axis=-1)[..., self._squeeze // 2]

    def sites(self, data: Any) -> np.ndarray:
        """Which site each pixel shows: (size, size) int, -1 where there is none; of a picture that is not squeezed."""
        import mujoco

        shown = self._segments(data, None)
        return np.where(shown[..., 1] == mujoco.mjtObj.mjOBJ_SITE, shown[..., 0], -1)

    def _segments(self, data: Any, option: Any) -> np.ndarray:
        """(size, size x squeeze, 2) int: the number and the kind (mjtObj) of what each pixel shows."""
        self._renderer.enable_segmentation_rendering()
        try:
            self._renderer.update_scene(data, camera=self._camera, scene_option=option)
            return self._renderer.render()
        finally:
            self._renderer.disable_segmentation_rendering()
