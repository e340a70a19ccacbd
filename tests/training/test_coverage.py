"""Coverage counts cells of true positions; the record of visits keeps all of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vis_rpg.envs.tasks.task import Coverage, Task
from vis_rpg.training.coverage import CoverageCounter, VisitRecord

PUSH = Task(
    "push",
    ("pusher", "left", "right"),
    coverage=Coverage(("left", "right"), (-2, -1), (2, 1), (4, 4)),
)


def test_a_share_of_cells_averaged_over_the_objects_that_count() -> None:
    counter = CoverageCounter(PUSH)
    assert counter.value == 0
    counter.add(np.array([[[0, 0], [-1.9, -0.9], [1.9, 0.9]]]))
    assert counter.value == pytest.approx(1 / 16)
    counter.add(np.array([[[1, 1], [-1.9, -0.9], [0.1, 0.1]], [[1, 1], [-1.8, -0.8], [0.2, 0.2]]]))
    assert counter.value == pytest.approx((1 + 2) / 32), (
        "the pusher and cells that are known add nothing"
    )


def test_entropy_of_visits_by_hand_averaged_over_the_objects_that_count() -> None:
    counter = CoverageCounter(PUSH)
    assert counter.entropy == 0
    at = [[-1.9, 1.9], [-1.9, 1.9], [-1.9, -1.9], [1.9, 1.9]]
    counter.add(np.array([[[0, 0], [left, 0], [right, 0]] for left, right in at]))
    assert counter.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_every_cell_can_be_visited_once_and_no_more() -> None:
    counter = CoverageCounter(PUSH)
    x, y = np.meshgrid(np.linspace(-2, 2, 41), np.linspace(-1, 1, 41))
    places = np.stack([x, y], -1).reshape(-1, 1, 2).repeat(3, 1)
    counter.add(places)
    assert counter.value == 1


def test_a_place_on_or_beyond_the_border_counts_for_the_cell_inside() -> None:
    counter = CoverageCounter(PUSH)
    counter.add(np.array([[0, 0], [2, 1], [-2.5, -1]]))
    assert counter.visits[0, 3, 3] == 1
    assert counter.visits[1, 0, 0] == 1
    assert counter.visits.sum() == 2


def test_coverage_never_falls_and_equals_a_count_by_hand() -> None:
    rng, counter = np.random.default_rng(0), CoverageCounter(PUSH)
    seen: set[tuple[int, int, int]] = set()
    last = 0.0
    for _ in range(30):
        positions = rng.uniform((-2, -1), (2, 1), size=(5, 3, 2))
        counter.add(positions)
        for env in positions:
            for index in (1, 2):
                seen.add(
                    (index, math.floor(env[index, 0] + 2), math.floor(2 * (env[index, 1] + 1)))
                )
        assert counter.value == pytest.approx(len(seen) / 32)
        assert counter.value >= last
        last = counter.value


def test_joint_coverage_counts_arrangements_of_all_objects_by_hand() -> None:
    task = Task("push", ("a", "b", "c"), coverage=Coverage(("b", "c"), (-2, -1), (2, 1), (12, 1)))
    rng, counter = np.random.default_rng(0), CoverageCounter(task)
    seen: set[tuple[int, ...]] = set()
    for _ in range(30):
        positions = rng.uniform((-2, -1), (2, 1), size=(2, 3, 2))
        counter.add(positions)
        for env in positions:
            seen.add(tuple(math.floor((x + 2) / 4 * 6) for x in env[1:, 0]))
        assert counter.joint == pytest.approx(len(seen) / 36), "6 cells at most, and 1 of y"
    restored = CoverageCounter(task)
    restored.load(counter.state())
    assert restored.joint == counter.joint
    assert restored.value == counter.value
    restored.add(np.array([[0.0, 0.0], [1.99, 0.0], [1.99, 0.0]]))
    assert counter.state()["visited_jointly"].sum() <= restored.state()["visited_jointly"].sum()


def test_one_object_has_no_joint_coverage() -> None:
    counter = CoverageCounter(
        Task("one", ("a",), coverage=Coverage(("a",), (0, 0), (1, 1), (4, 4)))
    )
    counter.add(np.zeros((3, 1, 2)))
    assert math.isnan(counter.joint)
    assert counter.value == pytest.approx(1 / 16)


def test_a_task_without_a_grid_has_no_coverage() -> None:
    counter = CoverageCounter(Task("gym", ()))
    counter.add(np.zeros((5, 0, 2)))
    assert math.isnan(counter.value)
    assert math.isnan(counter.joint)
    assert counter.state() == {}


@pytest.mark.parametrize("z_dim", [0, 3])
def test_visits_come_back_in_order_across_saves_and_resumes(tmp_path: Path, z_dim: int) -> None:
    record, expected = VisitRecord(tmp_path), []
    rng = np.random.default_rng(0)
    for step in range(1, 8):
        positions, z = rng.normal(size=(2, 3, 2)), torch.randn(2, z_dim)
        record.add(step, positions, z)
        expected.append((step, positions, z.clone()))
        z.zero_()  # what is recorded is not what comes later
        if step in (2, 5, 7):
            state = record.save()
            assert record.save() == state, "nothing new, nothing written"
            record = VisitRecord(tmp_path)
            record.load(state)
    read = record.read()
    assert read["step"].tolist() == [step for step, *_ in expected for _ in range(2)]
    np.testing.assert_allclose(
        read["positions"].numpy(), np.concatenate([p for _, p, _ in expected]), rtol=1e-6
    )
    assert torch.equal(read["z"], torch.cat([z for *_, z in expected]))
    assert len(list(tmp_path.iterdir())) == 3
