"""Frames that come from outside the environments: what is seen is what each would have drawn, all
of it taken in one call."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from vis_rpg.envs.make import make_env
from vis_rpg.envs.rendering import batch as pictures
from vis_rpg.envs.rendering.batch import BatchRenderer, choose_renderer
from vis_rpg.envs.rendering.frames import FRAME, Camera
from vis_rpg.envs.tasks.block_push import load_model
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.subprocess import SubprocVectorEnv
from vis_rpg.envs.vector.sync import SyncVectorEnv, VectorEnv, step_vector_envs
from vis_rpg.errors import UserError

PUSH = {"name": "block_push", "blocks": 1}


class FromPoses:
    """Draws with EGL what the poses say, as the batch ray-caster does, and counts its calls."""

    def __init__(self, model: Any, view: Any, size: int, count: int, sky: bool = False) -> None:
        self.camera, self.data, self.count, self.calls = (
            Camera(model, view, size, samples=0, sky=sky),
            mujoco.MjData(model),
            count,
            0,
        )
        mujoco.mj_forward(model, self.data)  # lights and the camera stand still

    def render(self, positions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        assert len(positions) == len(rotations) == self.count
        self.calls += 1
        frames = []
        for place, turn in zip(positions, rotations, strict=True):
            geoms = len(self.data.geom_xpos)
            self.data.geom_xpos[:], self.data.site_xpos[:] = place[:geoms], place[geoms:]
            self.data.geom_xmat[:], self.data.site_xmat[:] = turn[:geoms], turn[geoms:]
            frames.append(self.camera.render(self.data))
        return np.stack(frames)


@pytest.fixture
def warp(monkeypatch: pytest.MonkeyPatch) -> list[FromPoses]:
    """A stand-in for the optional ray-caster; those that were made."""
    made: list[FromPoses] = []

    def make(*about: Any, sky: bool) -> FromPoses:
        made.append(FromPoses(*about, sky))
        return made[-1]

    monkeypatch.setitem(
        sys.modules, "vis_rpg.envs.rendering.warp_renderer", SimpleNamespace(WarpRenderer=make)
    )  # type: ignore[arg-type]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: True if name == "mujoco_warp" else found(name)
    )
    return made


def drawn(seed: int, count: int = 3) -> SyncVectorEnv:
    return SyncVectorEnv(lambda _: make_env(PUSH, "pixels"), count, seed)


def assert_same_walk(seen: VectorEnv, own: VectorEnv, steps: int = 65, reset: bool = True) -> None:
    if reset:
        assert np.array_equal(seen.reset(), own.reset())
    for action in np.random.default_rng(0).uniform(-1, 1, (steps, len(own), 2)):
        mine, theirs = seen.step(action), own.step(action)
        for part in ("obs", "reward", "truncated", "objects"):
            assert np.array_equal(getattr(mine, part), getattr(theirs, part)), part
        assert mine.first_obs.keys() == theirs.first_obs.keys()
        assert all(
            np.array_equal(mine.first_obs[index], theirs.first_obs[index])
            for index in mine.first_obs
        )


def test_frames_from_outside_are_those_that_each_environment_draws(warp: list[FromPoses]) -> None:
    [group] = make_vector_envs(PUSH, "pixels", 3, [0], "warp")
    own = drawn(0)
    assert group.observation_space == own.observation_space
    assert_same_walk(group, own)


def test_frames_of_workers_are_taken_here_from_the_poses_they_pass(warp: list[FromPoses]) -> None:
    renderer = FromPoses(load_model(1), "top", 64, 3)
    env = make_env(PUSH, "state")
    group = SubprocVectorEnv(
        env,
        PUSH,
        "state",
        3,
        0,
        2,
        BatchRenderer(renderer, 3, len(env.get_wrapper_attr("geom_poses")()[0])),
    )
    assert_same_walk(group, drawn(0))
    group.close()


def test_all_seeds_are_pictured_in_one_call(warp: list[FromPoses]) -> None:
    groups = make_vector_envs(PUSH, "pixels", 2, [0, 1, 2], "warp")
    [renderer] = warp
    assert renderer.count == 6
    own = [drawn(seed, 2) for seed in range(3)]
    for group, alone in zip(groups, own, strict=True):
        assert np.array_equal(group.reset(), alone.reset())
    calls = renderer.calls
    actions = list(np.random.default_rng(1).uniform(-1, 1, (3, 2, 2)))
    for mine, theirs in zip(
        step_vector_envs(groups, actions), step_vector_envs(own, actions), strict=True
    ):
        assert np.array_equal(mine.obs, theirs.obs)  # type: ignore[union-attr]
    assert renderer.calls == calls + 1


@pytest.mark.parametrize("back", [False, True], ids=["to outside", "from outside"])
def test_a_saved_state_goes_on_with_the_other_backend(warp: list[FromPoses], back: bool) -> None:
    first: VectorEnv = drawn(0)
    [second] = make_vector_envs(PUSH, "pixels", 3, [0], "warp")
    if back:
        first, second = second, first
    first.reset()
    for _ in range(3):
        first.step(np.ones((3, 2)))
    assert second.set_state(first.get_state()) == []
    assert_same_walk(second, first, 3, reset=False)


def test_the_backend_is_chosen_and_said(
    warp: list[FromPoses], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    push, maze = make_env(PUSH, "state"), make_env({"name": "maze"}, "state")
    assert choose_renderer(push, 1, "egl")[0] is None
    for cuda, chosen in ((True, "warp"), (False, "egl")):
        monkeypatch.setattr(pictures.torch.cuda, "is_available", lambda cuda=cuda: cuda)
        taken, name = choose_renderer(push, 1, "auto")
        assert (name, taken is not None) == (chosen, cuda)
        assert choose_renderer(maze, 1, "auto")[0] is None
    make_vector_envs(PUSH, "pixels", 1, [0], "auto")
    make_vector_envs(PUSH, "state", 1, [0], "auto")
    assert capfd.readouterr().err == "frames: render.backend=egl\n"
    with pytest.raises(
        UserError, match="^render.backend=warp: this task is no MuJoCo model of ours .*use auto$"
    ):
        choose_renderer(maze, 1, "warp")


def test_a_scene_that_the_ray_caster_does_not_draw_is_left_to_egl(
    warp: list[FromPoses], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*about: Any, **more: Any) -> None:
        raise UserError("no soft bodies")

    monkeypatch.setattr(sys.modules["vis_rpg.envs.rendering.warp_renderer"], "WarpRenderer", refuse)
    monkeypatch.setattr(pictures.torch.cuda, "is_available", lambda: True)
    assert choose_renderer(make_env(PUSH, "state"), 1, "auto") == (None, "egl (no soft bodies)")
    with pytest.raises(UserError, match="^no soft bodies$"):
        choose_renderer(make_env(PUSH, "state"), 1, "warp")


def test_a_robot_is_as_coarse_as_in_the_frames_of_its_environment(warp: list[FromPoses]) -> None:
    pytest.importorskip("metaworld", reason="Meta-World is in the optional extra [robotics]")
    env = make_env({"name": "metaworld_basketball"}, "pixels")
    assert choose_renderer(env, 1, "warp")[1] == "warp"
    own, outside = env.unwrapped._camera(FRAME)._model, warp[0].camera._model  # type: ignore[attr-defined]
    assert (
        own.mesh_facenum.tolist()
        == outside.mesh_facenum.tolist()
        < env.unwrapped.model.mesh_facenum.tolist()
    )  # type: ignore[attr-defined]


def test_an_anamorphic_picture_is_left_to_egl(
    warp: list[FromPoses], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures.torch.cuda, "is_available", lambda: True)
    back, why = (
        make_env({"name": "cheetah_back"}, "state"),
        "render.backend=warp renders no anamorphic pictures, as task=cheetah_back needs",
    )
    assert choose_renderer(back, 1, "auto") == (None, f"egl ({why}: use render.backend=egl)")
    with pytest.raises(UserError, match=f"^{why}: use render.backend=egl$"):
        choose_renderer(back, 1, "warp")
    assert warp == []


def test_a_backend_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"pip install 'vis-rpg\[warp\]', or use render.backend=egl"
    ):
        choose_renderer(make_env(PUSH, "state"), 1, "warp")
    assert choose_renderer(make_env(PUSH, "state"), 1, "auto")[0] is None
