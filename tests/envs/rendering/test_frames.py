"""Frames are true: each environment's equal those of a lone one in the same state, whatever else is
drawn or closed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.fake_envs import in_workers
from vis_rpg.envs.make import make_env
from vis_rpg.envs.rendering import frames as rendering
from vis_rpg.envs.tasks import mujoco_task
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.subprocess import SubprocVectorEnv
from vis_rpg.envs.vector.sync import SyncVectorEnv, VectorEnv
from vis_rpg.errors import UserError

STEPS = 3
SMALL = {"width": 64, "height": 64}


def actions(group: VectorEnv) -> np.ndarray:
    assert group.action_space.shape
    return (
        np.random.default_rng(0)
        .uniform(-1, 1, (STEPS, len(group), *group.action_space.shape))
        .astype(np.float32)
    )


def lone_frames(task: dict[str, Any], index: int, given: np.ndarray) -> np.ndarray:
    """What an environment by itself sees from the start of the group's environment `index`: (STEPS,
    2, 64, 64, 3)."""
    env = make_env(task, "pixels")
    env.reset(seed=index)
    seen = np.stack([env.step(action[index])[0] for action in given])
    env.close()
    del env
    gc.collect()
    return seen


@pytest.mark.parametrize("id", ["Pusher-v5", "Ant-v5", "Reacher-v5", "Walker2d-v5"])
def test_frames_of_a_group_are_those_of_a_lone_environment(id: str) -> None:
    task = {"name": "gym", "id": id, "kwargs": SMALL}
    [group] = make_vector_envs(task, "pixels", 5, [0])
    first, given = group.reset(), actions(group)
    assert (first.reshape(5, -1).std(1) > 5).all()
    group.step(given[0])
    for step, index in ((1, 0), (2, 4)):
        seen = group.step(given[step]).obs
        assert np.array_equal(
            seen[index], lone_frames(task, index, given)[step]
        )  # closed and freed before the next step
    group.close()


@pytest.mark.parametrize(
    "name",
    [
        "block_push",
        "ant_push",
        "cheetah_back",
        "humanoid",
        "maze",
        "metaworld_basketball",
        "adroit_hammer",
    ]
    + [pytest.param("cabinet_sparse", marks=pytest.mark.vulkan)],
)
def test_our_cameras_hold_beside_others_that_come_and_go(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"name": name}
    group = SyncVectorEnv(lambda _: make_env(task, "pixels"), 2, 0)
    group.reset()
    given = actions(group)
    seen = [group.step(action).obs for action in given[:-1]]
    other = make_env({"name": "gym", "id": "Reacher-v5"}, "pixels", 0)
    other.close()
    del other
    gc.collect()
    monkeypatch.setattr(mujoco_task, "_cameras", dict(mujoco_task._cameras))
    for key in [key for key in mujoco_task._cameras if key[0].startswith(name.partition("_")[0])]:
        del mujoco_task._cameras[key]  # the lone one has a camera of its own model
    lone = lone_frames(task, 1, given)
    seen.append(group.step(given[-1]).obs)
    assert np.array_equal(np.stack(seen)[:, 1], lone)
    group.close()


def test_textures_of_one_environment_do_not_show_in_another() -> None:
    def frame(colour: int | None, *others: Any) -> np.ndarray:
        env = gymnasium.make("Walker2d-v5", render_mode="rgb_array", **SMALL).unwrapped
        if colour is not None:
            env.model.tex_data[:] = colour
        env.reset(seed=0)
        first = env.render()
        for other in others:
            other.render()
        assert np.array_equal(env.render(), first)
        kept.append(env)
        return first

    kept: list[Any] = []
    rendering.mend_gymnasium_viewers()
    plain = frame(None)
    grey = frame(200, kept[0])
    assert not np.array_equal(plain, grey)
    assert np.array_equal(kept[0].render(), plain)
    assert np.array_equal(kept[1].render(), grey)
    for env in kept:
        env.close()


def test_frames_in_workers_are_those_of_one_process() -> None:
    task = in_workers("Reacher-v5", **SMALL) | {"id": "Reacher-v5"}
    [group] = make_vector_envs(task, "pixels", 3, [0])
    assert isinstance(group, SubprocVectorEnv)
    group.reset()
    given = actions(group)
    seen = np.stack([group.step(action).obs for action in given])
    group.close()
    for index in (0, 2):
        assert np.array_equal(seen[:, index], lone_frames(task, index, given))


EXIT = """
from vis_rpg.envs.make import make_env
gym = ({"name": "gym", "id": name} for name in ("Reacher-v5", "Pusher-v5"))
for task in (*gym, {"name": "block_push"}):
    env = make_env(task, "pixels", 0)
    env.render()
    globals()[env.unwrapped.__class__.__name__] = env
"""
REFUSED = """
from vis_rpg.envs.make import make_env
from vis_rpg.errors import UserError
print(make_env({"name": "block_push"}, "state", 0).step([0.0, 1.0])[0].shape)
for task in ({"name": "block_push"}, {"name": "gym", "id": "Reacher-v5"}):
    try:
        make_env(task, "pixels", 0)
    except UserError as error:
        print(error)
"""


def lines_of(script: str, **environment: str) -> list[str]:
    """What a script of its own process prints, which writes nothing to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_nothing_is_said_at_exit_after_pictures() -> None:
    assert lines_of(EXIT) == []


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"MUJOCO_GL": "nonsense"}, "MUJOCO_GL=nonsense: use egl, osmesa or glfw"),
        ({"MUJOCO_EGL_DEVICE_ID": "99"}, "got 99"),
    ],
    ids=["unknown back end", "no such GPU"],
)
def test_a_gl_that_cannot_draw_is_one_line_and_state_works(
    environment: dict[str, str], says: str
) -> None:
    shape, *refusals = lines_of(REFUSED, **environment)
    assert shape == "(6,)"
    assert len(refusals) == 2 and all(says in line for line in refusals)


@pytest.mark.parametrize(
    ("device", "visible", "given", "expected"),
    [
        ("cuda:2", None, None, "2"),
        ("cuda:0", None, None, None),  # MuJoCo's own choice
        ("cpu", None, None, None),
        ("cuda:1", "3,1", None, "1"),
        ("cuda", "3,1", None, "3"),
        ("cuda:2", None, "0", "0"),
        ("cuda:7", None, None, None),  # EGL lists four
        ("cuda:0", "GPU-5f2a", None, None),
    ],
)
def test_egl_renders_on_the_gpu_of_the_run(
    device: str,
    visible: str | None,
    given: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mujoco.egl import egl_ext

    monkeypatch.setattr(egl_ext, "eglQueryDevicesEXT", lambda: list(range(4)))
    for name, value in (("MUJOCO_EGL_DEVICE_ID", given), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    rendering.render_on(torch.device(device))
    assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == expected


def first_frame(name: str, **task: Any) -> tuple[np.ndarray, np.ndarray]:
    """A frame (64, 64, 3) and its labels (64, 64)."""
    env = make_env({"name": name, **task}, "pixels")
    obs, _ = env.reset(seed=0)
    return obs[-1].astype(float), env.get_wrapper_attr("segmentation")(whole=True)


@pytest.mark.parametrize("name", ["block_push", "metaworld_stick_pull", "adroit_hammer"])
def test_shadows_fall_beside_things_and_are_none_of_them(name: str) -> None:
    plain, labels = first_frame(name)
    shaded, same_labels = first_frame(name, shadows=True)
    again, _ = first_frame(name)
    assert np.array_equal(plain, again), "a camera with shadows leaves others as they are"
    assert np.array_equal(labels, same_labels)
    floor = (labels == 0) & (plain.sum(-1) > 60)
    ratio = shaded.sum(-1)[floor] / plain.sum(-1)[floor]
    lit = np.median(ratio)
    dark = ratio < 0.9 * lit
    assert 0.005 < dark.mean() < 0.5
    assert 0.3 < ratio[dark].mean() / lit < 0.9


def test_what_draws_no_shadows_says_so() -> None:
    for task in ({"name": "maze"}, {"name": "gym", "id": "Reacher-v5"}):
        with pytest.raises(UserError, match=r"^render\.shadows=true: task=\w+ is not drawn by"):
            make_env({**task, "shadows": True}, "pixels")
    with pytest.raises(UserError, match=r"render\.shadows need frames .* use render\.backend=egl"):
        make_vector_envs({"name": "block_push", "shadows": True}, "pixels", 1, [0], "warp")
