"""Groups of environments: final observations, seeds, saved states, and environments that fail."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from vis_rpg.envs.make import make_env
from vis_rpg.envs.tasks.block_push import BlockPush
from vis_rpg.envs.tasks.task import Task
from vis_rpg.envs.vector.sync import StepResult, SyncVectorEnv, step_vector_envs
from vis_rpg.errors import RunStopped, UserError


class Counter(gymnasium.Env):
    """Observes (episode, step); episodes of `length` steps; goes wrong on request. It cannot be
    saved."""

    def __init__(self, length: int = 3, wrong: str = "", wrong_at: int = 2) -> None:
        self.task = Task("counter", ())
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.length, self.wrong, self.wrong_at = length, wrong, wrong_at
        self.episode = self.now = 0
        self.seeds: list[int | None] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if self.wrong == "user at reset":
            raise UserError("mend it")
        if self.wrong == "reset" and self.episode:
            raise OSError("no\nscene")
        self.seeds.append(seed)
        self.episode, self.now = self.episode + 1, 0
        bad = self.wrong == "first" and self.episode > 1
        return np.array([np.inf if bad else self.episode, 0], np.float32), {
            "success": False,
            "objects": np.zeros((0, 2)),
        }

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.now += 1
        wrong = self.wrong if self.now == self.wrong_at else ""
        if wrong == "raise":
            raise ZeroDivisionError("contact\nsolver")
        if wrong == "user":
            raise UserError("mend it")
        obs = np.array([self.episode, np.nan if wrong == "obs" else self.now], np.float32)
        info = {"success": self.now == self.length, "objects": np.zeros((0, 2))}
        return (
            obs,
            np.nan if wrong == "reward" else float(self.now),
            False,
            self.now >= self.length,
            info,
        )


def group_of(*envs: gymnasium.Env, seed: int = 0) -> SyncVectorEnv:
    return SyncVectorEnv(lambda index: envs[index], len(envs), seed)


def stopped(env: Counter, steps: int = 3) -> str:
    group = group_of(Counter(length=9), env, seed=5)
    group.reset()
    with pytest.raises(RunStopped) as error:
        for _ in range(steps):
            group.step(np.array([[0, 0], [0.25, -0.5]]))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_episode_gives_its_final_observation_and_the_next_first_one() -> None:
    group = group_of(Counter(length=2), Counter(length=3))
    assert group.reset().tolist() == [[1, 0], [1, 0]]
    steps = [group.step(np.zeros((2, 2))) for _ in range(3)]
    assert [step.obs.tolist() for step in steps] == [
        [[1, 1], [1, 1]],
        [[1, 2], [1, 2]],
        [[2, 1], [1, 3]],
    ]
    assert [step.truncated.tolist() for step in steps] == [
        [False, False],
        [True, False],
        [False, True],
    ]
    assert [{index: obs.tolist() for index, obs in step.first_obs.items()} for step in steps] == [
        {},
        {0: [2, 0]},
        {1: [2, 0]},
    ]
    assert [step.success.tolist() for step in steps] == [
        [False, False],
        [True, False],
        [False, True],
    ]
    assert np.stack(group.obs).tolist() == [[2, 1], [2, 0]]
    assert not any(step.terminated.any() for step in steps)


def test_only_the_first_reset_is_seeded() -> None:
    envs = [Counter(length=1), Counter(length=2)]
    group = group_of(*envs, seed=3)
    group.reset()
    group.step(np.zeros((2, 2)))
    group.reset()
    assert [env.seeds for env in envs] == [[3000, None, None], [3001, None]]


def test_shapes_of_a_step_of_a_real_task() -> None:
    group = SyncVectorEnv(
        lambda index: make_env({"name": "block_push", "blocks": 1}, "pixels"), 3, 0
    )
    assert group.reset().shape == (3, 2, 64, 64, 3)
    step = group.step(np.ones((3, 2)))
    assert (step.obs.shape, step.obs.dtype) == ((3, 2, 64, 64, 3), np.uint8)
    assert step.objects.shape == (3, 2, 2)
    assert {
        part.shape for part in (step.reward, step.terminated, step.truncated, step.success)
    } == {(3,)}
    assert group.task.name == "block_push"
    group.close()


def test_an_environment_that_raises_is_named_with_seed_and_action() -> None:
    line = stopped(Counter(wrong="raise"))
    for word in (
        "counter",
        "environment 1",
        "5001",
        "episode 1",
        "ZeroDivisionError",
        "contact solver",
        "[0.25, -0.5]",
    ):
        assert word in line


def test_a_reset_that_raises_is_named() -> None:
    line = stopped(Counter(wrong="reset"), steps=4)
    assert "OSError at reset: no scene" in line
    assert "environment 1" in line


@pytest.mark.parametrize(
    ("wrong", "quantity"), [("obs", "observation"), ("reward", "reward"), ("first", "observation")]
)
def test_what_is_not_finite_stops_the_run_and_is_named(wrong: str, quantity: str) -> None:
    line = stopped(Counter(wrong=wrong))
    assert line.startswith(f"{quantity} of counter, environment 1")
    assert "not finite" in line


def test_an_action_that_is_not_finite_never_reaches_an_environment() -> None:
    env = Counter()
    group = group_of(env)
    group.reset()
    with pytest.raises(RunStopped, match="^action of counter, environment 0"):
        group.step(np.array([[0.0, np.nan]]))
    assert env.now == 0


def test_an_error_that_is_the_users_passes_as_it_is() -> None:
    group = group_of(Counter(wrong="user", wrong_at=1))
    group.reset()
    with pytest.raises(UserError, match="^mend it$"):
        group.step(np.zeros((1, 2)))
    with pytest.raises(UserError, match="^mend it$"):
        group_of(Counter(wrong="user at reset")).reset()


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_a_restored_group_continues_bit_for_bit(obs: str) -> None:
    def make(index: int) -> gymnasium.Env:
        return make_env({"name": "block_push", "blocks": 1}, obs)

    rng = np.random.default_rng(0)
    group, other = SyncVectorEnv(make, 2, 0), SyncVectorEnv(make, 2, 0)
    group.reset()
    for _ in range(57):
        group.step(rng.uniform(-1, 1, (2, 2)))
    saved = group.get_state()
    assert other.set_state(saved) == []
    assert all(np.array_equal(a, b) for a, b in zip(group.obs, other.obs, strict=True))
    for _ in range(6):
        actions = rng.uniform(-1, 1, (2, 2))
        mine, theirs = group.step(actions), other.step(actions)
        assert all(
            np.array_equal(getattr(mine, part), getattr(theirs, part))
            for part in ("obs", "reward", "truncated", "objects")
        )
        assert mine.first_obs.keys() == theirs.first_obs.keys()
    assert [state["episodes"] for state in other.get_state()] == [2, 2]


def test_what_cannot_be_restored_is_dropped_begun_anew_and_said() -> None:
    class Unsaved(Counter):
        def get_state(self) -> dict[str, Any]:
            raise NotImplementedError

    group = group_of(Counter(), Unsaved())
    group.reset()
    group.step(np.zeros((2, 2)))
    saved = group.get_state()
    assert [state["env"] for state in saved] == [None, None]
    fresh = [[Counter(), Unsaved()] for _ in range(2)]
    resumed = [group_of(*envs) for envs in fresh]
    assert [again.set_state(saved) for again in resumed] == [[0, 1], [0, 1]]
    assert np.stack(resumed[0].obs).tolist() == [[1, 0], [1, 0]]
    seeds = [[env.seeds for env in envs] for envs in fresh]
    assert seeds[0] == seeds[1]  # resuming twice begins the same episodes
    assert seeds[0][0] != seeds[0][1]
    assert seeds[0][0] != [0]  # and not the very first one again


@pytest.mark.parametrize("threads_from", [2, 99])
def test_groups_that_step_together_do_what_each_does_alone_and_the_one_that_fails_says_why(
    threads_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> list[SyncVectorEnv]:
        return [
            SyncVectorEnv(lambda _: make_env({"name": "block_push", "blocks": 1}, "state"), 3, seed)
            for seed in range(2)
        ]

    alone = made()
    monkeypatch.setattr("vis_rpg.envs.vector.sync.cores", lambda: 2)
    monkeypatch.setattr(BlockPush, "threads_from", threads_from)
    together = made()
    for group in (*together, *alone):
        group.reset()
    for actions in np.random.default_rng(0).uniform(-1, 1, (62, 2, 3, 2)):
        for mine, group, action in zip(
            step_vector_envs(together, list(actions)), alone, actions, strict=True
        ):
            expected = group.step(action)
            assert isinstance(mine, StepResult)
            assert (
                np.array_equal(mine.obs, expected.obs)
                and mine.first_obs.keys() == expected.first_obs.keys()
            )
    failing: Any = together[0].envs[1]
    failing.advance = failing.step = lambda action: 1 / 0
    failed, result = step_vector_envs(together, [np.zeros((3, 2))] * 2)
    assert isinstance(result, StepResult) and isinstance(failed, RunStopped)
    assert (
        "environment 1 (seed 1, episode 2) raised ZeroDivisionError at action [0.0, 0.0]: "
        "division by zero" in str(failed)
    )


@pytest.mark.parametrize("number", [1, 2, 4])
def test_threads_give_what_one_gives_bit_for_bit(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vis_rpg.envs.vector.sync.cores", lambda: number)
    monkeypatch.setattr(BlockPush, "threads_from", 3)
    group = SyncVectorEnv(lambda _: make_env({"name": "block_push"}, "pixels"), 3, 0)
    loop = [make_env({"name": "block_push"}, "pixels") for _ in range(3)]
    assert group.stepped_in == {1: "one thread", 2: "2 threads", 4: "3 threads"}[number]
    first = [env.reset(seed=seed)[0] for seed, env in enumerate(loop)]
    assert np.array_equal(group.reset(), np.stack(first))
    for actions in np.random.default_rng(0).uniform(-1, 1, (20, 3, 2)).astype(np.float32):
        told = group.step(actions)
        assert np.array_equal(
            told.obs,
            np.stack([env.step(action)[0] for env, action in zip(loop, actions, strict=True)]),
        )
