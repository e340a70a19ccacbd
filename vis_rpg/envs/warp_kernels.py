"""The device half of the batch renderer: bounds of geoms for the ray-caster's tree, and one thread a pixel that casts and shades."""

# What follows is compiled by Warp: its types are its own, and float(1.0) is a variable where 1.0 is a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

import warp as wp
from mujoco_warp._src.render import cast_ray

wp.set_module_options({"enable_backward": False})

LAYERS = wp.constant(8)
"""Surfaces that one ray may pass, front and back ones: those of three transparent geoms or sites, say, and what is behind them."""
BEHIND = wp.constant(1e-4)
"""How far behind a transparent surface the ray goes on, in metres."""


@wp.struct
class Geoms:
    """What a model's geoms, and its sites after them, look like; the same in every environment. G of both, V of them visible, M meshes."""

    sites: int  # the first site
    type: wp.array(dtype=int)  # (G,) as MuJoCo numbers them
    dataid: wp.array(dtype=int)  # (G,) mesh or height field
    size: wp.array2d(dtype=wp.vec3)  # (1, G)
    centre: wp.array(dtype=wp.vec3)  # (G,) of the bounding box, in its own frame
    half: wp.array(dtype=wp.vec3)  # (G,) of the bounding box
    rgba: wp.array(dtype=wp.vec4)  # (G,) how they cover what is behind them
    tint: wp.array(dtype=wp.vec3)  # (G,) the texture's mean colour
    shine: wp.array(dtype=wp.vec3)  # (G,) emission, specular, shininess
    visible: wp.array(dtype=int)  # (V,) ids
    meshes: wp.array(dtype=wp.uint64)  # (M,)
    hfields: wp.array(dtype=wp.uint64)
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


@wp.kernel
def bounds(
    geoms: Geoms,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    group: wp.array(dtype=int),
) -> None:
    """The box around each visible geom of each environment: (N V,) lower and upper corners; the environment is its group."""
    world, index = wp.tid()
    geom = geoms.visible[index]
    row = world * geoms.visible.shape[0] + index
    turn = xmat[world, geom]
    half = geoms.half[geom]
    centre = xpos[world, geom] + turn @ geoms.centre[geom]
    reach = wp.vec3(
        wp.abs(turn[0, 0]) * half[0] + wp.abs(turn[0, 1]) * half[1] + wp.abs(turn[0, 2]) * half[2],
        wp.abs(turn[1, 0]) * half[0] + wp.abs(turn[1, 1]) * half[1] + wp.abs(turn[1, 2]) * half[2],
        wp.abs(turn[2, 0]) * half[0] + wp.abs(turn[2, 1]) * half[1] + wp.abs(turn[2, 2]) * half[2],
    )
    lower[row] = centre - reach
    upper[row] = centre + reach
    group[row] = world


@wp.kernel
def roots(tree: wp.uint64, root: wp.array(dtype=int)) -> None:
    """Where each environment's part of the tree starts: (N,)."""
    world = wp.tid()
    root[world] = wp.bvh_get_group_root(tree, world)


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


@wp.kernel
def draw(
    first: int,
    geoms: Geoms,
    lights: Lights,
    beyond: wp.vec3,
    xpos: wp.array2d(dtype=wp.vec3),
    xmat: wp.array2d(dtype=wp.mat33),
    tree: wp.uint64,
    root: wp.array(dtype=int),
    starts: wp.array(dtype=wp.vec3),
    rays: wp.array(dtype=wp.vec3),
    frames: wp.array3d(dtype=wp.uint8),
    shown: wp.array2d(dtype=int),
) -> None:
    """Pixels of the environments from `first` on: frames (N, pixels, 3), shown (N, pixels) the nearest geom, sites aside, or -1. Where
    nothing is in the way they have the colour `beyond`."""
    offset, pixel = wp.tid()
    world = first + offset
    ray = rays[pixel]
    origin = starts[pixel]
    colour = wp.vec3(0.0, 0.0, 0.0)
    passing = float(1.0)
    shown[world, pixel] = -1
    for _ in range(LAYERS):
        geom, distance, normal, u, v, face, mesh = cast_ray(
            geoms.type,
            geoms.dataid,
            geoms.size,
            xpos,
            xmat,
            tree,
            root[world],
            world,
            geoms.visible.shape[0],
            geoms.visible,
            geoms.meshes,
            geoms.hfields,
            origin,
            ray,
        )
        if geom < 0:
            colour += beyond * passing
            break
        point = origin + ray * distance
        origin = point + ray * BEHIND
        if wp.dot(normal, ray) <= 0.0:  # backs are not drawn
            if shown[world, pixel] < 0 and geom < geoms.sites:
                shown[world, pixel] = geom
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
            if passing < 0.01 and shown[world, pixel] >= 0:  # the ray goes on behind a site, which hides no geom from `shown`
                break
    for channel in range(3):
        frames[world, pixel, channel] = wp.uint8(wp.min(colour[channel], 1.0) * 255.0 + 0.5)
