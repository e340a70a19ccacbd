"""The scores of several seeds as one table: their mean, each of them and the worst, beside a bar
where there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

WORDS = {
    "fg_ari": "FG-ARI",
    "ari": "ARI with background",
    "worst_iou": "IoU of the worst object",
    "mean_position_r2": "position R²",
    "worst_position_r2": "position R², worst object",
    "mbo": "mBO",
    "miou": "mIoU (Hungarian)",
    "robot_iou": "IoU of the robot",
    "video_fg_ari": "video FG-ARI",
    "switch_rate": "identity switches",
}
"""Words for those of `perception.scores.score` that are one number."""
LOWER_IS_BETTER = ("switch_rate",)
ENOUGH = 0.8
"""Share of the seeds that have to meet a bar, beside their mean."""


def summarise(
    scores: Mapping[int, Mapping[str, Any]], bars: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """What the seeds' scores come to, for each figure that is one number, and not None for all of
    them unless it has a bar.

    `mean`, `worst`, `worst_seed`, `each` (by seed), and where there is a bar `bar`, `meeting` (how
    many seeds meet it) and `met` (the mean does, and at least ENOUGH of the seeds). scores: of each
    seed on one and the same scene, as of `perception.scores.score`; bars: figures -> the least that
    is wanted.
    """
    summary: dict[str, dict[str, Any]] = {}
    for figure in next(iter(scores.values())):
        each = {seed: values[figure] for seed, values in scores.items()}
        known = {seed: value for seed, value in each.items() if isinstance(value, float)}
        if not known and figure not in bars:
            continue
        worst = (
            (max if figure in LOWER_IS_BETTER else min)(known, key=lambda seed: known[seed])
            if known
            else None
        )
        mean = sum(known.values()) / len(known) if known else None
        summary[figure] = {
            "mean": mean,
            "worst": None if worst is None else known[worst],
            "worst_seed": worst,
            "each": each,
        }
        if figure in bars:
            bar, meeting = bars[figure], sum(value >= bars[figure] for value in known.values())
            met = mean is not None and mean >= bar and meeting >= math.ceil(ENOUGH * len(each))
            summary[figure] |= {"bar": bar, "meeting": meeting, "met": met}
    return summary


def draw_table(
    summaries: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: Sequence[int], title: str
) -> Table:
    """Summaries of `summarise` by scene, as a table for the terminal."""
    table = Table(title=title)
    for heading in (
        "scene",
        "figure",
        "mean",
        "worst",
        *(f"seed {seed}" for seed in seeds),
        "bar",
        "met",
    ):
        table.add_column(
            heading, justify="left" if heading in ("scene", "figure") else "right", no_wrap=True
        )
    for scene, summary in summaries.items():
        for figure, row in summary.items():
            verdict = (
                ("yes" if row["met"] else "no") + f", {row['meeting']} of {len(seeds)}"
                if "bar" in row
                else ""
            )
            mean, worst, *each = (
                "-" if value is None else f"{value:.3f}"
                for value in (row["mean"], row["worst"], *row["each"].values())
            )
            worst += "" if row["worst"] is None else f" (seed {row['worst_seed']})"
            table.add_row(
                scene,
                WORDS.get(figure, figure),
                mean,
                worst,
                *each,
                str(row.get("bar", "")),
                verdict,
            )
        table.add_section()
    return table
