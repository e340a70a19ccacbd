"""What is hidden of a state is 0, noise is what it is said to be, and a run resumes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runs import comparable, differences, trained
from tests.small import config
from vis_rpg.checks import check
from vis_rpg.envs.make import make_env, observed_task
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.errors import UserError
from vis_rpg.training.trainer import Trainer

WITH_VELOCITIES = {
    "ant_push": 14,
    "cheetah_back": 9,
    "half_cheetah": 9,
    "humanoid": 101,
    "metaworld_basketball": 18,
    "adroit_hammer": 6,
    "cabinet_sparse": 11,
}


def made(**seen: object) -> np.ndarray:
    env = make_env({"name": "cheetah_back", **seen}, "state", seed=0)
    return np.stack([env.reset(seed=1)[0], *(env.step(np.ones(6))[0] for _ in range(20))])


@pytest.mark.parametrize(("name", "count"), WITH_VELOCITIES.items())
def test_hidden_velocities_are_zero_and_the_rest_is_as_it_was(name: str, count: int) -> None:
    plain, partial = (
        make_env({"name": name, "hide": hide}, "state") for hide in ([], ["velocities"])
    )
    action = np.full(plain.action_space.shape, 0.3)
    for env in (plain, partial):
        env.reset(seed=3)
    states = [[env.step(action)[0] for _ in range(5)][-1] for env in (plain, partial)]
    hidden = states[0] != states[1]
    assert not states[1][hidden].any()
    spans = plain.get_wrapper_attr("task").velocities
    assert sum(end - begin for begin, end in spans) == count
    inside = np.concatenate([np.arange(*span) for span in spans])
    assert set(np.flatnonzero(hidden)) <= set(inside)
    assert np.count_nonzero(states[0][inside]) > count / 3


@pytest.mark.parametrize("name", ["cheetah_back", "half_cheetah", "ant_push"])
def test_declared_velocities_are_those_of_mujoco(name: str) -> None:
    env = make_env({"name": name}, "state")
    env.reset(seed=0)
    state = env.step(np.full(env.action_space.shape, 0.5))[0]
    [(begin, end)] = env.get_wrapper_attr("task").velocities
    robot = env.unwrapped.data.qvel[: end - begin]
    np.testing.assert_allclose(state[begin:end], robot, rtol=1e-5)


def test_numbers_are_hidden_by_index_also_of_a_gymnasium_task() -> None:
    env = make_env({"name": "gym", "id": "Pendulum-v1", "hide": [2]}, "state", seed=0)
    assert env.step(np.ones(1))[0][2] == 0.0
    walker = {"name": "gym", "id": "Hopper-v5", "hide": ["velocities"]}
    env = make_env(walker, "state", seed=0)
    assert not env.step(np.ones(3))[0][5:].any()


def test_noise_has_its_std_and_follows_from_the_seed() -> None:
    clean, noisy = made(), made(noise=0.5)
    assert np.std(noisy - clean) == pytest.approx(0.5, rel=0.1)
    assert np.array_equal(noisy, made(noise=0.5))


def test_what_cannot_be_hidden_is_told() -> None:
    with pytest.raises(UserError, match="does not say which numbers of its state are velocities"):
        make_env({"name": "maze", "hide": ["velocities"]}, "state")
    for name in (18, -1, "speed"):
        with pytest.raises(UserError, match="indices from 0 to 17"):
            make_env({"name": "cheetah_back", "hide": [name]}, "state")
    with pytest.raises(UserError, match="use obs=state"):
        check(config("obs=pixels", "obs.noise=0.1"))


def test_environments_in_workers_hide_the_same() -> None:
    task = observed_task(config("task=adroit_hammer", "obs.hide=[velocities]"))
    [envs] = make_vector_envs(task, "state", 2, [0])
    try:
        obs = envs.reset()
        obs = envs.step(np.ones((2, 26), np.float32)).obs
    finally:
        envs.close()
    assert not obs[:, 27:33].any()
    assert obs[:, :27].any()


@pytest.mark.parametrize("task", ["cheetah_back", "maze"])
def test_a_run_with_noise_and_a_memory_resumes_to_the_last_bit(tmp_path: Path, task: str) -> None:
    words = (f"task={task}", "obs.noise=0.1", "agent.encoder.memory=gru")
    Trainer(config(f"out={tmp_path}", *words, "steps=150")).run()
    Trainer(config(f"out={tmp_path}", *words, "resume=true")).run()
    assert differences(comparable(tmp_path), comparable(trained(*words))) == []
