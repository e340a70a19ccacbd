"""Frames for learning, larger pictures for videos, and masks for metrics."""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
import weakref
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from vis_rpg.errors import UserError, one_line, require

if TYPE_CHECKING:
    import mujoco

FRAME = 64
"""Side of the frames that observations are made of, in pixels."""
VIDEO = 256
"""Side of the pictures that `render()` returns, in pixels."""
STACK = 2
"""Frames in one observation."""
HIDDEN = 5
"""A group of geoms that MuJoCo does not draw."""
SHADOW_MAP = 1024
"""Side, in pixels, of the map that shadows are drawn with."""
SUN, SUN_SHARE = (0.35, -0.25, -0.9), 0.4
"""Direction of the light that a scene gets for its shadows where no light throws any, and its share
of the brightness of what faces upwards."""
NO_EGL = (
    "pictures of MuJoCo scenes need EGL: install libegl1, libegl-mesa0 and libgl1-mesa-dri "
    "(Debian, Ubuntu), or use obs=state"
)


def choose_gl() -> str | None:
    """Choose MuJoCo's GL back end and import MuJoCo.

    EGL unless MUJOCO_GL names another, none where that one fails.

    Returns:
        Why there are no pictures; None where nothing speaks against them so far. State needs no GL.
    """
    if not sys.platform.startswith("linux"):
        return None
    with suppress(ImportError):  # its LLVM crashes when it is loaded after that of Mesa
        import triton  # noqa: F401
    # Mesa's software rasteriser: frames this small cost less without its worker threads.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    wanted = os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL", "").strip().lower() or "egl"
    try:
        if wanted == "egl":
            ctypes.CDLL("libEGL.so.1")
        import mujoco

        drawn = hasattr(mujoco, "GLContext")
        return (
            None
            if drawn
            else f"MUJOCO_GL={wanted} switches pictures off: unset it, or use obs=state"
        )
    except OSError:
        why = NO_EGL
    except Exception as error:  # whatever the GL library lacks
        why = (
            f"{NO_EGL} ({one_line(error)})"
            if wanted == "egl"
            else f"MUJOCO_GL={wanted}: use egl, osmesa or glfw ({one_line(error)})"
        )
    os.environ["MUJOCO_GL"] = (
        "disabled"  # for this import alone: worker processes find out for themselves
    )
    import mujoco  # noqa: F811

    os.environ["MUJOCO_GL"] = wanted
    return why


NO_GL = choose_gl()
"""Why MuJoCo cannot draw here, None where nothing speaks against it."""


@cache
def check_gl() -> None:
    """Raise UserError where MuJoCo can make no GL context."""
    if NO_GL:
        raise UserError(NO_GL)
    import mujoco

    class Context(mujoco.GLContext):
        _context = None  # what its __del__ reads after it could not be made

    try:
        context = Context(FRAME, FRAME)
        context.make_current()
        mujoco.MjrContext(
            mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100
        ).free()
        context.free()
    except Exception as error:  # each GL back end fails in its own way, with its own exception
        raise UserError(f"{NO_EGL} ({one_line(error)})") from error


def render_on(device: torch.device) -> None:
    """Let MuJoCo render on the GPU that a run uses, unless MUJOCO_EGL_DEVICE_ID says otherwise.

    It holds for every GL context made afterwards, those of worker processes included. EGL counts
    all GPUs of the machine, CUDA those in CUDA_VISIBLE_DEVICES. A GPU that EGL does not list leaves
    the choice to MuJoCo.
    """
    if device.type != "cuda" or os.environ.get("MUJOCO_GL") != "egl":
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = str(device.index or 0)
    if visible != [""]:
        index = visible[int(index)].strip() if int(index) < len(visible) else ""
    from mujoco.egl import egl_ext

    with suppress(Exception):  # EGL fails in its own ways, which the first context will tell
        if index.isdecimal() and 0 < int(index) < len(egl_ext.eglQueryDevicesEXT()):
            os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", index)


@cache
def mend_gymnasium_viewers() -> None:
    """Make each of Gymnasium's MuJoCo viewers draw, and free what it holds, in its own GL context.

    Gymnasium's viewer draws in whichever context is current: that of another environment, or none
    after one was closed. Its MjrContext also outlives its GL context, so freeing it deletes buffers
    and textures of the environment that is current by then (Gymnasium issue 736).
    """
    from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

    render = OffScreenViewer.render
    viewers: weakref.WeakSet[Any] = weakref.WeakSet()

    @cache
    def free_at_exit() -> None:
        """Free what is left before EGL ends.

        MuJoCo registers EGL's own exit handler with the first GL context.
        """
        atexit.register(lambda: [viewer.free() for viewer in list(viewers)])

    def render_in_own_context(viewer: Any, *args: Any, **kwargs: Any) -> Any:
        viewers.add(viewer)
        free_at_exit()
        viewer.make_context_current()
        return render(viewer, *args, **kwargs)

    def free(viewer: Any) -> None:
        context = viewer.__dict__.pop("opengl_context", None)
        if context is None:  # freed already, or never made
            return
        if "con" in viewer.__dict__:
            with suppress(
                Exception
            ):  # each GL back end fails in its own way; without a current context nothing is freed
                context.make_current()
                viewer.con.free()
        context.free()

    patched: Any = OffScreenViewer
    patched.render, patched.free = render_in_own_context, free  # close and __del__ call free


def rgb(picture: Any, of: str) -> np.ndarray:
    """A picture that an environment has drawn, in the one form that everything here reads.

    Args:
        picture: (H, W), or (H, W, C) with 1 (grey), 3 (RGB) or 4 (RGBA) channels; integers 0 to
            255, or floats 0 to 1, or bools; an array or a tensor. Floats above 1 are taken as 0 to
            255.
        of: What has drawn it, for the error.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: For anything else.
    """
    if hasattr(picture, "detach"):  # a tensor
        picture = picture.detach().cpu()
    try:
        array = np.asarray(picture)
    except Exception:  # a list of pictures of unlike sizes, say
        array = np.zeros(0)
    array = array[..., None] if array.ndim == 2 else array
    if (
        array.ndim != 3
        or array.shape[-1] not in (1, 3, 4)
        or not array.size
        or array.dtype.kind not in "biuf"
    ):
        what = (
            f"an array {array.shape} of {array.dtype}" if array.ndim > 1 else type(picture).__name__
        )
        raise UserError(f"{of} draws {what} where a picture (H, W, 3) is needed")
    require(
        bool(array.dtype.kind != "f" or np.isfinite(array).all()),
        f"{of} draws a picture with numbers that are not finite",
    )
    if array.dtype == bool or (array.dtype.kind == "f" and array.max() <= 1):
        array = array * 255.0
    if array.dtype != np.uint8:
        array = np.clip(np.rint(array), 0, 255).astype(np.uint8)
    array = np.repeat(array, 3, -1) if array.shape[-1] == 1 else array[..., :3]
    return np.ascontiguousarray(array)


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
    """Renders one MuJoCo model, without reflections.

    Args:
        model: The MjModel.
        camera: A camera of the model, by name, or a free-standing one (an MjvCamera).
        size: Side of a picture in pixels.
        samples: For multisampling.
        anamorphic: A scene much wider than high is drawn this many times wider than the picture,
            then averaged over as many columns for each of the picture's.
        sky: Whether the model's own sky is drawn; without it, what no geom covers is black.
        shadows: Whether lights throw shadows.

    Raises:
        UserError: Where no GL context can be made.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        camera: str | mujoco.MjvCamera,
        size: int,
        samples: int,
        anamorphic: int = 1,
        sky: bool = False,
        shadows: bool = False,
    ) -> None:
        import mujoco

        check_gl()
        quality, frame = model.vis.quality, model.vis.global_
        quality.offsamples, quality.shadowsize = samples, SHADOW_MAP if shadows else 0
        # Nearly all of a small frame's cost is in triangles: round geoms get half as many each way
        # as by default.
        quality.numslices, quality.numstacks = (12, 6) if size == FRAME else (28, 16)
        frame.offwidth, frame.offheight = size * anamorphic, size
        try:
            self._renderer = mujoco.Renderer(
                model, size, size * anamorphic, max_geom=64 + 2 * (model.ngeom + model.nsite)
            )
        except Exception as error:  # each GL back end fails in its own way, with its own exception
            raise UserError(f"{NO_EGL} ({one_line(error)})") from error
        atexit.register(
            self._renderer.close
        )  # later than that, EGL is gone and freeing the context fails aloud
        self._renderer.scene.flags[:] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = sky
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._shadows = shadows
        self._model, self._camera, self._anamorphic = model, camera, anamorphic
        self._groups = model.geom_group.copy()
        self._without_sites = mujoco.MjvOption()
        self._without_sites.sitegroup[:] = 0

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """(size, size, 3) uint8."""
        self._renderer.update_scene(data, camera=self._camera)
        if self._model.nmesh:
            self._model.geom_group[self._outside(data)] = HIDDEN
            self._renderer.update_scene(data, camera=self._camera)
            self._model.geom_group[:] = self._groups
        if self._shadows:
            self._light()
        wide = self._renderer.render()
        return (
            wide
            if self._anamorphic == 1
            else cv2.resize(wide, wide.shape[:1] * 2, interpolation=cv2.INTER_AREA)
        )

    def _light(self) -> None:
        """Give a scene in which no light throws shadows one that does, for a part of the others."""
        import mujoco

        scene = self._renderer.scene
        lights = scene.lights[: scene.nlight]
        if any(light.castshadow for light in lights):
            return
        for light in lights:
            light.ambient[:] *= 1 - SUN_SHARE
            light.diffuse[:] *= 1 - SUN_SHARE
        sun, direction = scene.lights[scene.nlight], np.array(SUN) / math.hypot(*SUN)
        sun.type, sun.headlight, sun.castshadow = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, 0, 1
        sun.dir[:], sun.pos[:] = direction, -self._model.stat.extent * direction
        sun.ambient[:], sun.specular[:], sun.diffuse[:] = 0, 0, SUN_SHARE / -direction[2]
        scene.nlight += 1

    def _outside(self, data: mujoco.MjData) -> np.ndarray:
        """Which geoms lie wholly outside the picture: (geoms,) bool."""
        left, right = self._renderer.scene.camera  # of two eyes, whose mean is the camera
        (fx, fy, fz), (ux, uy, uz) = left.forward.tolist(), left.up.tolist()
        axes = np.array(
            [[fx, ux, fy * uz - fz * uy], [fy, uy, fz * ux - fx * uz], [fz, uz, fx * uy - fy * ux]]
        )
        along, up, aside = ((data.geom_xpos - (left.pos + right.pos) / 2) @ axes).T
        slope = float(left.frustum_top / left.frustum_near)
        beyond = (np.maximum(np.abs(up), np.abs(aside)) - slope * along) / math.hypot(
            1.0, slope
        )  # frames are square: one slope both ways
        radius = self._model.geom_rbound
        return (radius > 0) & (beyond > radius * 1.01 + 1e-3)  # planes have no radius

    def geoms(self, data: mujoco.MjData) -> np.ndarray:
        """Which geom each pixel shows, seen through sites.

        Returns:
            (size, size) int, -1 where there is none; of an anamorphic picture's columns the (upper)
            median.
        """
        shown = self._segments(data, self._without_sites)[..., 0]
        return np.sort(shown.reshape(len(shown), -1, self._anamorphic), axis=-1)[
            ..., self._anamorphic // 2
        ]

    def sites(self, data: mujoco.MjData) -> np.ndarray:
        """Which site each pixel shows, in a picture that is not anamorphic.

        Returns:
            (size, size) int, -1 where there is none.
        """
        import mujoco

        shown = self._segments(data, None)
        return np.where(shown[..., 1] == mujoco.mjtObj.mjOBJ_SITE, shown[..., 0], -1)

    def _segments(self, data: mujoco.MjData, option: mujoco.MjvOption | None) -> np.ndarray:
        """Number and kind (mjtObj) of what each pixel shows: (size, size x anamorphic, 2) int."""
        self._renderer.enable_segmentation_rendering()
        try:
            self._renderer.update_scene(data, camera=self._camera, scene_option=option)
            return self._renderer.render()
        finally:
            self._renderer.disable_segmentation_rendering()
