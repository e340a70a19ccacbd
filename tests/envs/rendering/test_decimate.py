"""Coarse looks for small frames: the silhouettes and colours of the full meshes with fewer
triangles, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mujoco
import numpy as np
import pytest

from vis_rpg.envs.rendering.decimate import decimate_meshes
from vis_rpg.envs.rendering.frames import FRAME, VIDEO, Camera
from vis_rpg.envs.tasks.adroit import AdroitDoor, AdroitHammer
from vis_rpg.envs.tasks.metaworld import MetaWorld
from vis_rpg.envs.tasks.mujoco_task import geoms_under

pytestmark = pytest.mark.usefixtures("nothing_is_left_of_a_test")
MESH, PLANE = mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_PLANE
WORLDS = [partial(MetaWorld, name) for name in ("basketball-v3", "stick-pull-v3", "door-open-v3")]
FINGERTIPS = [f"{finger}distal" for finger in ("ff", "mf", "rf", "lf", "th")]
"""Adroit's bodies of them."""
REWRITTEN = frozenset(
    {"mesh_vert", "mesh_face", "mesh_facenum", "mesh_facenormal", "mesh_facetexcoord"}
)


def faces(model: Any, geoms: list[int]) -> int:
    """Triangles that these geoms are drawn with."""
    return int(model.mesh_facenum[model.geom_dataid[geoms][model.geom_type[geoms] == MESH]].sum())


def arrays(model: Any) -> dict[str, np.ndarray]:
    """A copy of all that the model holds."""
    return {
        name: value.copy()
        for name in dir(model)
        if isinstance(value := getattr(model, name), np.ndarray)
    }


def same(
    one: dict[str, np.ndarray], two: dict[str, np.ndarray], but: frozenset[str] = frozenset()
) -> bool:
    """Bit for bit; some of MuJoCo's numbers are NaN."""
    return all(one[name].tobytes() == two[name].tobytes() for name in one if name not in but)


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return (a & b).sum() / (a | b).sum()


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("make", [AdroitDoor, AdroitHammer, *WORLDS])
def test_frames_look_like_those_of_the_full_meshes(make: Callable[..., Any]) -> None:
    env, rng = make(obs="pixels"), np.random.default_rng(0)
    full, small = Camera(env._render_model, env.view, FRAME, 0, sky=env.sky), env._camera(FRAME)
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    for seed in range(4):
        env.reset(seed=seed)
        drift = rng.uniform(
            -1, 1, env.action_space.shape
        )  # away from the start, elsewhere in each episode
        for step in range(41):
            env.advance((drift + rng.uniform(-1, 1, drift.shape)) / 2)
            if step % 10 == 0:
                assert (
                    np.abs(full.render(env.data).astype(int) - small.render(env.data)).mean() < 1.5
                )
                shown.append((full.geoms(env.data), small.geoms(env.data)))
    true, ours = (np.stack(part) for part in zip(*shown, strict=True))
    for label in range(1, len(env.task.object_names) + 1):
        a, b = env.labels[true] == label, env.labels[ours] == label
        assert shared(a, b) > 0.95
        assert all(shared(x, y) > 0.9 for x, y in zip(a, b, strict=True) if x.sum() >= 25)
    if env.robot == "forearm":
        tips = [geom for body in FINGERTIPS for geom in geoms_under(env.model, body)]
        assert shared(np.isin(true, tips), np.isin(ours, tips)) > 0.85  # some 2 pixels each


@pytest.mark.parametrize(("make", "factor"), [(AdroitDoor, 3.5), (WORLDS[0], 2.4)])
def test_the_robot_alone_has_fewer_triangles_and_physics_is_untouched(
    make: Callable[..., Any], factor: float
) -> None:
    env = make()
    before, robot = arrays(env.model), geoms_under(env.model, env.robot)
    small = decimate_meshes(env.model, robot)
    assert faces(small, robot) * factor < faces(env.model, robot)
    others = [geom for geom in range(env.model.ngeom) if geom not in robot]
    assert faces(small, others) == faces(env.model, others)
    assert same(arrays(env.model), before)
    small.geom_size[small.geom_type == PLANE, 2] = env.model.geom_size[small.geom_type == PLANE, 2]
    assert same(arrays(small), before, REWRITTEN)
    env.reset(seed=0)
    seen = make(obs="pixels")
    seen.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (10, *env.action_space.shape)):
        env.step(action)
        seen.step(action)
    assert np.array_equal(env.data.qpos, seen.data.qpos)


def test_videos_show_the_full_meshes() -> None:
    env = AdroitDoor(obs="pixels")
    env.reset(seed=0)
    assert np.array_equal(
        env.render(), Camera(env._render_model, env.view, VIDEO, 4, sky=env.sky).render(env.data)
    )
    fewer = Camera(
        decimate_meshes(env._render_model, geoms_under(env.model, env.robot)),
        env.view,
        VIDEO,
        4,
        sky=env.sky,
    )
    assert not np.array_equal(env.render(), fewer.render(env.data))


def test_what_is_coarse_already_stays_as_it_is() -> None:
    cube = '<mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/>'
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><asset>{cube}</asset><worldbody><geom type="plane" size="0 0 .1"/>'
        '<geom type="mesh" mesh="m"/></worldbody></mujoco>'
    )
    assert same(arrays(decimate_meshes(model, [0, 1])), arrays(model))
