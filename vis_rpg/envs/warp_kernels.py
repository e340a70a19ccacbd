"""The device half of the batch renderer: where in the picture geoms can be, and threads that cast and shade some pixels each."""

# What follows is compiled by Warp: its types are its own, and float(1.0) is a variable where 1.0 is a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

import warp as wp
from mujoco_warp._src.ray import ray_geom, ray_mesh_with_bvh

wp.set_module_options({"enable_backward": False})

LAYERS = wp.constant(8)
"""Surfaces that one ray may pass, front and back ones: those of three transparent geoms or sites, say, and what is behind them."""
BEHIND = wp.constant(1e-4)
"""How far behind a transparent surface the ray goes on, in metres."""
NOTHING = wp.constant(1e10)
"""The distance of what a ray does not meet."""
MARGIN = wp.constant(0.05)
"""By how much the rectangle around a geom is larger than the geom, in pixels, for the sake of rounding."""


@wp.struct
class Geoms:
    """What a model's geoms, and its sites after them, look like; the same in every environment. G of both, V of them visible, M meshes."""

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
class Lens:
    """Where a point x is seen: in column c / d of row r / d, of which the first one's middle is 0, where (c, r, d) = turn x + shift; and
    the rays of the P pixels."""

    side: int  # of a picture, in pixels
    turn: wp.mat33
    shift: wp.vec3
    starts: wp.array(dtype=wp.vec3)  # (P,)
    rays: wp.array(dtype=wp.vec3)  # (P,) unit vectors


@wp.struct
class Still:
    """What N environments look like without their moving geoms, and where the others were when that was drawn."""

    xpos: wp.array2d(dtype=wp.vec3)  # (N, V)
    xmat: wp.array2d(dtype=wp.mat33)  # (N, V)
    stale: wp.array(dtype=int)  # (N,) 1 where one of them is elsewhere now, else 0
    frames: wp.array3d(dtype=wp.uint8)  # (N, P, 3)
    shown: wp.array2d(dtype=int)  # (N, P)
    distance: wp.array2d(dtype=float)  # (N, P) of the only surface in the ray's way, NOTHING without one, -1 where there may be more


@wp.kernel
def place(
    geoms: Geoms,
    lens: Lens,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    still: Still,
    rects: wp.array2d(dtype=wp.vec4i),
) -> None:
    """Where in the picture each visible geom of each environment can be: rects (N, V) first column and row, last column and row. Marks the
    environments whose still geoms are not where they were."""
    world, index = wp.tid()
    geom = geoms.visible[index]
    position = xpos[world, geom]
    turn = xmat[world, geom]
    if index < geoms.moving and not (still.xpos[world, index] == position and still.xmat[world, index] == turn):
        still.xpos[world, index] = position
        still.xmat[world, index] = turn
        still.stale[world] = 1
    half = geoms.half[geom]
    low = wp.vec2(1e6, 1e6)
    high = -low
    behind = int(0)
    for corner in range(8):
        away = wp.vec3(float(corner % 2 * 2 - 1) * half[0], float(corner // 2 % 2 * 2 - 1) * half[1], float(corner // 4 * 2 - 1) * half[2])
        point = lens.turn @ (position + turn @ (geoms.centre[geom] + away)) + lens.shift
        if point[2] <= 0.0:
            behind += 1
        if point[2] > 1e-3:
            seen = wp.vec2(point[0], point[1]) / point[2]
            low = wp.min(low, seen)
            high = wp.max(high, seen)
        else:  # it reaches behind the camera
            low = wp.vec2(-1e6, -1e6)
            high = -low
    if behind == 8:
        high = wp.vec2(-1e6, -1e6)
    end = float(lens.side)
    rects[world, index] = wp.vec4i(
        int(wp.ceil(wp.clamp(low[0] - MARGIN, 0.0, end))),
        int(wp.ceil(wp.clamp(low[1] - MARGIN, 0.0, end))),
        int(wp.floor(wp.clamp(high[0] + MARGIN, -1.0, end - 1.0))),
        int(wp.floor(wp.clamp(high[1] + MARGIN, -1.0, end - 1.0))),
    )


@wp.func
def shade(lights: Lights, rgba: wp.vec4, shine: wp.vec3, point: wp.vec3, normal: wp.vec3, to_eye: wp.vec3) -> wp.vec3:
    """Emission, ambient, diffuse and specular light as OpenGL's fixed functions add them, in [0, 1]."""
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
            cone = wp.where(along < lights.cutoff[i], 0.0, wp.pow(wp.max(along, 0.0), lights.exponent[i]))
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
    """A mesh's normal at a corner of a face, unless there is a sharp edge, as MuJoCo smoothes them."""
    return wp.where(wp.dot(corner, face) < 0.8, face, corner)


@wp.func
def byte(intensity: float) -> wp.uint8:
    """Of a colour in [0, 1]."""
    return wp.uint8(wp.min(intensity, 1.0) * 255.0 + 0.5)


@wp.func
def cast(
    geoms: Geoms,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    rects: wp.array2d(dtype=wp.vec4i),
    world: int,
    row: int,
    column: int,
    begin: int,
    end: int,
    origin: wp.vec3,
    ray: wp.vec3,
    limit: float,
):
    """The first surface nearer than `limit` that a pixel's ray meets among the visible geoms from `begin` to `end`: geom or -1, distance,
    normal, and of a mesh the face and the weights of its first two corners."""
    geom = int(-1)
    distance = float(limit)
    normal = wp.vec3(0.0, 0.0, 0.0)
    face = int(-1)
    u = float(0.0)
    v = float(0.0)
    for index in range(begin, end):
        rect = rects[world, index]
        if rect[0] <= column and column <= rect[2] and rect[1] <= row and row <= rect[3]:
            other = geoms.visible[index]
            position = xpos[world, other]
            turn = xmat[world, other]
            if geoms.surface[other] != wp.uint64(0):
                d, n, a, b, f, _ = ray_mesh_with_bvh(geoms.surface, other, position, turn, origin, ray, distance)
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
    part: int,
    parts: int,
    span: int,
    geoms: Geoms,
    lights: Lights,
    lens: Lens,
    beyond: wp.vec3,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    rects: wp.array2d(dtype=wp.vec4i),
    still: Still,
    frames: wp.array3d(dtype=wp.uint8),
    shown: wp.array2d(dtype=int),
) -> None:
    """`span` neighbouring pixels in a row, of those rows whose number is `part` beyond a multiple of `parts`: frames (N, P, 3), shown (N,
    P) the nearest geom, sites aside, or -1. Where nothing is in the way they have the colour `beyond`.

    What an environment's still geoms look like is kept; where nothing that moves can be, or is nearer, that is shown.
    """
    world, offset, block = wp.tid()
    row = offset * parts + part
    if row >= lens.side:
        return
    first = lens.side
    last = int(-1)
    for index in range(geoms.moving, geoms.visible.shape[0]):
        rect = rects[world, index]
        if rect[1] <= row and row <= rect[3]:
            first = wp.min(first, rect[0])
            last = wp.max(last, rect[2])
    for column in range(block * span, wp.min(block * span + span, lens.side)):
        pixel = row * lens.side + column
        ray = lens.rays[pixel]
        passes = int(1)
        if first <= column and column <= last:
            passes = 2
        # First without what moves, where that has changed; then with it, where it can be.
        kept = bool(True)
        for step in range(1 - still.stale[world], passes):
            begin = int(0)
            end = geoms.moving
            limit = float(NOTHING)
            if step == 1:
                end = geoms.visible.shape[0]
                if still.distance[world, pixel] >= 0.0:
                    begin = geoms.moving
                    limit = still.distance[world, pixel]
            origin = lens.starts[pixel]
            colour = wp.vec3(0.0, 0.0, 0.0)
            passing = float(1.0)
            seen = int(-1)
            only = float(-1.0)
            for layer in range(LAYERS):
                geom, distance, normal, face, u, v = cast(geoms, xpos, xmat, rects, world, row, column, begin, end, origin, ray, limit)
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
                            smooth += bend(turn @ geoms.normals[start + corner[2]], normal) * (1.0 - u - v)
                            normal = wp.normalize(smooth)
                        rgba = geoms.rgba[geom]
                        lit = shade(lights, rgba, geoms.shine[geom], point, normal, -ray)
                        colour += wp.cw_mul(lit, geoms.tint[geom]) * (passing * rgba[3])
                        passing *= 1.0 - rgba[3]
                # The ray goes on behind a site, which hides no geom from `seen`.
                if geom < 0 or (passing < 0.01 and seen >= 0):
                    if layer == 0:
                        only = distance
                    break
                begin = int(0)
                limit = float(NOTHING)
            if step == 0:
                still.distance[world, pixel] = only
                still.shown[world, pixel] = seen
                for channel in range(3):
                    still.frames[world, pixel, channel] = byte(colour[channel])
            elif only < 0.0 or only != still.distance[world, pixel]:
                kept = bool(False)
                shown[world, pixel] = seen
                for channel in range(3):
                    frames[world, pixel, channel] = byte(colour[channel])
        if kept:
            shown[world, pixel] = still.shown[world, pixel]
            for channel in range(3):
                frames[world, pixel, channel] = still.frames[world, pixel, channel]
