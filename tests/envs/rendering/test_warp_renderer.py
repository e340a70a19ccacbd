"""The batch renderer draws what MuJoCo's own renderer draws, for many environments at once."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vis_rpg.envs.make import make_env
from vis_rpg.envs.rendering.batch import BatchRenderer
from vis_rpg.envs.rendering.frames import Camera
from vis_rpg.envs.tasks.block_push import BlockPush
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.subprocess import SubprocVectorEnv
from vis_rpg.envs.vector.sync import SyncVectorEnv, VectorEnv
from vis_rpg.errors import UserError

import mujoco  # isort: skip  (after rendering, which chooses its GL back end)

pytest.importorskip("mujoco_warp", reason="the batch renderer is the optional extra [warp]")
from vis_rpg.envs.rendering import warp_renderer  # noqa: E402
from vis_rpg.envs.rendering.warp_renderer import WarpRenderer  # noqa: E402

# One of each kind of geom, one see-through, one invisible; a mesh whose bounding box is far from
# its centre of mass; three kinds of light.
SCENE = """
<mujoco>
  <visual><headlight ambient=".2 .2 .2" diffuse=".3 .3 .3" specular=".2 .2 .2"/></visual>
  <asset>
    <mesh name="spike" vertex="0 0 0  .3 0 0  0 .3 0  0 0 .9"/>
    <hfield name="hill" nrow="9" ncol="9" elevation="HILL" size=".3 .3 .4 .01"/>
    <material name="dull" rgba=".2 .6 .3 1" specular=".1" emission=".2"/>
  </asset>
  <worldbody>
    <light type="directional" dir="0.3 0.2 -1" diffuse=".4 .4 .4"/>
    <light type="spot" pos="0 0 3" dir="0 0 -1" cutoff="40" exponent="5" diffuse=".3 .2 .2" attenuation="1 0.1 0"/>
    <light type="point" pos="2 -2 2" diffuse=".2 .2 .3"/>
    <camera name="corner" pos="0 -3 2" xyaxes="1 0 0 0 .55 .83" fovy="50"/>
    <geom type="plane" size="0 0 1" rgba=".4 .4 .5 1"/>
    <geom type="hfield" hfield="hill" pos="-1.2 .6 .05" rgba=".8 .7 .2 1"/>
    <geom type="sphere" size="5" rgba="1 1 1 0"/>
    <body pos="-1 -.5 .3"><freejoint/><geom type="sphere" size=".3" rgba="1 .2 .2 1"/></body>
    <body pos="-.3 -.5 .4" euler="20 0 30"><freejoint/><geom type="capsule" size=".15 .25" rgba=".2 1 .2 1"/></body>
    <body pos=".4 -.5 .3" euler="0 30 0"><freejoint/><geom type="ellipsoid" size=".35 .2 .25" rgba=".2 .2 1 1"/></body>
    <body pos="1.1 -.5 .3" euler="40 20 0"><freejoint/><geom type="cylinder" size=".2 .3" material="dull"/></body>
    <body pos="-.3 .6 .3" euler="0 0 35"><freejoint/><geom type="box" size=".25 .3 .3" rgba="1 .6 .1 1"/></body>
    <body pos=".6 .6 .4"><freejoint/><geom type="mesh" mesh="spike" rgba=".7 .2 .8 1"/></body>
    <body pos="1.2 .4 .3"><freejoint/><geom type="box" size=".2 .05 .3" rgba=".2 .8 .8 .5"/></body>
    <body pos="0 0 1"><freejoint/><camera name="carried"/><geom type="sphere" size=".01" group="4"/></body>
  </worldbody>
</mujoco>
""".replace(
    "HILL",
    " ".join(f"{max(0, 3 - np.hypot(x, y)):.2f}" for y in range(-4, 5) for x in range(-4, 5)),
)


# A site, a half of which may be inside a geom, and sites that are not shown: of a hidden group, and
# without colour.
MARKED = """
<mujoco>
  <visual><headlight ambient=".4 .4 .4" diffuse=".4 .4 .4" specular=".2 .2 .2"/></visual>
  <worldbody>
    <camera name="corner" pos="0 -2 2" xyaxes="1 0 0 0 .7 .7"/>
    <geom type="plane" size="2 2 1" rgba=".4 .4 .5 1"/>
    <geom type="box" size=".3 .3 .3" pos=".4 0 .3" rgba=".8 .6 .2 1"/>
    <site name="hidden" size="1" group="4"/>
    <body><freejoint/><geom size=".01" mass="1"/><site name="marker" type="KIND" size=".2 .4 .25"/></body>
    <site name="clear" size="1" rgba="0 0 0 0"/>
  </worldbody>
</mujoco>
"""


# Still things, see-through ones among them, before, behind and around free ones; a body that hangs
# on the world and one of motion capture, which count as still and are moved all the same.
STAGE = """
<mujoco>
  <asset><mesh name="spike" vertex="0 0 0  .3 0 0  0 .3 0  0 0 .9"/></asset>
  <worldbody>
    <light type="directional" dir="0.3 0.2 -1" diffuse=".4 .4 .4"/>
    <camera name="front" pos="0 -3 2" xyaxes="1 0 0 0 .55 .83" fovy="50"/>
    <camera name="flat" pos="0 -3 2" xyaxes="1 0 0 0 .55 .83" fovy="3" projection="orthographic"/>
    <geom type="plane" size="0 0 1" rgba=".4 .4 .5 1"/>
    <geom type="box" size=".6 .02 .4" pos="-.5 -.8 .4" rgba=".2 .8 .8 .5"/>
    <geom type="mesh" mesh="spike" pos=".6 .3 .3" rgba=".7 .2 .8 1"/>
    <site name="before" type="box" size=".3 .02 .4" pos=".6 -.9 .4" rgba="1 1 0 .4"/>
    <site name="behind" type="sphere" size=".4" pos=".3 .9 .5" rgba="1 0 1 .6"/>
    <site name="solid" type="capsule" size=".1 .3" pos="-.6 .6 .4"/>
    <body name="post" pos="-.2 .5 .4"><geom type="box" size=".15 .15 .4" rgba=".9 .6 .1 1"/><site size=".3" rgba="0 1 0 .3"/></body>
    <body name="hung" mocap="true" pos="1 0 .5"><geom type="cylinder" size=".1 .2" rgba=".2 .9 .2 1"/></body>
    <body pos="0 0 .3"><freejoint/><geom type="sphere" size=".25" rgba="1 .2 .2 1"/><geom type="mesh" mesh="spike" rgba="0 0 1 .5"/></body>
    <body pos="0 0 .6"><freejoint/><geom type="ellipsoid" size=".35 .2 .15" rgba=".2 .2 1 1"/><site size=".3" rgba="1 0 0 .5"/></body>
  </worldbody>
</mujoco>
"""


def poses(model: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    mujoco.mj_forward(model, data)
    return np.concatenate([data.geom_xpos, data.site_xpos]), np.concatenate(
        [data.geom_xmat, data.site_xmat]
    )


def egl(model: Any, data: Any, view: str | Any) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the geoms of MuJoCo's own renderer."""
    mujoco.mj_forward(model, data)
    camera = Camera(model, view, 64, 0)
    return camera.render(data).astype(int), camera.geoms(data).copy()


def agree(model: Any, data: Any, view: str | Any, mean: float, textured: bool = False) -> None:
    """Silhouettes of geoms of 30 pixels and more overlap to 90 %, and colours differ by less than
    `mean` of 255 on average; with textures, whose mean colour alone is drawn, the average over a
    geom counts."""
    picture, shown = egl(model, data, view)
    xpos, xmat = poses(model, data)
    renderer = WarpRenderer(model, view, 64, 1, "cpu")
    drawn, cast = (
        renderer.render(xpos[None], xmat[None])[0],
        renderer.geoms(xpos[None], xmat[None])[0],
    )
    seen = [geom for geom in np.unique(shown) if geom >= 0 and (shown == geom).sum() >= 30]
    assert len(seen) >= 3
    for geom in seen:
        ours, theirs = cast == geom, shown == geom
        assert (ours & theirs).sum() > 0.9 * (ours | theirs).sum(), f"geom {geom}"
        if textured:
            assert (
                np.abs(
                    drawn[ours & theirs].mean(axis=0) - picture[ours & theirs].mean(axis=0)
                ).max()
                < mean
            ), f"geom {geom}"
    if not textured:
        assert np.abs(drawn - picture).mean() < mean


@pytest.fixture(scope="module")
def model() -> Any:
    return mujoco.MjModel.from_xml_string(SCENE)


def scattered(model: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses of `count` environments whose free bodies lie elsewhere."""
    rng, data, found = np.random.default_rng(0), mujoco.MjData(model), []
    for _ in range(count):
        mujoco.mj_resetData(model, data)
        data.qpos[:] += rng.uniform(-0.3, 0.3, model.nq)
        found.append(poses(model, data))
    return np.stack([xpos for xpos, _ in found]), np.stack([xmat for _, xmat in found])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WarpRenderer]:
    """Makes renderers that keep no still layer and expect every geom in every pixel."""

    class All(warp_renderer._SceneDescription):
        def __init__(self, *about: Any) -> None:
            super().__init__(*about)
            self.static_count = 0

        def projection(self, size: int) -> np.ndarray:
            return (
                np.diag([1.0, 1.0, 0.0, 0.0])[:3] + np.eye(4)[3] * 1e-6
            )  # reaches behind the camera

    def make(*about: Any, **more: Any) -> WarpRenderer:
        with monkeypatch.context() as patch:
            patch.setattr(warp_renderer, "_SceneDescription", All)
            return WarpRenderer(*about, **more)

    return make


def same(
    renderer: WarpRenderer, plain: WarpRenderer, xpos: np.ndarray, xmat: np.ndarray
) -> np.ndarray:
    """The pictures, after a check that both draw the same."""
    pictures = renderer.render(xpos, xmat)
    np.testing.assert_array_equal(pictures, plain.render(xpos, xmat))
    np.testing.assert_array_equal(renderer.geoms(xpos, xmat), plain.geoms(xpos, xmat))
    return pictures


@pytest.mark.parametrize("view", ["front", "flat", "free"])
def test_what_is_kept_of_still_things_changes_no_picture(
    plain: Callable[..., WarpRenderer], view: str
) -> None:
    model = mujoco.MjModel.from_xml_string(STAGE)
    camera: Any = view
    if view == "free":
        camera = mujoco.MjvCamera()
        camera.distance, camera.azimuth, camera.elevation, camera.lookat[:] = (
            1.0,
            60.0,
            -35.0,
            (0.0, 0.2, 0.3),
        )  # among the things
    renderer, reference = (
        WarpRenderer(model, camera, 64, 3, "cpu"),
        plain(model, camera, 64, 3, "cpu"),
    )
    rng, data, start = (
        np.random.default_rng(0),
        [mujoco.MjData(model) for _ in range(3)],
        model.body("post").pos.copy(),
    )
    post, seen = [start.copy() for _ in data], []
    for step in range(30):
        given = []
        for index, own in enumerate(data):
            mujoco.mj_resetData(model, own)
            own.qpos[:] += rng.uniform(-0.6, 0.6, model.nq)
            if step % 10 == 9:
                post[index] = start + rng.uniform(-0.4, 0.4, 3)
            if index == 2:
                own.mocap_pos[:] += rng.uniform(-0.5, 0.5, 3)  # in every step
            model.body("post").pos[:] = post[index]
            given.append(poses(model, own))
        xpos, xmat = (np.stack(part) for part in zip(*given, strict=True))
        seen.append(same(renderer, reference, xpos, xmat))
    assert len(np.unique(np.concatenate(seen), axis=0)) > 80


def test_a_still_thing_that_is_moved_is_seen_where_it_is() -> None:
    model = mujoco.MjModel.from_xml_string(STAGE)
    data, post, place = mujoco.MjData(model), model.body("post"), []
    renderer, given = WarpRenderer(model, "front", 64, 2, "cpu"), [poses(model, data)] * 2
    for post.pos[0] in (-0.2, -0.5):
        given[1] = poses(model, data)
        xpos, xmat = (np.stack(part) for part in zip(*given, strict=True))
        shown = renderer.geoms(xpos, xmat) == post.geomadr[0]
        place.append([np.argwhere(part)[:, 1].mean() for part in shown])
    assert place[0][0] == place[0][1] == place[1][0] > place[1][1] + 5


def test_a_scene_in_which_nothing_is_still_or_all_is(plain: Callable[..., WarpRenderer]) -> None:
    for joint in ("", "<freejoint/>"):
        model = mujoco.MjModel.from_xml_string(
            f"""<mujoco><worldbody><camera name="c" pos="0 0 3"/><body>{joint}<geom size=".6"/></body></worldbody></mujoco>"""
        )
        xpos, xmat = scattered(model, 2)
        assert same(
            WarpRenderer(model, "c", 64, 2, "cpu"), plain(model, "c", 64, 2, "cpu"), xpos, xmat
        ).any()


# MuJoCo lights the corners of large faces and blends between them: most of what is allowed here is
# the floor's.
def test_every_kind_of_geom_and_light_looks_as_mujoco_draws_it(model: Any) -> None:
    agree(model, mujoco.MjData(model), "corner", mean=8.0)


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [("sphere", 1.0), ("capsule", 0.4), ("ellipsoid", 1.0), ("cylinder", 0.4), ("box", 0.4)],
)
def test_sites_look_as_mujoco_draws_them_and_hide_no_geom(kind: str, alpha: float) -> None:
    model = mujoco.MjModel.from_xml_string(MARKED.replace("KIND", kind))
    data, marker, given = mujoco.MjData(model), model.site("marker"), []
    # In the first environment the site is tilted, in the second it lies across the picture and
    # reaches into the box.
    places = [(-0.5, -0.3, 0.4, 0.9, 0.3, 0.2, 0.0), (0.2, -0.3, 0.6, 1.0, 0.0, 1.0, 0.0)]
    for data.qpos[:] in places:
        given.append(poses(model, data))
    xpos, xmat = (np.stack(part) for part in zip(*given, strict=True))
    shown = []
    for opacity in (alpha, 0.0):
        marker.rgba[:] = 1.0, 0.1, 0.1, opacity
        camera, renderer = (
            Camera(model, "corner", 64, 0),
            WarpRenderer(model, "corner", 64, 2, "cpu"),
        )
        expected = []
        for data.qpos[:] in places:
            mujoco.mj_forward(model, data)
            expected.append(camera.render(data).astype(int))
        shown.append(
            (
                np.stack(expected),
                renderer.render(xpos, xmat).astype(int),
                renderer.geoms(xpos, xmat),
            )
        )
    (theirs, ours, geoms), (theirs_without, ours_without, geoms_without) = shown
    np.testing.assert_array_equal(geoms, geoms_without)
    for index in range(2):
        mine, other = (
            np.abs(a[index] - b[index]).max(-1) > 8
            for a, b in ((ours, ours_without), (theirs, theirs_without))
        )
        both = mine & other
        assert (
            both.sum() > 50 and both.sum() > 0.85 * (mine | other).sum()
        )  # of round things MuJoCo draws 12 slices
        assert np.abs(ours[index][both].mean(0) - theirs[index][both].mean(0)).max() < 8.0


def test_a_scene_without_light_is_black() -> None:
    dark = mujoco.MjModel.from_xml_string(
        """<mujoco><visual><headlight active="0"/></visual><worldbody><camera name="c" pos="0 0 3"/><geom size="1"/></worldbody></mujoco>
        """
    )
    xpos, xmat = scattered(dark, 1)
    renderer = WarpRenderer(dark, "c", 16, 1, "cpu")
    assert not renderer.render(xpos, xmat).any()
    assert (renderer.geoms(xpos, xmat) == 0).any()


@pytest.mark.parametrize("sky", [False, True])
def test_the_sky_is_seen_past_geoms_and_through_them(sky: bool) -> None:
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><asset><texture type="skybox" builtin="flat" rgb1=".2 .4 .6" rgb2=".2 .4 .6" width="8" height="8"/></asset><worldbody>
        <camera name="c" pos="0 0 3"/><geom size=".6" rgba="1 0 0 .5"/></worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    xpos, xmat = poses(model, data)
    picture = Camera(model, "c", 64, 0, sky=sky).render(data).astype(int)
    drawn = WarpRenderer(model, "c", 64, 1, "cpu", sky=sky).render(xpos[None], xmat[None])[0]
    assert np.abs(drawn[0, 0] - ([51, 102, 153] if sky else [0, 0, 0])).max() <= 1
    assert np.abs(drawn[0, 0] - picture[0, 0]).max() <= 1
    assert np.abs(drawn[32, 32] - picture[32, 32]).max() <= 8


def test_a_free_standing_camera_sees_what_mujoco_shows(model: Any) -> None:
    view = mujoco.MjvCamera()
    view.distance, view.azimuth, view.elevation, view.lookat[:] = 4.0, 60.0, -35.0, (0.0, 0.2, 0.2)
    agree(model, mujoco.MjData(model), view, mean=8.0)


def test_block_push_is_drawn_as_by_mujoco_in_each_environment() -> None:
    env, rng = BlockPush(obs="pixels"), np.random.default_rng(0)
    renderer = WarpRenderer(env.model, "top", 64, 6, "cpu")
    expected, xpos, xmat = [], [], []
    for seed in range(6):
        env.reset(seed=seed)
        for _ in range(10):
            frames = env.step(rng.uniform(-1, 1, 2))[0]
        expected.append(frames[-1])
        xpos.append(env.data.geom_xpos.copy())
        xmat.append(env.data.geom_xmat.copy())
    off = np.abs(
        renderer.render(np.stack(xpos), np.stack(xmat)) - np.stack(expected).astype(int)
    ).max(axis=-1)
    assert len(np.unique(expected, axis=0)) == 6
    # A pixel whose centre lies on an edge may fall to either side.
    assert (off > 1).mean() < 0.005


def test_the_thick_ant_is_drawn_as_by_mujoco() -> None:
    """Its limbs are thickened after the model was compiled."""
    frames = []
    for backend in ("egl", "warp"):
        [envs] = make_vector_envs({"name": "ant_push"}, "pixels", 3, [0], backend)
        frames.append(envs.reset()[:, -1].astype(int))
        envs.close()
    expected, drawn = frames
    ant = expected[..., 0] > expected[..., 2] + 100  # orange
    assert ant.sum() > 3 * 15
    assert (np.abs(drawn - expected).max(axis=-1)[ant] > 40).mean() < 0.01


def test_an_environment_is_drawn_alike_whatever_its_place_and_the_call(model: Any) -> None:
    xpos, xmat = scattered(model, 5)
    renderer = WarpRenderer(model, "corner", 64, 5, "cpu")
    first = renderer.render(xpos, xmat)
    assert len(np.unique(first, axis=0)) == 5
    order = [3, 0, 4, 1, 2]
    np.testing.assert_array_equal(renderer.render(xpos[order], xmat[order]), first[order])
    np.testing.assert_array_equal(renderer.render(xpos, xmat), first)
    alone = WarpRenderer(model, "corner", 64, 1, "cpu")
    np.testing.assert_array_equal(alone.render(xpos[2:3], xmat[2:3])[0], first[2])


def test_frames_are_the_callers_to_keep(model: Any) -> None:
    xpos, xmat = scattered(model, 2)
    renderer = WarpRenderer(model, "corner", 64, 2, "cpu")
    kept = renderer.render(xpos, xmat)
    before = kept.copy()
    np.testing.assert_array_equal(renderer.render(xpos[::-1], xmat[::-1]), before[::-1])
    np.testing.assert_array_equal(kept, before)


def test_the_models_own_settings_are_left_alone(model: Any) -> None:
    before = np.concatenate([model.geom_group, model.geom_rgba.ravel(), model.geom_margin])
    WarpRenderer(model, "corner", 32, 1, "cpu")
    np.testing.assert_array_equal(
        np.concatenate([model.geom_group, model.geom_rgba.ravel(), model.geom_margin]), before
    )


def test_nothing_is_printed(model: Any, capfd: pytest.CaptureFixture[str]) -> None:
    WarpRenderer(model, "corner", 16, 1, "cpu").render(*scattered(model, 1))
    assert capfd.readouterr().out == ""


def tracking(model: Any) -> Any:
    camera = mujoco.MjvCamera()
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
    return camera


@pytest.mark.parametrize("view", [lambda _: "carried", tracking])
def test_a_camera_that_moves_is_an_error_that_names_the_way_out(
    model: Any, view: Callable[[Any], Any]
) -> None:
    with pytest.raises(UserError, match="stands still.*render.backend=egl"):
        WarpRenderer(model, view(model), 64, 1, "cpu")


def test_soft_bodies_are_an_error_that_names_the_way_out() -> None:
    flag = """<mujoco><worldbody><camera name="c"/>
    <flexcomp name="f" type="grid" count="3 3 1" spacing=".1 .1 .1" dim="2" mass="1" radius=".01"/></worldbody></mujoco>"""
    with pytest.raises(UserError, match="soft bodies.*render.backend=egl"):
        WarpRenderer(mujoco.MjModel.from_xml_string(flag), "c", 64, 1, "cpu")


def test_without_mujoco_warp_the_error_names_the_extra(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(UserError, match=r"vis-rpg\[warp\].*render.backend=egl"):
        WarpRenderer(model, "corner", 64, 1)


def test_an_unknown_device_is_an_error_that_names_it(model: Any) -> None:
    with pytest.raises(UserError, match="device=cuda:99.*render.backend=egl"):
        WarpRenderer(model, "corner", 64, 1, "cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_what_the_cpu_draws(model: Any) -> None:
    xpos, xmat = scattered(model, 4)
    renderer = WarpRenderer(model, "corner", 64, 4, "cuda")
    assert renderer._frames.is_cuda
    off = np.abs(
        renderer.render(xpos, xmat)
        - WarpRenderer(model, "corner", 64, 4, "cpu").render(xpos, xmat).astype(int)
    ).max(axis=-1)
    assert (off > 2).mean() < 0.005


@pytest.mark.slow
def test_meta_worlds_basketball_agrees() -> None:
    metaworld = pytest.importorskip(
        "metaworld", reason="Meta-World is in the optional extra [robotics]"
    )
    benchmark = metaworld.MT1("basketball-v3", seed=0)
    env = benchmark.train_classes["basketball-v3"]()
    env.set_task(benchmark.train_tasks[0])
    env.reset()
    agree(env.model, env.data, "corner3", mean=15.0, textured=True)


@pytest.mark.slow
def test_adroits_door_agrees() -> None:
    import gymnasium

    robotics = pytest.importorskip(
        "gymnasium_robotics", reason="Adroit is in the optional extra [robotics]"
    )
    gymnasium.register_envs(robotics)
    env = gymnasium.make("AdroitHandDoor-v1").unwrapped
    env.reset(seed=0)
    view = mujoco.MjvCamera()
    view.distance, view.azimuth, view.elevation, view.lookat[:] = 1.5, 90.0, -25.0, (0.0, 0.0, 0.25)
    agree(env.model, env.data, view, mean=15.0, textured=True)


@pytest.mark.slow
def test_workers_that_ray_cast_see_what_is_cast_in_one_call() -> None:
    task = {"name": "block_push", "blocks": 1}
    env: Any = make_env(task, "state")
    shapes = len(env.get_wrapper_attr("geom_poses")()[0])
    renderer = WarpRenderer(env.unwrapped._render_model, env.unwrapped.view, 64, 3, "cpu")
    groups: list[VectorEnv] = [
        SubprocVectorEnv(env, task, "pixels", 3, 0, 2, cast=True),
        SyncVectorEnv(lambda _: make_env(task, "state"), 3, 0, BatchRenderer(renderer, 3, shapes)),
    ]
    try:
        np.testing.assert_array_equal(*[group.reset() for group in groups])
        rng = np.random.default_rng(0)
        for step in range(70):  # an episode has 60
            actions = rng.uniform(-1, 1, (3, 2))
            ours, theirs = (group.step(actions) for group in groups)
            np.testing.assert_array_equal(ours.obs, theirs.obs)
            assert ours.first_obs.keys() == theirs.first_obs.keys()
            for index, obs in ours.first_obs.items():
                np.testing.assert_array_equal(obs, theirs.first_obs[index])
            if step in (20, 40):
                states = [group.get_state() for group in groups]
                for group, state in zip(
                    groups, states[::-1], strict=True
                ):  # each goes on from what the other has saved
                    assert group.set_state(state) == []
    finally:
        for group in groups:
            group.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metaworld_basketball", "metaworld_stick_pull"])
def test_what_is_kept_of_meta_worlds_still_things_changes_no_picture(
    plain: Callable[..., WarpRenderer], name: str
) -> None:
    pytest.importorskip("metaworld", reason="Meta-World is in the optional extra [robotics]")
    envs: list[Any] = [make_env({"name": name}, "state").unwrapped for _ in range(2)]
    about = envs[0]._render_model, envs[0].view, 64, 2, "cpu", True
    renderer, reference, rng = WarpRenderer(*about), plain(*about), np.random.default_rng(0)
    for index, env in enumerate(envs):
        env.reset(seed=index)
    for step in range(120):
        xpos, xmat = (
            np.stack(part) for part in zip(*[env.geom_poses() for env in envs], strict=True)
        )
        same(renderer, reference, xpos, xmat)
        for env in envs:
            env.step(rng.uniform(-1, 1, 4))
        if step % 40 == 39:
            envs[step % 3 > 0].reset()


@pytest.mark.slow
def test_frames_of_workers_show_stick_pulls_goal_as_mujoco_does() -> None:
    pytest.importorskip("metaworld", reason="Meta-World is in the optional extra [robotics]")
    task, steps = (
        {"name": "metaworld_stick_pull"},
        np.random.default_rng(0).uniform(-1, 1, (5, 2, 4)).astype(np.float32),
    )
    [group] = make_vector_envs(task, "pixels", 2, [0], "warp")
    try:
        assert isinstance(group, SubprocVectorEnv) and group.frames_by == "warp"
        group.reset()
        seen = np.stack([group.step(actions).obs[:, -1] for actions in steps])
    finally:
        group.close()
    env: Any = make_env(task, "pixels").unwrapped
    goal, places = env._camera(64)._model.site("goal"), []
    for index in range(2):
        env.reset(seed=index)
        for actions, frames in zip(steps, seen, strict=True):
            picture = env.step(actions[index])[0][-1].astype(int)
            goal.rgba[3] = 0.0
            marked = np.abs(env._frame(64) - picture).max(-1) > 8
            goal.rgba[3] = 1.0
            assert marked.sum() >= 5
            assert (
                np.abs(frames[index][marked].mean(0) - picture[marked].mean(0)).max() < 20.0
            )  # green on brown
            assert np.abs(frames[index] - picture).mean() < 8.0  # most of it is the table's grain
        places.append(np.argwhere(marked).mean(0))
    assert np.linalg.norm(places[0] - places[1]) > 3.0


@pytest.mark.slow
def test_robot_tasks_change_no_looks_in_their_models() -> None:
    metaworld = pytest.importorskip(
        "metaworld", reason="Meta-World is in the optional extra [robotics]"
    )
    pytest.importorskip("gymnasium_robotics", reason="Adroit is in the optional extra [robotics]")
    tasks = [
        {"family": "metaworld", "name": name} for name in metaworld.env_dict.ALL_V3_ENVIRONMENTS
    ]
    # The batch renderer reads everything else once.
    moving = ("geom_pos", "geom_quat", "site_pos", "site_quat")
    for task in [*tasks, {"name": "adroit_door"}, {"name": "adroit_hammer"}]:
        env: Any = make_env(task, "state").unwrapped
        names = [
            name
            for name in dir(env.model)
            if name.startswith(("geom_", "site_", "mat_", "light_", "cam_")) and name not in moving
        ]
        env.action_space.seed(0)
        before = {name: np.array(getattr(env.model, name)) for name in names}
        for seed in range(2):
            env.reset(seed=seed)
            for _ in range(5):
                env.step(env.action_space.sample())
            for name in names:
                np.testing.assert_array_equal(
                    getattr(env.model, name), before[name], f"{task}: {name}"
                )
        env.close()
