"""Curves over seeds: the CSV holds what runs logged, the figure's numbers follow from the CSV
alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.runs import ROOT, run_script
from vis_rpg.analysis.curves import draw_curves, read_curves, seed_runs, write_csv
from vis_rpg.errors import UserError


def make_run(
    folder: Path,
    agent: str,
    seed: int,
    values: dict[int, float | None],
    exploration: str = "object_rnd",
    perception: str = "state",
) -> Path:
    """A run folder with a config and a log."""
    folder.mkdir(parents=True)
    names = {"agent": agent, "exploration": exploration, "perception": perception}
    (folder / "config.yaml").write_text(
        f"seed: {seed}\n" + "".join(f"{group}:\n  name: {name}\n" for group, name in names.items())
    )
    lines = [
        json.dumps({"step": step, "wall_s": step / 5, "coverage": value, "updates": 1})
        for step, value in values.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    rpg = [
        make_run(
            tmp_path / f"rpg-{seed}",
            "rpg",
            seed,
            {step: step / 100 + seed for step in (100, 200, 300)},
        )
        for seed in range(3)
    ]
    return [*rpg, make_run(tmp_path / "mbsac-0", "mbsac", 0, {100: 0.5, 200: None, 400: 0.9})]


def test_the_csv_holds_every_logged_number_with_its_seed_and_agent(
    runs: list[Path], tmp_path: Path
) -> None:
    write_csv(tmp_path / "deep" / "curves.csv", runs, "coverage")
    rows = list(csv.DictReader((tmp_path / "deep" / "curves.csv").read_text().splitlines()))
    assert list(rows[0]) == ["step", "value", "seed", "agent", "minutes"]
    assert len(rows) == 11  # 3 x 3, and 2 of the run with a null
    run = {"step": "200", "value": "3.0", "seed": "1", "agent": "rpg"}
    assert run | {"minutes": "0.67"} in rows  # 0.2 s a step


def test_a_folder_of_several_seeds_stands_for_all_of_them(tmp_path: Path) -> None:
    seeds = [
        make_run(tmp_path / "both" / f"seed-{seed}", "rpg", seed, {100: 0.5}) for seed in (2, 10)
    ]
    alone = make_run(tmp_path / "alone", "mbsac", 0, {100: 0.5})
    assert seed_runs(tmp_path / "both") == seeds
    assert seed_runs(alone) == [alone]
    assert seed_runs(tmp_path / "nothing") == [tmp_path / "nothing"]


def test_an_agent_without_the_bonus_has_a_curve_of_its_own(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / kind, "mbsac", 0, {100: 0.5}, kind) for kind in ("object_rnd", "none")
    ]
    write_csv(tmp_path / "curves.csv", runs, "coverage")
    assert [curve.agent for curve in read_curves(tmp_path / "curves.csv")] == [
        "mbsac",
        "mbsac without bonus",
    ]


def test_bonuses_that_are_compared_have_curves_of_their_own(tmp_path: Path) -> None:
    kinds = ("rnd_input: slots", "rnd_input: frame_embedding", "rnd_input: oracle_positions")
    runs = [
        make_run(tmp_path / str(i), "rpg", 0, {100: 0.5}, f"object_rnd\n  {kind}")
        for i, kind in enumerate(kinds)
    ]
    write_csv(tmp_path / "curves.csv", runs, "coverage")
    names = [curve.agent for curve in read_curves(tmp_path / "curves.csv")]
    assert names == ["rpg", "rpg, frame_embedding bonus", "rpg, oracle_positions bonus"]


def test_one_agent_from_state_and_from_pixels_has_two_curves(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / kind, "rpg", 0, {100: 0.5}, perception=kind)
        for kind in ("state", "slots", "cnn")
    ]
    write_csv(tmp_path / "curves.csv", runs, "coverage")
    assert [curve.agent for curve in read_curves(tmp_path / "curves.csv")] == [
        "rpg",
        "rpg from slots",
        "rpg from cnn",
    ]


def test_curves_can_be_named_by_hand(tmp_path: Path, monkeypatch, capfd) -> None:
    for name in ("little", "much"):
        for seed in (0, 1):
            make_run(tmp_path / name / f"seed-{seed}", "rpg", seed, {100: 0.5})
    words = ["name=beta", f"out={tmp_path}", f"runs=[{tmp_path / 'little'},{tmp_path / 'much'}]"]
    assert run_script(monkeypatch, "plot_curves", *words) == 2
    assert (
        "are both agent=rpg seed=0: give each seed once, or labels=[...]" in capfd.readouterr().err
    )
    assert run_script(monkeypatch, "plot_curves", *words, "labels=[beta 0.005]") == 2
    assert "labels: 1 for 2 of runs: give one for each" in capfd.readouterr().err
    assert run_script(monkeypatch, "plot_curves", *words, "labels=[beta 0.005,beta 0.05]") == 0
    curves = read_curves(tmp_path / "curves.csv")
    assert [(curve.agent, curve.seeds) for curve in curves] == [("beta 0.005", 2), ("beta 0.05", 2)]


def test_means_and_intervals_are_over_seeds(runs: list[Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "curves.csv", runs, "coverage")
    rpg, mbsac = read_curves(tmp_path / "curves.csv")
    assert (rpg.agent, rpg.seeds, mbsac.agent, mbsac.seeds) == ("rpg", 3, "mbsac", 1)
    np.testing.assert_allclose(rpg.mean, [2, 3, 4])
    assert (rpg.interval[0] < rpg.mean).all() and (rpg.mean < rpg.interval[1]).all()
    np.testing.assert_allclose(rpg.interval[1] - rpg.interval[0], 2.0)  # three seeds: it spans them
    assert np.isnan(mbsac.interval).all()


def test_curves_over_minutes(runs: list[Path], tmp_path: Path, monkeypatch, capfd) -> None:
    words = ["name=maze", f"out={tmp_path}", f"runs=[{','.join(map(str, runs))}]", "x=minutes"]
    assert run_script(monkeypatch, "plot_curves", *words) == 0
    assert "rpg: coverage 4.000 at 1.0 minutes" in capfd.readouterr().out
    rpg, mbsac = read_curves(tmp_path / "curves.csv", "minutes")
    np.testing.assert_allclose(rpg.x, [0.33, 0.67, 1.0])
    np.testing.assert_allclose(mbsac.x, [0.33, 1.33])
    table = tmp_path / "curves.csv"
    lines = [line.rsplit(",", 1)[0] + "\n" for line in table.read_text().splitlines()]
    table.write_text("".join(lines))  # as before there were minutes
    assert len(read_curves(tmp_path / "curves.csv")) == 2
    with pytest.raises(UserError, match="x=minutes: .*curves.csv has none"):
        read_curves(tmp_path / "curves.csv", "minutes")


def test_seeds_are_compared_only_where_all_have_been(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "rpg", 0, {100: 0.0, 200: 1.0, 300: 2.0}),
        make_run(tmp_path / "b", "rpg", 1, {150: 0.5, 250: 1.5}),
    ]
    write_csv(tmp_path / "curves.csv", runs, "coverage")
    (curve,) = read_curves(tmp_path / "curves.csv")
    np.testing.assert_array_equal(curve.x, [150, 200, 250])
    np.testing.assert_allclose(curve.mean, [0.5, 1.0, 1.5])


def test_the_figure_is_written(runs: list[Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "curves.csv", runs, "coverage")
    draw_curves(tmp_path / "curves.png", read_curves(tmp_path / "curves.csv"), "maze", "coverage")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_the_script_draws_from_runs_and_again_from_the_csv_alone(
    runs: list[Path], tmp_path: Path, monkeypatch, capfd
) -> None:
    words = ["name=maze", f"out={tmp_path / 'results'}"]
    assert run_script(monkeypatch, "plot_curves", *words, f"runs=[{','.join(map(str, runs))}]") == 0
    first = capfd.readouterr().out
    assert (
        "rpg: coverage 4.000 at 300 interactions (95% interval 3.000 to 5.000, 3 seeds)" in first
        and "1 seed" in first
    )
    (tmp_path / "results" / "curves.png").unlink()
    assert run_script(monkeypatch, "plot_curves", *words) == 0
    assert capfd.readouterr().out == first
    assert (tmp_path / "results" / "curves.png").exists()


@pytest.mark.parametrize(("key", "says"), [("covrage", "covrage"), ("success", "success")])
def test_a_number_that_was_not_logged_is_named(
    runs: list[Path], tmp_path: Path, key: str, says: str
) -> None:
    with pytest.raises(UserError, match=f"key={says}.*coverage, step, updates, wall_s"):
        write_csv(tmp_path / "curves.csv", runs, key)


def test_the_same_seed_twice_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="agent=rpg seed=1"):
        write_csv(tmp_path / "curves.csv", [*runs, runs[1]], "coverage")


def test_seeds_that_never_meet_are_an_error(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "curves.csv",
        [
            make_run(tmp_path / "a", "rpg", 0, {100: 0.0}),
            make_run(tmp_path / "b", "rpg", 1, {200: 0.0}),
        ],
        "coverage",
    )
    with pytest.raises(UserError, match="no interactions in common"):
        read_curves(tmp_path / "curves.csv")


@pytest.mark.parametrize("text", [None, "", "a,b\n1,2\n"])
def test_a_csv_that_is_missing_or_foreign_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "curves.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="curves.csv"):
        read_curves(path)


def test_results_lie_in_a_folder_of_the_figures_name() -> None:
    from vis_rpg.compose import compose

    assert compose(["name=maze"], "plot_curves").out == "results/maze"
    assert (ROOT / "results").is_dir()
