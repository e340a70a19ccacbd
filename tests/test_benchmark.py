"""The benchmark counts what is computed and measures what it says."""

from __future__ import annotations

import time

import torch

from vis_rpg.benchmark import FlopCounter, machine, step_speed, timed, update_speed

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer_and_its_gradient_are_counted() -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(3, 5)
    with FlopCounter() as counter:
        layer(x).sum().backward()
    assert counter.total == 2 * (2 * 3 * 5 * 7)  # forward, and the gradient of the weight; x asks for none


def test_timing_counts_seconds_a_call() -> None:
    for seconds in timed(lambda: time.sleep(0.01), 2, 0.03, CPU):
        assert 0.01 <= seconds < 0.1


def test_an_update_is_measured_against_the_matrix_rate_of_the_machine() -> None:
    result = update_speed(["task=block_push", "preset=debug", "device=cpu"], 2, 0.05)
    assert result["matrix_rate_gflop_per_s"] > 0 and result["updates_per_s"] > 0 and result["batch_size"] == 16
    assert 0 < result["share_of_matrix_rate"] < 1 and result["gflop_per_update"] > 0


def test_slots_that_are_trained_on_are_measured_too() -> None:
    words = ["task=block_push", "obs=pixels", "perception.train=true", "preset=debug", "agent.batch_size=2", "exploration.batch_size=2"]
    assert update_speed([*words, "device=cpu"], 1, 0.01)["updates_per_s"] > 0


def test_steps_are_counted_over_all_environments() -> None:
    assert step_speed(["task=maze"], "state", 2, 0.05)["steps_per_s"] > 100
    assert machine(CPU)["threads"] == torch.get_num_threads()
