"""The device half of the batch renderer: bound geoms on the screen, then cast and shade pixels."""

# What follows is compiled by Warp: its types are its own, and float(1.0) is a variable where 1.0 is
# a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

import warp as wp
from mujoco_warp._src.ray import ray_geom, ray_mesh_with_bvh

wp.set_module_options({"enable_backward": False})

vec3b = wp.types.vector(3, wp.uint8)
LAYERS = wp.constant(8)
"""Surfaces that one ray may pass, front and back ones: those of three transparent geoms or sites,
say, and what is behind them."""
BEHIND = wp.constant(1e-4)
"""How far behind a transparent surface the ray goes on, in metres."""
NOTHING = wp.constant(1e10)
"""The distance of what a ray does not meet."""
MARGIN = wp.constant(0.05)
"""By how much the place of a geom in the picture is larger than the geom, in pixels, for the sake
of rounding."""


@wp.struct
class Geoms:
    """What a model's geoms, and its sites after them, look like; the same in every environment.

    G of both, V of them visible, M meshes.
    """

    sites: int  # the first site
    moving: int  # the first of `visible` that has joints between it and the world
    type: wp.array(dtype=int)  # (G,) as MuJoCo numbers them
    surface: wp.array(dtype=wp.uint64)  # (G,) Warp's mesh, of meshes and height fields
    mesh: wp.array(dtype=int)  # (G,) the number of a mesh, -1 for other types
    size: wp.array(dtype=wp.vec3)  # (G,)
    centre: wp.array(dtype=wp.vec3)  # (G,) of the bounding box, in its own frame
    half: wp.array(dtype=wp.vec3)  # (G,) of the bounding box
    rgba: wp.array(dtype=wp.vec4)  # (G,) how they cover what is behind them
    tint: wp.array(dtype=wp.vec3)  # (G,) the texture's mean colour
    shine: wp.array(dtype=wp.vec3)  # (G,) emission, specular, shininess
    visible: wp.array(dtype=int)  # (V,) ids, those of still ones first
    normals: wp.array(dtype=wp.vec3)  # of mesh vertices
    normal_start: wp.array(dtype=int)  # (M,) a mesh's first normal
    corners: wp.array(dtype=wp.vec3i)  # normals of a face's corners
    corner_start: wp.array(dtype=int)  # (M,) a mesh's first face


@wp.struct
class Lights:
    """OpenGL's lights, in world coordinates. L lights."""

    direction: wp.array(dtype=wp.vec3)
    diffuse: wp.array(dtype=wp.vec3)
    specular: wp.array(dtype=wp.vec3)
    ambient: wp.vec3  # the sum over lights
    spot: wp.array(dtype=bool)  # (L,) whether it has what follows
    position: wp.array(dtype=wp.vec3)
    attenuation: wp.array(dtype=wp.vec3)  # constant, with the distance, with its square
    cutoff: wp.array(dtype=float)  # the cosine of the cone's half angle
    exponent: wp.array(dtype=float)


@wp.struct
class CameraIntrinsics:
    """Projection and rays of a camera.

    A point x is seen in column c / d of row r / d, of which the first one's middle is 0, where (c,
    r, d) = turn x + shift; rays are those of the P pixels.
    """

    side: int  # of a picture, in pixels
    turn: wp.mat33
    shift: wp.vec3
    starts: wp.array(dtype=wp.vec3)  # (P,)
    rays: wp.array(dtype=wp.vec3)  # (P,) unit vectors


@wp.struct
class StaticLayerCache:
    """What N environments look like without moving geoms, and where the static ones were then."""

    xpos: wp.array2d(dtype=wp.vec3)  # (N, V)
    xmat: wp.array2d(dtype=wp.mat33)  # (N, V)
    stale: wp.array(dtype=int)  # (N,) 1 where one of them is elsewhere now, else 0
    frames: wp.array2d(dtype=vec3b)  # (N, P)
    shown: wp.array2d(dtype=int)  # (N, P)
    distance: wp.array2d(
        dtype=float
        # (N, P) of the only surface in the ray's way, NOTHING without one, -1 where there may be
        # more
    )


@wp.func
def column_of(axes: wp.mat33, index: int) -> wp.vec3:
    """A column of a matrix."""
    return wp.vec3(axes[0, index], axes[1, index], axes[2, index])


@wp.struct
class ScreenSpans:
    """Where each of V visible geoms of N environments can be in the R rows of the picture."""

    columns: wp.array3d(dtype=wp.vec2i)  # (N, R, V) first and last column
    near: wp.array2d(dtype=float)  # (N, V) no point of it is less far ahead of the camera
    listed: wp.array3d(
        dtype=int
    )  # (N, R, V) places in `visible`: still ones, then moving ones, the nearest first
    counts: wp.array2d(dtype=wp.vec2i)  # (N, R) how many of these are still, and how many there are
    moving: wp.array2d(
        dtype=wp.vec2i
    )  # (N, R) first and last column where something that moves can be
    dirty: wp.array2d(
        dtype=wp.vec2i
    )  # (N, R) first and last column where it can be or was in the picture before


@wp.kernel
def place(
    geoms: Geoms,
    camera: CameraIntrinsics,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    layer: StaticLayerCache,
    spans: ScreenSpans,
) -> None:
    """The spans of each visible geom of each environment.

    Marks the environments whose still geoms are not where they were.

    A row's span is where it crosses the edges of the geom's bounding box, and what lies between.
    """
    world, index = wp.tid()
    geom = geoms.visible[index]
    position = xpos[world, geom]
    turn = xmat[world, geom]
    if index < geoms.moving:
        if layer.xpos[world, index] == position and layer.xmat[world, index] == turn:
            return
        layer.xpos[world, index] = position
        layer.xmat[world, index] = turn
        layer.stale[world] = 1
    nowhere = wp.vec2i(camera.side, -1)
    for row in range(camera.side):
        spans.columns[world, row, index] = nowhere
    half = geoms.half[geom]
    middle = camera.turn @ (position + turn @ geoms.centre[geom]) + camera.shift
    axes = camera.turn @ turn @ wp.diag(half)
    reach = wp.abs(axes[2, 0]) + wp.abs(axes[2, 1]) + wp.abs(axes[2, 2])
    spans.near[world, index] = middle[2] - reach
    if middle[2] + reach <= 0.0:  # behind the camera
        return
    if middle[2] - reach <= 1e-3:  # it reaches behind it
        for row in range(camera.side):
            spans.columns[world, row, index] = wp.vec2i(0, camera.side - 1)
        return
    end = float(camera.side)
    for edge in range(12):
        axis = edge // 4
        one = (axis + 1) % 3
        two = (axis + 2) % 3
        side = float(edge % 2 * 2 - 1) * column_of(axes, one) + float(
            edge // 2 % 2 * 2 - 1
        ) * column_of(axes, two)
        a = middle + side - column_of(axes, axis)
        b = middle + side + column_of(axes, axis)
        start = wp.vec2(a[0], a[1]) / a[2]
        along = wp.vec2(b[0], b[1]) / b[2] - start
        low = wp.min(start[1], start[1] + along[1])
        high = wp.max(start[1], start[1] + along[1])
        for row in range(
            int(wp.ceil(wp.clamp(low - MARGIN, 0.0, end))),
            int(wp.floor(wp.clamp(high + MARGIN, -1.0, end - 1.0))) + 1,
        ):
            share = float(0.0)
            if high - low > 1e-6:
                share = wp.clamp((float(row) - start[1]) / along[1], 0.0, 1.0)
            column = start[0] + share * along[0]
            other = column
            if high - low < 2.0 * MARGIN:  # nearly level
                column = start[0]
                other = start[0] + along[0]
            span = spans.columns[world, row, index]
            spans.columns[world, row, index] = wp.vec2i(
                wp.min(span[0], int(wp.ceil(wp.clamp(wp.min(column, other) - MARGIN, 0.0, end)))),
                wp.max(
                    span[1],
                    int(wp.floor(wp.clamp(wp.max(column, other) + MARGIN, -1.0, end - 1.0))),
                ),
            )


@wp.kernel
def enlist(
    geoms: Geoms, camera: CameraIntrinsics, layer: StaticLayerCache, spans: ScreenSpans
) -> None:
    """What is in each row, from its spans."""
    world, row = wp.tid()
    old = spans.moving[world, row]
    first = camera.side
    last = int(-1)
    begin = int(0)
    count = int(0)
    for index in range(geoms.visible.shape[0]):
        if index == geoms.moving:
            begin = count
        span = spans.columns[world, row, index]
        if span[0] <= span[1]:
            at = count
            near = spans.near[world, index]
            while at > begin and spans.near[world, spans.listed[world, row, at - 1]] > near:
                spans.listed[world, row, at] = spans.listed[world, row, at - 1]
                at -= 1
            spans.listed[world, row, at] = index
            count += 1
            if index >= geoms.moving:
                first = wp.min(first, span[0])
                last = wp.max(last, span[1])
    if geoms.moving == geoms.visible.shape[0]:
        begin = count
    spans.counts[world, row] = wp.vec2i(begin, count)
    spans.moving[world, row] = wp.vec2i(first, last)
    if layer.stale[world] == 1:
        spans.dirty[world, row] = wp.vec2i(0, camera.side - 1)
    else:
        spans.dirty[world, row] = wp.vec2i(wp.min(first, old[0]), wp.max(last, old[1]))


@wp.func
def shade(
    lights: Lights, rgba: wp.vec4, shine: wp.vec3, point: wp.vec3, normal: wp.vec3, to_eye: wp.vec3
) -> wp.vec3:
    """OpenGL's emission, ambient, diffuse and specular light, in [0, 1]."""
    base = wp.vec3(rgba[0], rgba[1], rgba[2])
    seen = base * shine[0] + wp.cw_mul(base, lights.ambient)
    for i in range(lights.spot.shape[0]):
        to_light = -lights.direction[i]
        strength = float(1.0)
        if lights.spot[i]:
            gap = lights.position[i] - point
            distance = wp.length(gap)
            to_light = gap / distance
            along = -wp.dot(to_light, lights.direction[i])
            fade = lights.attenuation[i]
            cone = wp.where(
                along < lights.cutoff[i], 0.0, wp.pow(wp.max(along, 0.0), lights.exponent[i])
            )
            strength = cone / (fade[0] + fade[1] * distance + fade[2] * distance * distance)
        facing = wp.dot(normal, to_light)
        if facing > 0.0:
            seen += wp.cw_mul(base, lights.diffuse[i]) * (strength * facing)
            glint = wp.max(wp.dot(normal, wp.normalize(to_light + to_eye)), 0.0)
            if shine[1] > 0.0 and glint > 0.0:
                seen += lights.specular[i] * (strength * shine[1] * wp.pow(glint, shine[2]))
    return wp.min(seen, wp.vec3(1.0, 1.0, 1.0))


@wp.func
def bend(corner: wp.vec3, face: wp.vec3) -> wp.vec3:
    """A mesh's normal at a corner of a face; the face's at a sharp edge, as in MuJoCo."""
    return wp.where(wp.dot(corner, face) < 0.8, face, corner)


@wp.func
def to_bytes(colour: wp.vec3) -> vec3b:
    """A colour in [0, 1] as a pixel."""
    bright = wp.min(colour, wp.vec3(1.0, 1.0, 1.0)) * 255.0
    return vec3b(wp.uint8(bright[0] + 0.5), wp.uint8(bright[1] + 0.5), wp.uint8(bright[2] + 0.5))


@wp.func
def cast(
    geoms: Geoms,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    spans: ScreenSpans,
    world: int,
    row: int,
    column: int,
    begin: int,
    end: int,
    origin: wp.vec3,
    ray: wp.vec3,
    limit: float,
):
    """Find the first surface nearer than `limit` that a pixel's ray meets.

    Among those listed in its row from `begin` to `end`. Returns geom or -1, distance, normal, and
    of a mesh the face and the weights of its first two corners.
    """
    geom = int(-1)
    distance = float(limit)
    normal = wp.vec3(0.0, 0.0, 0.0)
    face = int(-1)
    u = float(0.0)
    v = float(0.0)
    for at in range(begin, end):
        index = spans.listed[world, row, at]
        span = spans.columns[world, row, index]
        if span[0] <= column and column <= span[1]:
            other = geoms.visible[index]
            position = xpos[world, other]
            turn = xmat[world, other]
            if geoms.surface[other] != wp.uint64(0):
                d, n, a, b, f, _ = ray_mesh_with_bvh(
                    geoms.surface, other, position, turn, origin, ray, distance
                )
                if d >= 0.0 and d < distance:
                    geom = other
                    distance = d
                    normal = n
                    face = f
                    u = a
                    v = b
            else:
                d, n = ray_geom(position, turn, geoms.size[other], origin, ray, geoms.type[other])
                if d >= 0.0 and d < distance:
                    geom = other
                    distance = d
                    normal = n
    return geom, distance, normal, face, u, v


@wp.kernel
def draw(
    span: int,
    geoms: Geoms,
    lights: Lights,
    camera: CameraIntrinsics,
    beyond: wp.vec3,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    spans: ScreenSpans,
    layer: StaticLayerCache,
    frames: wp.array2d(dtype=vec3b),
    shown: wp.array2d(dtype=int),
) -> None:
    """Draw `span` neighbouring pixels in a row.

    frames (N, P) get the colours, shown (N, P) the nearest geom, sites aside, or -1. Where nothing
    is in the way the colour is `beyond`. An environment's static layer is kept, and shown where
    nothing that moves can be, or is nearer.
    """
    world, row, block = wp.tid()
    counts = spans.counts[world, row]
    moving = spans.moving[world, row]
    dirty = spans.dirty[world, row]
    for column in range(wp.max(block * span, dirty[0]), wp.min(block * span + span, dirty[1] + 1)):
        pixel = row * camera.side + column
        ray = camera.rays[pixel]
        passes = int(1)
        if moving[0] <= column and column <= moving[1]:
            passes = 2
        # First without what moves, where that has changed; then with it, where it can be.
        kept = bool(True)
        for step in range(1 - layer.stale[world], passes):
            begin = int(0)
            end = counts[0]
            limit = float(NOTHING)
            if step == 1:
                end = counts[1]
                if layer.distance[world, pixel] >= 0.0:
                    begin = counts[0]
                    limit = layer.distance[world, pixel]
            origin = camera.starts[pixel]
            colour = wp.vec3(0.0, 0.0, 0.0)
            passing = float(1.0)
            seen = int(-1)
            only = float(-1.0)
            for surface in range(LAYERS):
                geom, distance, normal, face, u, v = cast(
                    geoms, xpos, xmat, spans, world, row, column, begin, end, origin, ray, limit
                )
                if geom < 0:
                    colour += beyond * passing
                    passing = 0.0
                else:
                    point = origin + ray * distance
                    origin = point + ray * BEHIND
                    if wp.dot(normal, ray) <= 0.0:  # backs are not drawn
                        if seen < 0 and geom < geoms.sites:
                            seen = geom
                        mesh = geoms.mesh[geom]
                        if mesh >= 0:
                            corner = geoms.corners[geoms.corner_start[mesh] + face]
                            start = geoms.normal_start[mesh]
                            turn = xmat[world, geom]
                            smooth = bend(turn @ geoms.normals[start + corner[0]], normal) * u
                            smooth += bend(turn @ geoms.normals[start + corner[1]], normal) * v
                            smooth += bend(turn @ geoms.normals[start + corner[2]], normal) * (
                                1.0 - u - v
                            )
                            normal = wp.normalize(smooth)
                        rgba = geoms.rgba[geom]
                        lit = shade(lights, rgba, geoms.shine[geom], point, normal, -ray)
                        colour += wp.cw_mul(lit, geoms.tint[geom]) * (passing * rgba[3])
                        passing *= 1.0 - rgba[3]
                # The ray goes on behind a site, which hides no geom from `seen`.
                if geom < 0 or (passing < 0.01 and seen >= 0):
                    if surface == 0:
                        only = distance
                    break
                begin = int(0)
                limit = float(NOTHING)
            if step == 0:
                layer.distance[world, pixel] = only
                layer.shown[world, pixel] = seen
                layer.frames[world, pixel] = to_bytes(colour)
            elif only < 0.0 or only != layer.distance[world, pixel]:
                kept = bool(False)
                shown[world, pixel] = seen
                frames[world, pixel] = to_bytes(colour)
        if kept:
            shown[world, pixel] = layer.shown[world, pixel]
            frames[world, pixel] = layer.frames[world, pixel]
