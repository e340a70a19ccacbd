"""What several seeds come to, and when a bar counts as met."""

from __future__ import annotations

import pytest
from rich.console import Console

from perception.evaluation.summary import draw_table, summarise


def summary(values: list[float | None], bar: float | None = None, figure: str = "ari") -> dict:
    scores = {seed: {figure: value, "slots": [0, 1]} for seed, value in enumerate(values)}
    return summarise(scores, {} if bar is None else {figure: bar})


@pytest.mark.parametrize(
    ("values", "met", "meeting"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.9], True, 5),
        ([0.95, 0.95, 0.95, 0.95, 0.7], True, 4),
        ([1.0, 1.0, 1.0, 0.89, 0.89], False, 3),
        ([0.91, 0.91, 0.91, 0.91, 0.2], False, 4),  # the mean does not
        ([0.9], True, 1),
        ([1.0, 0.85], False, 1),
        ([1.0, 1.0, 1.0, 1.0, None], True, 4),
        ([1.0, 1.0, 1.0, None, None], False, 3),  # a seed without a value meets nothing
    ],
)
def test_a_bar_is_met_by_the_mean_and_by_four_of_five(
    values: list[float | None], met: bool, meeting: int
) -> None:
    row = summary(values, 0.9)["ari"]
    assert (row["met"], row["meeting"]) == (met, meeting)


def test_the_worst_seed_is_the_lowest_or_for_switches_the_highest() -> None:
    row = summary([0.5, 0.3, 0.7])["ari"]
    assert (row["worst"], row["worst_seed"], row["mean"]) == (
        0.3,
        1,
        pytest.approx(0.5),
    ) and "met" not in row
    assert summary([0.5, 0.3, 0.7], figure="switch_rate")["switch_rate"]["worst_seed"] == 2


def test_figures_that_no_seed_has_and_lists_are_left_out() -> None:
    assert summary([None, None]) == {}


def test_a_bar_that_no_seed_could_be_measured_by_is_not_met() -> None:
    row = summary([None, None], 0.9)["ari"]
    assert (row["met"], row["meeting"], row["mean"], row["worst"]) == (False, 0, None, None)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 (as long as the test)
    console.print(draw_table({"all": summary([None, None], 0.9)}, [0, 1], "held-out"))
    assert "no, 0 of 2" in console.export_text()


def test_the_table_shows_each_seed_and_the_verdict() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 (as long as the test)
    console.print(draw_table({"blocks=1": summary([0.95, None, 0.85], 0.9)}, [3, 4, 5], "held-out"))
    [line] = [line for line in console.export_text().splitlines() if "blocks=1" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        *(
            "blocks=1",
            "ARI with background",
            "0.900",
            "0.850 (seed 2)",
            "0.950",
            "-",
            "0.850",
            "0.9",
            "no, 1 of 3",
        )
    ]
