"""Drawings of explored states: written for every kind of z, true to the record, clear about what is
missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.runs import CATEGORICAL, GAUSSIAN, WITHOUT_Z, run_script, trained
from vis_rpg.analysis import explored_states as drawing
from vis_rpg.envs.tasks.block_push import make_task
from vis_rpg.envs.tasks.maze import TASK as MAZE
from vis_rpg.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "objects"), [(GAUSSIAN, 1), (CATEGORICAL, 3), (WITHOUT_Z, 1)]
)
def test_the_figure_has_a_row_of_panels_for_each_object(
    overrides: tuple[str, ...], objects: int
) -> None:
    figure = drawing.states_figure(trained(*overrides))
    panels = [axes for axes in figure.get_axes() if axes.get_aspect() == 1.0]
    assert len(panels) == objects * (drawing.STAGES + 2)
    plt.close(figure)


def test_the_record_holds_each_interaction_with_one_z_an_episode() -> None:
    visits = drawing.read_visits(trained(*GAUSSIAN))
    assert visits.step[-1] == 150 and len(visits.step) == 150
    assert (np.diff(visits.step) >= 0).all()
    assert (np.abs(visits.positions) <= 5).all()
    assert len(np.unique(visits.z, axis=0)) == 5  # five environments, no episode ended before


def test_stages_share_out_all_visits_and_show_earlier_ones_in_grey() -> None:
    step = np.repeat(np.arange(5, 105, 5), 5)
    points = np.random.default_rng(0).uniform(-1, 1, (len(step), 2))
    colours = drawing.z_colormap(np.ones((len(step), 2)), "gaussian")
    coloured, grey = [], []
    for start in (0, 25, 50, 75):
        _, axes = plt.subplots()
        drawing.draw_stage(axes, step, points, colours, start, start + 25)
        before, now = axes.collections
        grey.append(len(before.get_offsets()))
        coloured.append(len(now.get_offsets()))
        plt.close()
    assert coloured == [25, 25, 25, 25]
    assert grey == [0, 25, 50, 75]


def test_the_same_z_has_the_same_colour_and_categories_have_their_own() -> None:
    z = np.eye(5)[[0, 3, 3, 4]]
    colours = drawing.z_colormap(z, "categorical")
    colours = colours.cmap(colours.norm(colours.values))
    assert (
        (colours[1] == colours[2]).all()
        and (colours[0] != colours[1]).any()
        and (colours[3] != colours[1]).any()
    )


def test_opposite_gaussian_z_are_half_a_circle_of_hues_apart() -> None:
    colours = drawing.z_colormap(np.array([[1.0, 1.0, 5.0], [-1.0, -1.0, 5.0]]), "gaussian")
    assert abs(colours.values[0] - colours.values[1]) == pytest.approx(np.pi)


def test_a_z_of_one_number_is_coloured_by_its_sign() -> None:
    colours = drawing.z_colormap(np.array([[0.3], [2.0], [-0.5]]), "gaussian")
    assert colours.values[0] == colours.values[1] != colours.values[2]


def test_how_much_of_the_places_z_explains_is_measured_on_other_episodes() -> None:
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(400, 12)), 20, axis=0)
    along = z[:, 7:8] + rng.normal(size=(len(z), 1))  # half of the variance is z's
    places = np.stack([np.hstack([along, 0 * along]), rng.normal(size=(len(z), 2))], 1)
    coefficients, explained = drawing.z_regression(z, places)
    assert explained == pytest.approx([0.5, 0.0], abs=0.05)
    assert abs(coefficients[:, 0]).argmax() == 7
    still = drawing.z_regression(z, np.ones((len(z), 1, 2)))
    assert not still[0].any() and (still[1] == 0).all(), "what stays where it is is not explained"
    for few in (slice(0, 0), slice(0, 20)):  # no episode, and one
        coefficients, explained = drawing.z_regression(z[few], places[few])
        assert coefficients.shape == (12, 4) and np.isnan(explained).all()


def test_colours_follow_the_plane_of_z_that_explains_the_places() -> None:
    z = np.random.default_rng(0).normal(size=(300, 12))
    coefficients = np.zeros((12, 2))
    coefficients[4, 0], coefficients[9, 1] = 2.0, 1.0
    found = drawing.z_colormap(z, "gaussian", coefficients).values
    wanted = np.arctan2(z[:, 9], z[:, 4])
    turns = [
        np.abs(np.angle(np.exp(1j * (found - s * wanted - o)))).max()
        for s in (1, -1)
        for o in (0, np.pi)
    ]
    assert min(turns) < 1e-6


def test_many_categories_still_get_a_colour_each() -> None:
    colours = drawing.z_colormap(np.eye(12), "categorical")
    assert len(np.unique(colours.cmap(colours.norm(colours.values)), axis=0)) == 12


def test_the_map_counts_every_visit_within_the_task() -> None:
    points = np.random.default_rng(0).uniform(-1.8, 1.8, (500, 2))
    _, axes = plt.subplots()
    mesh = drawing.draw_counts(axes, points, make_task(1))
    assert np.nansum(mesh.get_array().filled(0)) == 500
    plt.close()


def test_a_task_that_counts_no_coverage_is_mapped_over_its_data() -> None:
    points = np.random.default_rng(0).uniform(-90, 70, (500, 2))
    _, axes = plt.subplots()
    mesh = drawing.draw_counts(axes, points, replace(MAZE, coverage=None))
    assert np.nansum(mesh.get_array().filled(0)) == 500
    plt.close()


def test_only_a_share_of_very_many_visits_is_drawn() -> None:
    _, axes = plt.subplots()
    dots = drawing.draw_points(
        axes,
        np.zeros((drawing.MOST_POINTS + 5, 2)),
        np.zeros(drawing.MOST_POINTS + 5),
        "viridis",
        plt.Normalize(),
    )
    assert len(dots.get_offsets()) == drawing.MOST_POINTS
    plt.close()


def test_a_random_policys_coverage_is_a_dashed_line_once_it_is_known() -> None:
    metrics = [
        {"step": 50, "coverage": 0.1},
        {"step": 100, "coverage": None},
        {"step": 150, "coverage": 0.3},
    ]
    for summary, lines in (
        ({"random_coverage": 0.2, "steps": 150, "pretraining_frames": 6000}, 2),
        ({}, 1),
    ):
        _, axes = plt.subplots()
        drawing.draw_coverage(axes, metrics, summary, MAZE)
        assert len(axes.lines) == lines
        assert [line.get_label() for line in axes.lines[1:]] == [
            "random policy at 6,150 interactions"
        ][: lines - 1]
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 0.1, 0.3])
        plt.close()


def test_a_run_in_progress_has_no_random_coverage_and_is_drawn(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained(*GAUSSIAN), copy)
    (copy / "summary.json").unlink()
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "cover')  # being written
    plt.close(drawing.states_figure(copy))


def test_the_script_says_where_the_drawing_lies(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    run = trained(*GAUSSIAN)
    assert run_script(monkeypatch, "visualise_states", f"run={run}") == 0
    assert str(run / "states.png") in capfd.readouterr().out
    picture = cv2.imread(str(run / "states.png"))
    assert picture.shape[1] > 1500 and picture.std() > 10


def _cut_visits(run: Path) -> None:
    next(run.glob("visits/*")).write_bytes(b"\0" * 20)


def _drop_visits(run: Path) -> None:
    shutil.rmtree(run / "visits")


def _empty_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")


def _foreign_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("step,coverage\n1,2\n")


def _drop_metrics(run: Path) -> None:
    (run / "metrics.jsonl").unlink()


@pytest.mark.parametrize(
    ("breaking", "says"),
    [
        (_cut_visits, "visits-0000000000"),
        (_drop_visits, "visits-0000000000"),
        (_empty_metrics, "nothing is logged"),
        (_foreign_metrics, "not JSON"),
        (_drop_metrics, "metrics.jsonl"),
        (shutil.rmtree, "not a run"),
    ],
)
def test_a_broken_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, breaking, says: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained(*GAUSSIAN), copy)
    breaking(copy)
    assert run_script(monkeypatch, "visualise_states", f"run={copy}") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0] and str(copy) in lines[0]


def test_a_task_without_objects_has_nothing_to_draw() -> None:
    run = trained("task=gym", "task.id=Pendulum-v1", "steps=100", "exploration=none")
    with pytest.raises(UserError, match="no objects of interest"):
        drawing.states_figure(run)


def test_a_task_without_coverage_says_so() -> None:
    _, axes = plt.subplots()
    drawing.draw_coverage(axes, [json.loads('{"step": 5, "coverage": null}')], {}, MAZE)
    assert "no coverage" in axes.texts[0].get_text()
    plt.close()
