"""Coarser meshes for small frames.

A robot's meshes have tens of thousands of triangles, a frame has 4,096 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

CELL = 0.005
"""Side of the cubes, in metres, within which a mesh's vertices become one: a third to half of what
a pixel of our robot tasks shows. At 6 mm seams of the Sawyer arm begin to gape. The mesh's origin
is the middle of one, so that symmetric parts stay symmetric."""
SQUARES = 16
"""Most squares that a plane is drawn as, along x and along y."""


def decimate_meshes(model: mujoco.MjModel, geoms: Sequence[int]) -> mujoco.MjModel:
    """Copy a model, with coarser meshes and planes of fewer squares, to draw and not to simulate.

    By vertex clustering (Rossignac and Borrel 1993).

    Args:
        model: An MjModel.
        geoms: Ids of the geoms whose meshes become coarser.

    Returns:
        The copy; a mesh's remaining faces stand first in its block, all else is the model's.
    """
    drawn = copy(model)
    planes = drawn.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    extent = drawn.geom_size[planes]
    drawn.geom_size[planes, 2] = np.maximum(extent[:, 2], 2 * extent[:, :2].max(1) / SQUARES)
    meshes = drawn.geom_dataid[geoms][drawn.geom_type[geoms] == mujoco.mjtGeom.mjGEOM_MESH]
    for mesh in set(meshes.tolist()):
        _merge(drawn, mesh)
    return drawn


def _merge(model: mujoco.MjModel, mesh: int) -> None:
    """Merge the vertices in each cube into their mean; drop faces that become lines or points.

    Corners keep their normals, so that shading changes little.
    """
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
    _, cube, count = np.unique(
        np.round(vertices / CELL).astype(int), axis=0, return_inverse=True, return_counts=True
    )
    cube = cube.reshape(-1)  # NumPy 2.0 alone returns a column
    for axis in vertices.T:
        axis[:] = (np.bincount(cube, axis) / count)[cube]
    start, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    corners = cube[model.mesh_face[start : start + faces]]  # (faces, 3)
    kept = np.flatnonzero((corners != np.roll(corners, 1, axis=1)).all(1))
    for block in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
        block[start : start + len(kept)] = block[start + kept]
    model.mesh_facenum[mesh] = len(kept)
