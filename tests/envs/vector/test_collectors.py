"""Environments in Ray actors: the same as in this process, and none is lost with its machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.envs.vector.test_subprocess import actions, assert_same
from tests.fake_envs import in_workers
from tests.runs import comparable, differences
from vis_rpg.compose import compose
from vis_rpg.envs.make import make_env
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import SyncVectorEnv, VectorEnv
from vis_rpg.errors import UserError
from vis_rpg.training.trainer import Trainer

PUSH = {"name": "block_push", "blocks": 1}
ENDING = in_workers("Faulty-v0", fault="ends", after=3)
MEMORY = {"object_store_memory": 100_000_000}


lacking = pytest.mark.skipif(find_spec("ray") is None, reason="ray: pip install 'vis-rpg[ray]'")
slow = pytest.mark.slow  # a cluster takes half a minute


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two nodes beside the learner's, which has no processor for collectors."""
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **MEMORY})
    for _ in range(2):
        made.add_node(num_cpus=2, **MEMORY)
    ray.init(address=made.address)
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.pop("RAY_AUTH_MODE")
    if before is not None:
        os.environ["RAY_AUTH_MODE"] = before


@pytest.fixture
def collected(ray: Any) -> Iterator[Any]:
    made: list[VectorEnv] = []

    def make(task: dict[str, Any], obs: str = "state", collectors: int = 2) -> VectorEnv:
        made.extend(make_vector_envs(task, obs, 3, [7], collectors=collectors))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def home(collector: Any) -> str:
    """The node that a collector is on."""
    import ray

    where = collector._actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    return str(ray.get(where))


@lacking
@slow
@pytest.mark.parametrize(
    ("task", "obs", "dims"),
    [(PUSH, "state", 2), (PUSH, "pixels", 2), (ENDING, "state", 1)],
    ids=["state", "pixels", "ends"],
)
def test_collectors_give_what_one_process_gives_bit_for_bit(
    collected: Any, task: dict[str, Any], obs: str, dims: int
) -> None:
    envs = collected(task, obs)
    local = SyncVectorEnv(lambda _: make_env(task, obs), 3, 7)
    assert envs.stepped_in == "2 collectors on Ray"
    assert np.array_equal(envs.reset(), local.reset())
    for action in actions(3, 57, dims):
        assert_same(envs.step(action), local.step(action))
    again = collected(task, obs, collectors=1)
    assert again.set_state(envs.get_state()) == ([] if task is PUSH else [0, 1, 2])
    if task is PUSH:
        for action in actions(3, 6, dims, seed=1):
            assert_same(again.step(action), local.step(action))
    local.close()


@lacking
@slow
def test_a_run_is_the_same_wherever_its_environments_are(ray: Any, tmp_path: Path) -> None:
    def run(name: str, *words: str) -> dict[str, Any]:
        common = ["task=block_push", "preset=debug", "device=cpu", f"out={tmp_path / name}"]
        Trainer(compose([*common, *words])).run()
        return comparable(tmp_path / name)

    whole = run("here", "steps=200")
    run("there", "steps=100", "collectors=3")
    assert differences(whole, run("there", "steps=200", "collectors=2", "resume=true")) == []


@lacking
@slow
def test_more_collectors_than_processors_are_refused_in_one_line(collected: Any) -> None:
    with pytest.raises(UserError, match="^collectors=99: Ray's cluster has 4 processors, and each"):
        collected(PUSH, collectors=99)


@lacking
@slow
def test_a_lost_node_is_named_and_its_environments_go_on_elsewhere(
    collected: Any, ray: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    envs = collected(PUSH)
    local = SyncVectorEnv(lambda _: make_env(PUSH, "state"), 3, 7)
    envs.reset()
    local.reset()
    action = actions(3, 1, 2)[0]
    assert_same(envs.step(action), local.step(action))
    # the second collector is on the other node
    homes = [home(worker) for worker in envs.workers]
    assert homes[0] != homes[1]
    [lost] = [node for node in ray.worker_nodes if node.node_id == homes[1]]
    ray.remove_node(lost, allow_graceful=False)
    deadline = time.monotonic() + 60  # an actor outlives its node by a moment
    while True:
        told, expected = envs.step(action), local.step(action)
        assert np.array_equal(told.obs[:2], expected.obs[:2])
        if told.dropped:
            break
        assert time.monotonic() < deadline
    assert told.dropped == [2]
    assert "collector 1 (environment 2 of seed 7) died: " in capfd.readouterr().err
    assert envs.step(action).dropped == []
    assert home(envs.workers[1]) == homes[0]


def test_what_collectors_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="^collectors=2: task.physics=warp steps all"):
        make_vector_envs({**PUSH, "physics": "warp"}, "state", 3, [7], collectors=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^collectors need Ray: pip install 'vis-rpg\[ray\]'$"):
        make_vector_envs(PUSH, "state", 3, [7], collectors=2)
