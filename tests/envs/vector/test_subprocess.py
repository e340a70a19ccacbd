"""Environments in worker processes: the same results as in this one, deaths that are named and
survived, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_envs import in_workers
from vis_rpg.envs.make import make_env
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.subprocess import SubprocVectorEnv
from vis_rpg.envs.vector.sync import StepResult, SyncVectorEnv, VectorEnv
from vis_rpg.errors import RunStopped, UserError, WorkersFailed

ROOT = Path(__file__).parents[3]
PUSH = {"name": "block_push", "blocks": 1}
ENDING = in_workers("Faulty-v0", fault="ends", after=3)


@pytest.fixture
def workers() -> Iterator[Any]:
    """Makes groups in worker processes, which end with the test."""
    made: list[SubprocVectorEnv] = []

    def make(
        task: dict[str, Any], count: int = 3, number: int = 2, obs: str = "state", seed: int = 7
    ) -> SubprocVectorEnv:
        alive = (
            {**task, "kwargs": {}} if "kwargs" in task else task
        )  # of the same spaces, and does not die at once
        made.append(SubprocVectorEnv(make_env(alive, "state"), task, obs, count, seed, number))
        made[-1].ready()
        return made[-1]

    yield make
    for group in made:
        group.close()


def actions(count: int, steps: int, dims: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, count, dims)).astype(np.float32)


def assert_same(first: StepResult, second: StepResult) -> None:
    for part in ("obs", "reward", "terminated", "truncated", "success", "objects"):
        mine, other = getattr(first, part), getattr(second, part)
        assert mine.dtype == other.dtype and np.array_equal(mine, other), part
    assert first.first_obs.keys() == second.first_obs.keys()
    assert all(
        np.array_equal(first.first_obs[index], second.first_obs[index]) for index in first.first_obs
    )
    assert first.dropped == second.dropped == []


def kill(group: SubprocVectorEnv, number: int, how: int = signal.SIGKILL) -> None:
    pid = group.workers[number]._process.pid
    os.kill(pid, how)


# The same as in one process -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "obs", "dims"),
    [(PUSH, "state", 2), (PUSH, "pixels", 2), (ENDING, "state", 1)],
    ids=["state", "pixels", "ends"],
)
def test_workers_give_what_one_process_gives_bit_for_bit(
    workers, task: dict[str, Any], obs: str, dims: int
) -> None:
    group, local = workers(task, obs=obs), SyncVectorEnv(lambda _: make_env(task, obs), 3, 7)
    assert (group.observation_space, group.action_space) == (
        local.observation_space,
        local.action_space,
    )
    assert np.array_equal(group.reset(), local.reset())
    ended = 0
    for action in actions(3, 65, dims):
        mine, theirs = group.step(action), local.step(action)
        assert_same(mine, theirs)
        ended += len(mine.first_obs)
    assert ended >= 3


@pytest.mark.parametrize("obs", ["state", "pixels"])
@pytest.mark.parametrize("back", [False, True], ids=["into workers", "out of workers"])
def test_a_saved_state_goes_on_bit_for_bit_on_either_side(workers, obs: str, back: bool) -> None:
    first: VectorEnv = SyncVectorEnv(lambda _: make_env(PUSH, obs), 3, 7)
    second: VectorEnv = workers(PUSH, obs=obs, number=3)
    if back:
        first, second = second, first
    first.reset()
    for action in actions(3, 57, 2):
        first.step(action)
    assert second.set_state(first.get_state()) == []
    assert np.array_equal(np.stack(first.obs), np.stack(second.obs))
    for action in actions(3, 6, 2, seed=1):
        assert_same(first.step(action), second.step(action))


def test_an_environment_that_fails_at_its_first_reset_is_named() -> None:
    with pytest.raises(
        RunStopped,
        match=(
            "vis_rpg_tests/Faulty-v0, environment 0 .* raised OSError at reset: the "
            "simulator is gone"
        ),
    ):
        make_vector_envs(in_workers("Faulty-v0", fault="reset", after=-1), "state", 2, [0])


def test_an_observation_of_another_shape_stops_the_run_wherever_it_is_made(workers) -> None:
    task = in_workers("Faulty-v0", fault="shape", after=1)
    for group in (
        workers(task, count=1, number=1),
        SyncVectorEnv(lambda _: make_env(task, "state"), 1, 7),
    ):
        group.reset()
        group.step(np.zeros((1, 1)))
        with pytest.raises(
            RunStopped, match="Faulty-v0: an observation has 2 numbers, its space .* has 3"
        ):
            group.step(np.zeros((1, 1)))


def test_workers_render_on_the_gpu_that_this_process_was_told(
    workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(UserError, match="MUJOCO_EGL_DEVICE_ID .* got 99"):
        workers(PUSH, count=1, number=1, obs="pixels")


def test_what_cannot_be_saved_is_begun_anew_with_the_same_seeds_as_in_one_process(workers) -> None:
    group, local = workers(ENDING), SyncVectorEnv(lambda _: make_env(ENDING, "state"), 3, 7)
    for either in (group, local):
        either.reset()
        assert either.set_state(either.get_state()) == [0, 1, 2]
    assert np.array_equal(np.stack(group.obs), np.stack(local.obs))


def test_a_result_is_not_changed_by_later_steps(workers) -> None:
    group = workers(PUSH, obs="pixels")
    group.reset()
    result = group.step(actions(3, 1, 2)[0])
    kept = (result.obs.copy(), result.objects.copy())
    group.step(actions(3, 1, 2, seed=1)[0])
    assert np.array_equal(result.obs, kept[0]) and np.array_equal(result.objects, kept[1])


def test_the_task_says_whether_there_are_workers_and_every_seed_has_some() -> None:
    [local] = make_vector_envs(PUSH, "state", 2, [0])
    groups = make_vector_envs(ENDING, "state", 2, [0, 1])
    assert isinstance(local, SyncVectorEnv) and all(
        isinstance(group, SubprocVectorEnv) for group in groups
    )
    rows = [row for worker in groups[1].workers for row in worker.job.rows]  # type: ignore[attr-defined]
    assert rows == [0, 1]
    assert not np.array_equal(groups[0].reset(), groups[1].reset())
    for group in (local, *groups):
        group.close()


def test_a_worker_keeps_to_one_thread(workers) -> None:
    group = workers(PUSH)
    group.reset()
    group.step(actions(3, 1, 2)[0])
    for worker in group.workers:
        assert "\nThreads:\t1\n" in Path(f"/proc/{worker._process.pid}/status").read_text()


# Deaths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_named_and_restarted_and_the_others_go_on(
    workers, how: int, capfd: pytest.CaptureFixture[str]
) -> None:
    group, local = workers(PUSH), SyncVectorEnv(lambda _: make_env(PUSH, "state"), 3, 7)
    group.reset()
    local.reset()
    for action in actions(3, 3, 2):
        before = group.step(action)
        local.step(action)
    kill(group, 1, how)
    told, expected = group.step(action), local.step(action)
    line = capfd.readouterr().err
    assert (
        "vis_rpg/BlockPush-v0, worker 1 (environment 2 of seed 7) died: killed by "
        + signal.Signals(how).name
        in line
    )
    assert line.count("\n") == 1
    assert told.dropped == [2] and told.kept.tolist() == [0, 1] and list(told.first_obs) == [2]
    assert np.array_equal(told.obs[:2], expected.obs[:2])
    assert (
        np.array_equal(told.obs[2], before.obs[2]) and told.reward[2] == 0 and not told.truncated[2]
    )
    assert np.array_equal(group.obs[2], told.first_obs[2])
    after, expected = group.step(action), local.step(action)
    assert np.array_equal(after.obs[:2], expected.obs[:2]) and after.dropped == []
    assert [state["episodes"] for state in group.get_state()] == [1, 1, 2]


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("kill", "killed by SIGKILL"),
        ("exit", "exit code 3"),
        ("raise", "environment 0 raised ZeroDivisionError: contact solver at action ["),
    ],
)
def test_an_environment_that_takes_its_worker_along_is_survived(
    workers, tmp_path: Path, way: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    group = workers(in_workers("Mortal-v0", way=way, at=4, marks=str(tmp_path)), number=1)
    group.reset()
    dropped = [group.step(action).dropped for action in actions(3, 12, 1)]
    assert dropped == [[]] * 3 + [[0, 1, 2]] + [[]] * 8
    [line] = capfd.readouterr().err.splitlines()
    assert (
        f"worker 0 (environments 0 to 2 of seed 7) died: {says}" in line
        and "it is restarted" in line
    )


def test_a_worker_that_dies_at_a_reset_drops_only_what_was_running(workers, tmp_path: Path) -> None:
    group = workers(in_workers("Mortal-v0", way="reset", at=20, marks=str(tmp_path)), number=1)
    group.reset()
    results = [group.step(action) for action in actions(3, 21, 1)]
    assert (
        results[19].truncated.all()
        and results[19].dropped == []
        and list(results[19].first_obs) == [0, 1, 2]
    )
    assert results[20].dropped == [] and results[20].first_obs == {}


def test_the_third_death_in_a_row_stops_and_is_named(workers, tmp_path: Path) -> None:
    group = workers(
        in_workers("Mortal-v0", way="exit", at=1, deaths=3, marks=str(tmp_path)), number=1
    )
    group.reset()
    for _ in range(2):
        assert group.step(actions(3, 1, 1)[0]).dropped == [0, 1, 2]
    with pytest.raises(
        WorkersFailed,
        match=r"^vis_rpg_tests/Mortal-v0, worker 0 .* died 3 times in a row: exit code 3$",
    ):
        group.step(actions(3, 1, 1)[0])
    assert [state["env"] for state in group.get_state()] == [None] * 3


def test_good_steps_between_deaths_forgive_them(workers, tmp_path: Path) -> None:
    group = workers(
        in_workers("Mortal-v0", way="exit", at=2, deaths=5, marks=str(tmp_path)), number=1
    )
    group.reset()
    assert [len(group.step(action).dropped) for action in actions(3, 12, 1)] == [0, 3] * 5 + [0, 0]


def test_environments_that_cannot_be_made_stop_after_three_attempts(
    workers, tmp_path: Path
) -> None:
    with pytest.raises(WorkersFailed, match="died 3 times in a row: exit code 3"):
        workers(in_workers("Mortal-v0", way="making", deaths=9, marks=str(tmp_path)), number=1)


def test_what_the_user_must_mend_reaches_the_user_as_it_is(workers) -> None:
    with pytest.raises(UserError, match="^task.id=.*: obs=pixels needs a renderer: install one$"):
        workers(in_workers("Mortal-v0", way="user"))


def test_a_worker_that_is_dead_when_states_are_saved_is_dropped_when_they_are_restored(
    workers,
) -> None:
    group, other = workers(PUSH), workers(PUSH)
    group.reset()
    group.step(actions(3, 1, 2)[0])
    kill(group, 0)
    saved = group.get_state()
    assert [state["env"] is None for state in saved] == [True, True, False]
    assert group.step(actions(3, 1, 2)[0]).dropped == [0, 1]
    kill(other, 1)
    assert other.set_state(saved) == [0, 1, 2]


# Ends ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
import signal
import numpy as np
from vis_rpg.envs.vector.make import make_vector_envs
if __name__ == "__main__":
    # jobs in the background of a shell are born deaf to it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    task = {"name": "gym", "id": "Pendulum-v1", "processes": True}
    [group] = make_vector_envs(task, "state", 2, [0])
    group.reset()
    print(*(worker._process.pid for worker in group.workers), flush=True)
    while True:
        group.step(np.zeros((2, 1)))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_ctrl_c_is_the_parents_alone(
    tmp_path: Path, how: int
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    assert parent.stdout is not None
    try:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert pids and all(Path(f"/proc/{pid}").exists() for pid in pids)
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does, to all of them
        else:
            os.kill(parent.pid, how)
        _, errors = parent.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.kill()
    assert errors.count("Traceback") == (1 if how == signal.SIGINT else 0), errors


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
