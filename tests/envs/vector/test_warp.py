"""MuJoCo Warp's physics beside MuJoCo's own, on Warp's CPU device."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

import mujoco
import numpy as np
import pytest

from vis_rpg.envs.make import make_env
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import VectorEnv
from vis_rpg.errors import UserError

BLOCKS = {"name": "block_push", "blocks": 2}
WARP = {"physics": "warp"}


def made(task: dict[str, Any], obs: str = "state", count: int = 3) -> VectorEnv:
    [envs] = make_vector_envs(task, obs, count, [0], "egl")
    return envs


@pytest.mark.parametrize("task", [{"name": "maze"}, {"name": "half_cheetah"}])
def test_a_task_whose_physics_is_its_librarys_says_so(task: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"task={task['name']}.*task.physics=mujoco"):
        made(task | WARP)


def test_a_state_in_part_is_not_taken_for_the_task() -> None:
    with pytest.raises(UserError, match="with these settings"):
        made(BLOCKS | WARP | {"noise": 0.1})


def test_without_mujoco_warp_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(UserError, match=r"vis-rpg\[warp\].*task.physics=mujoco"):
        made(BLOCKS | WARP)


def test_pushing_and_settling_is_a_step() -> None:
    for task in (BLOCKS, {"name": "cheetah_back"}):
        one, other = (make_env(task, "state", seed=3) for _ in range(2))
        whole, parts = one.unwrapped, other.unwrapped
        for _ in range(5):
            action = one.action_space.sample()
            expected = whole.step(action)
            parts.push(action)  # type: ignore[attr-defined]
            mujoco.mj_step(parts.model, parts.data, parts.substeps)  # type: ignore[attr-defined]
            parts.settle()  # type: ignore[attr-defined]
            found = parts.outcome()  # type: ignore[attr-defined]
            assert np.array_equal(found[0], expected[0]) and found[1:4] == expected[1:4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "usual", "most"), [(BLOCKS, 1e-5, 5e-3), ({"name": "cheetah_back"}, 2e-4, 1e-2)]
)
def test_a_step_leads_where_mujocos_does(task: dict[str, Any], usual: float, most: float) -> None:
    pytest.importorskip("mujoco_warp", reason="MuJoCo Warp is the optional extra [warp]")
    rng = np.random.default_rng(0)
    with closing(made(task | WARP)) as envs, closing(made(task)) as exact:
        assert envs.stepped_in.startswith("Warp on ")
        for each in (envs, exact):
            each.reset()
        errors = []
        for _ in range(40):
            exact.set_state(envs.get_state())
            actions = rng.uniform(-1, 1, (3, *envs.action_space.shape))
            one, other = envs.step(actions), exact.step(actions)
            errors.append(np.abs(one.obs - other.obs).max())
            assert np.array_equal(one.success, other.success)
        assert np.median(errors) < usual and max(errors) < most
        assert max(errors) > 0  # that it is not MuJoCo that has stepped both


@pytest.mark.slow
def test_a_run_by_warp_continues_exactly() -> None:
    pytest.importorskip("mujoco_warp", reason="MuJoCo Warp is the optional extra [warp]")
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, 3, 6))
    for task in (BLOCKS, {"name": "cheetah_back"}):
        with closing(made(task | WARP)) as envs, closing(made(task | WARP)) as later:
            for each in (envs, later):
                each.reset()
            given = actions[..., : envs.action_space.shape[0]]
            for step in given[:6]:
                envs.step(step)
            later.set_state(envs.get_state())
            for step in given[6:]:
                assert np.array_equal(envs.step(step).obs, later.step(step).obs)
