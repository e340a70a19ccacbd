"""Frames of many environments in one call, with mujoco-warp's ray-caster, on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vis_rpg.errors import UserError, require

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

EGL = "use render.backend=egl"
FAR = 1000.0
"""Half the side of an infinite plane, in metres."""
PLANE, HFIELD, MESH = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}")) for name in ("PLANE", "HFIELD", "MESH")
)


class WarpRenderer:
    """Renders environments that share a model and differ in where geoms and sites are.

    No shadows, no reflections. Which geoms and sites are visible, their sizes and materials, the
    lights and the camera are what MuJoCo's own renderer is given, read once: what changes them in a
    model later is not seen. Light is OpenGL's, computed for each pixel; a texture counts with its
    mean colour. Tendons are left out, and lights stay where the model's initial pose has them. The
    first renderer on a machine compiles for some seconds; Warp keeps the result in its cache
    folder.

    Args:
        model: The MjModel.
        view: A camera, by its name in the model or free-standing (an MjvCamera), that does not
            move.
        size: Side of a picture in pixels.
        count: N environments.
        device: Of Warp ("cpu", "cuda:1"), by default the GPU if there is one.
        sky: As of a Camera.

    Raises:
        UserError: Where mujoco-warp is missing or has changed, for an unknown device, and for what
            it cannot draw.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        view: str | mujoco.MjvCamera,
        size: int,
        count: int,
        device: str | None = None,
        sky: bool = False,
    ) -> None:
        try:
            import warp as wp

            vars(wp.config).update(
                quiet=True, log_level=40
            )  # older and newer Warp; it reports compilation on stdout
            from vis_rpg.envs.rendering import warp_kernels as kernels
        except ImportError as error:
            raise UserError(
                f"render.backend=warp needs mujoco-warp 3.5 ({error}): pip install "
                f"'vis-rpg[warp]', or {EGL}"
            ) from error
        self._wp = wp
        try:
            self._device = wp.get_device(device)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"device={device}: mujoco-warp finds no such device ({error}): take cpu, or {EGL}"
            ) from error
        except OSError as error:
            raise UserError(
                f"Warp cannot write its cache ({error}): set WARP_CACHE_PATH to a folder that "
                f"it can, or {EGL}"
            ) from error
        description = _SceneDescription(model, view)
        with wp.ScopedDevice(self._device):
            geoms, surfaces = _put_geoms(wp, kernels, model, description)
            lights = _put_lights(wp, kernels, description)
            beyond = wp.vec3(*(_sky(model) if sky else np.zeros(3)))
            pixels, visible = size * size, len(description.visible)
            positions = np.concatenate([description.data.geom_xpos, description.data.site_xpos])
            rotations = np.concatenate(
                [description.data.geom_xmat, description.data.site_xmat]
            ).reshape(-1, 3, 3)
            xpos: Any = wp.array(np.tile(positions, (count, 1, 1)), dtype=wp.vec3)
            xmat: Any = wp.array(np.tile(rotations, (count, 1, 1, 1)), dtype=wp.mat33)
            frames, shown = (
                wp.zeros((count, pixels), dtype=kernels.vec3b),
                wp.zeros((count, pixels), dtype=int),
            )
            camera, layer = (
                _put_camera(wp, kernels, description, size),
                _make_layer(wp, kernels, count, visible, pixels),
            )
            spans = _make_spans(wp, kernels, count, size, visible)
            where = [geoms, camera, xpos, xmat, layer, spans]
            place = wp.launch(kernels.place, (count, visible), where, record_cmd=True)
            enlist = wp.launch(
                kernels.enlist, (count, size), [geoms, camera, layer, spans], record_cmd=True
            )
            # Warp runs a CPU kernel in the thread that launches it, one of these after the other: a
            # whole row is less work than its pixels.
            span = size if self._device.is_cpu else 1
            scene = [geoms, lights, camera, beyond, xpos, xmat, spans, layer, frames, shown]
            draw = wp.launch(
                kernels.draw, (count, size, size // span), [span, *scene], record_cmd=True
            )
            self._launches = (place, enlist, draw)
            layer.stale.fill_(1)
            for launch in self._launches:
                launch.launch()
            self._owned = (surfaces, scene)  # recorded launches hold addresses alone
            self._positions, self._rotations = wp.to_torch(xpos), wp.to_torch(xmat).flatten(-2)
            self._frames, self._shown = (
                wp.to_torch(frames).view(-1, size, size, 3),
                wp.to_torch(shown).view(-1, size, size),
            )
            self._stale = wp.to_torch(layer.stale)
            wp.synchronize_device(
                self._device
            )  # pictures are drawn in torch's stream, not in this one

    def render(self, positions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        """Render all environments.

        Args:
            positions: (N, P, 3) of all geoms and, after them, all sites (`MujocoTask.geom_poses`).
            rotations: (N, P, 9).

        Returns:
            (N, size, size, 3) uint8, the caller's to keep.
        """
        self._draw(positions, rotations)
        return self._frames.cpu().clone().numpy()

    def geoms(self, positions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        """Which geom each pixel shows first, seen through sites as in `Camera.geoms`.

        Returns:
            (N, size, size) int, -1 where there is none.
        """
        self._draw(positions, rotations)
        return self._shown.cpu().clone().numpy()

    def _draw(self, positions: np.ndarray, rotations: np.ndarray) -> None:
        wp, device = self._wp, self._device
        stream = (
            wp.stream_from_torch(torch.cuda.current_stream(wp.device_to_torch(device)))
            if device.is_cuda
            else None
        )
        self._positions.copy_(torch.from_numpy(np.ascontiguousarray(positions)))
        self._rotations.copy_(torch.from_numpy(np.ascontiguousarray(rotations)))
        self._stale.zero_()
        for launch in self._launches:
            launch.launch(stream)


class _SceneDescription:
    """What MuJoCo hands to its own renderer for the initial pose.

    `types` (P,) are the shapes of all geoms and then sites; `shown` maps the indices of visible
    ones, `visible` (V,), to what MuJoCo hands over. The first `static_count` of `visible` have no
    joints between them and the world.
    """

    def __init__(self, model: mujoco.MjModel, view: str | mujoco.MjvCamera) -> None:
        self.data = data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        camera = _still_camera(model, view)
        scene = mujoco.MjvScene(model, 64 + 2 * (model.ngeom + model.nsite))
        parts = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, parts, scene)
        require(
            not (model.nflex or model.nskin),
            "render.backend=warp draws no soft bodies and no skins, and this scene has "
            f"some: {EGL}",
        )
        drawn = [scene.geoms[i] for i in range(scene.ngeom)]
        starts = {int(mujoco.mjtObj.mjOBJ_GEOM): 0, int(mujoco.mjtObj.mjOBJ_SITE): model.ngeom}
        self.shown = {
            starts[part.objtype] + part.objid: part
            for part in drawn
            if part.objtype in starts and part.rgba[3] > 0
        }
        moves = model.body_weldid[np.concatenate([model.geom_bodyid, model.site_bodyid])] != 0
        self.visible = np.array(sorted(self.shown, key=lambda place: (moves[place], place)), int)
        self.static_count = int((~moves[self.visible]).sum())
        self.types = np.concatenate([model.geom_type, model.site_type])
        strange = sorted(set(self.types[self.visible]) - set(range(MESH + 1)))
        if strange:
            raise UserError(
                "render.backend=warp draws no geoms of type "
                f"{mujoco.mjtGeom(strange[0]).name}: {EGL}"
            )
        self.lights = [scene.lights[i] for i in range(scene.nlight)]
        self.scene = scene  # owns the camera below
        self.camera = scene.camera[0]

    def projection(self, size: int) -> np.ndarray:
        """(3, 4) M: a point x is seen in column c / d of row r / d, where (c, r, d) = M (x, 1)."""
        camera, eyes = self.camera, self.scene.camera
        middle, tall = (
            (camera.frustum_top + camera.frustum_bottom) / 2,
            (camera.frustum_top - camera.frustum_bottom) / 2,
        )
        depth = np.append(camera.forward, 0.0) / camera.frustum_near
        if camera.orthographic:
            depth = np.array([0.0, 0.0, 0.0, 1.0])
        x, y = np.append(np.cross(camera.forward, camera.up), 0.0), np.append(camera.up, 0.0)
        across = (x - camera.frustum_center * depth) / (camera.frustum_width or tall)
        down = (middle * depth - y) / tall
        relative = np.stack(
            [(across + depth) * size / 2 - depth / 2, (down + depth) * size / 2 - depth / 2, depth]
        )
        from_eye = np.eye(4)
        from_eye[:3, 3] = -(eyes[0].pos + eyes[1].pos) / 2
        return relative @ from_eye

    def rays(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and unit directions of the pixels' rays, row by row: (size * size, 3) each."""
        camera, eyes = (
            self.camera,
            self.scene.camera,
        )  # the eyes of a stereo pair, of which MuJoCo takes the mean as well
        across = 2 * (np.arange(size) + 0.5) / size - 1
        tall = (camera.frustum_top - camera.frustum_bottom) / 2
        x = camera.frustum_center + (camera.frustum_width or tall) * across
        y = (camera.frustum_top + camera.frustum_bottom) / 2 - tall * across
        plane = (
            x[None, :, None] * np.cross(camera.forward, camera.up) + y[:, None, None] * camera.up
        )
        plane, ahead = plane.reshape(-1, 3), np.tile(camera.forward, (size * size, 1))
        eye = (eyes[0].pos + eyes[1].pos) / 2
        if camera.orthographic:
            return eye + plane, ahead
        rays = plane + camera.frustum_near * ahead
        return np.tile(eye, (size * size, 1)), rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def _still_camera(model: mujoco.MjModel, view: str | mujoco.MjvCamera) -> Any:
    """The MjvCamera of a view, which may not move with a body."""
    camera: Any = view
    if isinstance(view, str):
        camera = mujoco.MjvCamera()
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(view).id
    moves = camera.type == mujoco.mjtCamera.mjCAMERA_TRACKING
    if camera.type == mujoco.mjtCamera.mjCAMERA_FIXED:
        body, mode = model.cam_bodyid[camera.fixedcamid], model.cam_mode[camera.fixedcamid]
        moves = mode != mujoco.mjtCamLight.mjCAMLIGHT_FIXED or model.body_weldid[body] != 0
    if moves:
        name = view if isinstance(view, str) else "tracking"
        raise UserError(
            f"render.backend=warp needs a camera that stands still, and {name!r} moves with a "
            f"body: {EGL}"
        )
    return camera


def _put_geoms(
    wp: Any, kernels: Any, model: mujoco.MjModel, description: _SceneDescription
) -> tuple[Any, Any]:
    """Geoms and sites on the device; and the meshes and height fields that must outlive them."""
    from mujoco_warp._src.bvh import build_hfield_bvh

    places = len(description.types)
    rgba, tint, shine = np.zeros((places, 4)), np.zeros((places, 3)), np.zeros((places, 3))
    for place, part in description.shown.items():
        rgba[place] = (
            *part.rgba[:3],
            1 - (1 - part.rgba[3]) ** 2,
        )  # MuJoCo draws what is transparent twice
        tint[place] = _mean_colour(model, part.matid)
        shine[place] = part.emission, part.specular, 128 * part.shininess
    size = np.concatenate([model.geom_size, model.site_size])
    dataid = np.concatenate([model.geom_dataid, np.full(model.nsite, -1)])
    centre = np.concatenate([model.geom_aabb[:, :3], np.zeros((model.nsite, 3))])
    half = np.concatenate([model.geom_aabb[:, 3:], _site_boxes(model)])
    planes = description.types == PLANE
    centre[planes], half[planes] = 0.0, np.where(size[planes] > 0, size[planes], FAR)
    half[planes, 2] = 0.01
    size[planes] = half[planes]
    surfaces: dict[Any, Any] = {}
    handles = np.zeros(places, np.uint64)
    for place in description.visible:
        kind, index = description.types[place], dataid[place]
        if kind in (MESH, HFIELD):
            if (kind, index) not in surfaces:
                surfaces[kind, index] = (
                    _put_mesh(wp, model, index)
                    if kind == MESH
                    else build_hfield_bvh(model, index)[0]
                )
            handles[place] = surfaces[kind, index].id
    return _struct(
        kernels.Geoms,
        sites=model.ngeom,
        moving=description.static_count,
        type=wp.array(description.types, dtype=int),
        surface=wp.array(handles, dtype=wp.uint64),
        mesh=wp.array(np.where(description.types == MESH, dataid, -1), dtype=int),
        size=wp.array(size, dtype=wp.vec3),
        centre=wp.array(centre, dtype=wp.vec3),
        half=wp.array(half, dtype=wp.vec3),
        rgba=wp.array(rgba, dtype=wp.vec4),
        tint=wp.array(tint, dtype=wp.vec3),
        shine=wp.array(shine, dtype=wp.vec3),
        visible=wp.array(description.visible, dtype=int),
        normals=wp.array(model.mesh_normal, dtype=wp.vec3),
        normal_start=wp.array(model.mesh_normaladr, dtype=int),
        corners=wp.array(model.mesh_facenormal, dtype=wp.vec3i),
        corner_start=wp.array(model.mesh_faceadr, dtype=int),
    ), surfaces


def _struct(kind: Any, **fields: Any) -> Any:
    """An instance of a Warp struct."""
    made = kind()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _put_camera(wp: Any, kernels: Any, description: _SceneDescription, size: int) -> Any:
    """The camera on the device."""
    projection = description.projection(size)
    starts, rays = description.rays(size)
    return _struct(
        kernels.CameraIntrinsics,
        side=size,
        turn=wp.mat33(*projection[:, :3].ravel()),
        shift=wp.vec3(*projection[:, 3]),
        starts=wp.array(starts, dtype=wp.vec3),
        rays=wp.array(rays, dtype=wp.vec3),
    )


def _make_layer(wp: Any, kernels: Any, count: int, visible: int, pixels: int) -> Any:
    """The static layer of each environment, not drawn yet."""
    return _struct(
        kernels.StaticLayerCache,
        xpos=wp.zeros((count, visible), dtype=wp.vec3),
        xmat=wp.zeros((count, visible), dtype=wp.mat33),
        stale=wp.zeros(count, dtype=int),
        frames=wp.zeros((count, pixels), dtype=kernels.vec3b),
        shown=wp.zeros((count, pixels), dtype=int),
        distance=wp.zeros((count, pixels), dtype=float),
    )


def _make_spans(wp: Any, kernels: Any, count: int, side: int, visible: int) -> Any:
    """Room for where geoms are in the pictures."""
    return _struct(
        kernels.ScreenSpans,
        columns=wp.empty((count, side, visible), dtype=wp.vec2i),
        near=wp.empty((count, visible), dtype=float),
        listed=wp.empty((count, side, visible), dtype=int),
        counts=wp.empty((count, side), dtype=wp.vec2i),
        moving=wp.zeros((count, side), dtype=wp.vec2i),
        dirty=wp.empty((count, side), dtype=wp.vec2i),
    )


def _site_boxes(model: mujoco.MjModel) -> np.ndarray:
    """(sites, 3) half the sides of the boxes around them, which MuJoCo keeps for geoms only."""
    half, kinds = model.site_size.copy(), mujoco.mjtGeom
    radius, length = half[:, 0].copy(), half[:, 1].copy()
    for kind, tall in (
        (kinds.mjGEOM_SPHERE, radius),
        (kinds.mjGEOM_CAPSULE, length + radius),
        (kinds.mjGEOM_CYLINDER, length),
    ):
        round_ones = model.site_type == kind
        half[round_ones] = np.stack([radius, radius, tall], 1)[round_ones]
    return half


def _put_mesh(wp: Any, model: mujoco.MjModel, index: int) -> Any:
    vertices = model.mesh_vert[model.mesh_vertadr[index] :][: model.mesh_vertnum[index]]
    faces = model.mesh_face[model.mesh_faceadr[index] :][: model.mesh_facenum[index]]
    # Vertices of a coarse mesh lie on each other, and fewer of them are more often in the cache.
    points, corners = np.unique(vertices[faces.ravel()], axis=0, return_inverse=True)
    return wp.Mesh(
        wp.array(points, dtype=wp.vec3), wp.array(corners.ravel(), dtype=int), bvh_constructor="sah"
    )


def _mean_colour(model: mujoco.MjModel, material: int) -> np.ndarray:
    """(3,) what a material's colour texture is at a distance; white where there is none."""
    texture = (
        model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB] if material >= 0 else -1
    )
    return np.ones(3) if texture < 0 else _mean_of_texture(model, texture)


def _sky(model: mujoco.MjModel) -> np.ndarray:
    """(3,) the mean colour of a model's sky; black where it has none."""
    skies = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    return _mean_of_texture(model, skies[0]) if len(skies) else np.zeros(3)


def _mean_of_texture(model: mujoco.MjModel, texture: int) -> np.ndarray:
    channels = model.tex_nchannel[texture]
    pixels = model.tex_data[model.tex_adr[texture] :][
        : model.tex_width[texture] * model.tex_height[texture] * channels
    ]
    return pixels.reshape(-1, channels)[:, :3].mean(axis=0) / 255


def _put_lights(wp: Any, kernels: Any, description: _SceneDescription) -> Any:
    """The lights on the device.

    MuJoCo's renderer lets point lights shine from the camera, straight ahead, and so does this.
    """
    of, kinds = description.lights, mujoco.mjtLightType
    directed, ahead = (kinds.mjLIGHT_SPOT, kinds.mjLIGHT_DIRECTIONAL), description.camera.forward
    return _struct(
        kernels.Lights,
        direction=wp.array([x.dir if x.type in directed else ahead for x in of], dtype=wp.vec3),
        diffuse=wp.array([light.diffuse for light in of], dtype=wp.vec3),
        specular=wp.array([light.specular for light in of], dtype=wp.vec3),
        ambient=wp.vec3(*sum((light.ambient for light in of), np.zeros(3))),
        spot=wp.array([light.type == kinds.mjLIGHT_SPOT for light in of], dtype=bool),
        position=wp.array([light.pos for light in of], dtype=wp.vec3),
        attenuation=wp.array([light.attenuation for light in of], dtype=wp.vec3),
        cutoff=wp.array([np.cos(np.radians(light.cutoff)) for light in of], dtype=float),
        exponent=wp.array([light.exponent for light in of], dtype=float),
    )
