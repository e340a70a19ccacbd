"""The benchmark counts what is computed and measures what it says."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path

import pytest
import torch

from tests.runs import run_script
from vis_rpg.benchmarks import envs as env_benchmark
from vis_rpg.benchmarks import report
from vis_rpg.benchmarks import updates as benchmark
from vis_rpg.benchmarks.op_counter import OperatorCounter
from vis_rpg.benchmarks.updates import (
    Line,
    goals,
    machine,
    regressions,
    run_speed,
    step_speed,
    timed,
    update_speed,
)
from vis_rpg.compose import compose
from vis_rpg.envs import IDS

CPU = torch.device("cpu")
DEBUG = ["task=block_push", "preset=debug", "device=cpu"]


def test_operators_and_arithmetic_of_a_linear_layer_and_its_gradient_are_counted() -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(3, 5)
    with OperatorCounter() as forward:
        layer(x)
    with OperatorCounter() as both:
        layer(x).sum().backward()
    assert (forward.operators, forward.flop) == (1, 2 * 3 * 5 * 7), (
        "the transposed view of the weight is no work"
    )
    assert both.flop == 2 * (
        2 * 3 * 5 * 7
    )  # forward, and the gradient of the weight; x asks for none
    assert both.operators > forward.operators
    assert both.host_syncs == 0


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).all()), torch.nonzero],
)
def test_what_the_host_would_wait_for_is_counted(wait) -> None:
    with OperatorCounter() as counter:
        wait(torch.ones(3))
    assert counter.host_syncs == 1


def test_timing_counts_seconds_a_call() -> None:
    for seconds in timed(lambda: time.sleep(0.01), 2, 0.03, CPU):
        assert 0.01 <= seconds < 0.1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix rate of the machine is measured once, and replays hold little."""
    monkeypatch.setattr(benchmark, "gemm_rate", measured_once)
    monkeypatch.setattr(benchmark, "FILLED", 50)


@functools.cache
def measured_once(device: torch.device, _: float, measure=benchmark.gemm_rate) -> float:
    return measure(device, 0.01)


@pytest.mark.usefixtures("quick")
def test_an_update_is_measured_against_matrix_products() -> None:
    result = update_speed([*DEBUG, "runtime=eager"], 2, 0.05)
    assert (
        result["gemm_gflop_per_s"] > 0
        and result["updates_per_s"] > 0
        and result["batch_size"] == 16
    )
    assert 0 < result["mfu"] < 1 and result["gflop_per_update"] > 0
    slowest, fastest = sorted(result["fastest_and_slowest"])
    assert slowest <= result["updates_per_s"] <= fastest


@pytest.mark.usefixtures("quick")
def test_two_seeds_do_twice_the_arithmetic_and_count_twice() -> None:
    one, two = (
        update_speed([*DEBUG, "runtime=eager", "agent.batch_size=200", f"seeds={seeds}"], 1, 0.02)
        for seeds in (1, 2)
    )
    assert two["gflop_per_update"] == pytest.approx(2 * one["gflop_per_update"], abs=0.02)
    assert two["seed_updates_per_s"] == pytest.approx(2 * two["updates_per_s"], rel=0.01)


def test_a_whole_run_counts_the_interactions_of_all_seeds() -> None:
    result = run_speed([*DEBUG, "seeds=2"], 0.3)
    assert result["seeds"] == 2 and result["interactions_per_s"] > 10
    assert 0 <= result["wait_env_share"] <= 1 and 0 <= result["wait_device_share"] <= 1


def test_steps_are_counted_over_all_environments() -> None:
    assert step_speed(["task=maze"], "state", 2, 0.05)["steps_per_s"] > 100
    assert machine(CPU)["threads"] == torch.get_num_threads()


def test_environments_are_measured_task_by_task_and_what_cannot_be_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_script(
            monkeypatch,
            "benchmark",
            "what=envs",
            "quick=true",
            "only_task=block_push",
            f"json={tmp_path / 'envs.json'}",
        )
        == 0
    )
    state, pixels = json.loads((tmp_path / "envs.json").read_text())["measured"]
    assert (state["name"], state["frames_by"], pixels["name"], pixels["frames_by"]) == (
        "block_push, state",
        None,
        "block_push, pixels",
        "egl",
    )
    assert all(
        line["steps_per_s"] > 10 and line["one_process_steps_per_s"] > 10 and line["envs"] == 5
        for line in (state, pixels)
    )
    monkeypatch.setattr(env_benchmark, "make_vector_envs", broken)
    found = list(env_benchmark.envs(seconds=0.01))
    assert len(found) == 2 * len(IDS)
    assert all(line["not_measured"] == "no Vulkan device" for line in found)
    assert run_script(monkeypatch, "benchmark", "what=envs", "only_task=blockpush") == 2
    assert compose([]).agent.envs == env_benchmark.ENVS


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["egl", "warp"])
def test_what_is_stepped_in_workers_is_measured_in_one_process_too(backend: str) -> None:
    pytest.importorskip("metaworld", reason="Meta-World is in the optional extra [robotics]")
    if backend == "warp":
        pytest.importorskip("mujoco_warp", reason="the batch renderer is the optional extra [warp]")
    state, pixels = env_benchmark.envs("metaworld_basketball", 0.01, backend)
    assert (state["frames_by"], pixels["frames_by"]) == (None, backend)
    assert all(
        "worker processes" in line["stepped_in"] and line["one_process_steps_per_s"] > 10
        for line in (state, pixels)
    )


def broken(*about: object) -> None:
    raise RuntimeError("no\nVulkan device")


def test_goals_stand_beside_what_was_measured_and_say_where_nothing_was() -> None:
    lines: list[Line] = [
        {"name": "machine", "device": "cpu"},
        {
            "name": "update, state",
            "updates_per_s": 4.0,
            "mfu": 0.9,
            "gemm_gflop_per_s": 200.0,
        },
        {
            "name": "update, state, 8 seeds",
            "updates_per_s": 0.6,
            "seed_updates_per_s": 4.8,
            "gemm_gflop_per_s": 200.0,
        },
        {
            "name": "update, slots frozen",
            "updates_per_s": 2.7,
            "gemm_gflop_per_s": 180.0,
        },  # a slower moment
    ]
    lines = [line | {"runtime": "compile"} for line in lines]
    found = {row["what"]: row for row in goals(lines)}
    assert found["state, MFU"] == {
        "what": "state, MFU",
        "measured": 0.9,
        "goal": 0.85,
        "met": True,
    }
    assert found["state, 8 seeds over one, seed-updates/s"]["measured"] == pytest.approx(1.2)
    slots = found["slots frozen over state"]
    assert (slots["measured"], slots["met"]) == (0.75, False)
    unmeasured = found["state, bfloat16 over float32"]
    assert (unmeasured["measured"], unmeasured["met"]) == (None, False)


def test_a_count_that_has_grown_by_more_than_five_percent_is_named() -> None:
    stored = {"state": {"operators": 100, "host_syncs": 0}}
    assert regressions({"state": {"operators": 105, "host_syncs": 0}}, stored) == []
    assert regressions({"state": {"operators": 106, "host_syncs": 0}}, stored) == [
        "state: operators has grown from 100 to 106"
    ]
    assert regressions({"state": {"operators": 90, "host_syncs": 1}}, stored) == [
        "state: host_syncs has grown from 0 to 1"
    ]
    assert regressions({"cnn": {"operators": 1}}, stored) == ["cnn: operators is not stored yet"]


def test_the_script_fails_where_a_count_has_grown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {"state": {"operators": 200}}
    monkeypatch.setattr(benchmark, "counts", lambda compiled: found)
    stored = tmp_path / "stored.json"
    stored.write_text(json.dumps({"state": {"operators": 100}}))
    monkeypatch.setattr(report, "STORED", stored)
    assert (
        run_script(monkeypatch, "benchmark", "what=counts", f"json={tmp_path / 'counts.json'}") == 0
    )
    assert json.loads((tmp_path / "counts.json").read_text()) == found
    assert run_script(monkeypatch, "benchmark", "what=counts", "check=true") == 2


def test_counts_are_those_of_every_setting_and_no_update_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        benchmark, "COUNTED", {name: benchmark.COUNTED[name] for name in ("state", "cnn")}
    )
    found = benchmark.counts(compiled=False)
    assert found.keys() == {"state", "cnn"}
    assert all(
        figures["host_syncs"] == 0 and figures["operators"] > 100 and figures["mflop"] > 1
        for figures in found.values()
    )
