"""The scores of several seeds as one table: their mean, the worst, each of them, and the bar."""

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
    "moves_at_rest": "slots of things at rest that move",
    "moves_at_rest_seen": "the same without memory of what is hidden",
    "misses_motion": "motions seen that the memory misses",
}
"""Words for those scores of `evaluate` that are one number."""
LOWER_IS_BETTER = ("switch_rate", "moves_at_rest", "moves_at_rest_seen", "misses_motion")
MIN_SEED_SHARE = 0.8
"""Share of the seeds that have to meet a bar, as well as their mean."""


def summarise(
    scores: Mapping[int, Mapping[str, Any]], bars: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Summarise the seeds' scores on one scene.

    Args:
        scores: Scores of each seed, as of `evaluate`.
        bars: Least value wanted, by figure.

    Returns:
        By figure that is one number, and known for some seed unless it has a bar: `mean`, `worst`,
        `worst_seed`, `each` (by seed), and with a bar `bar`, `meeting` (number of seeds that meet
        it) and `met` (the mean does, and at least MIN_SEED_SHARE of the seeds).
    """
    summary: dict[str, dict[str, Any]] = {}
    for figure in next(iter(scores.values())):
        each = {seed: values[figure] for seed, values in scores.items()}
        known = {seed: value for seed, value in each.items() if isinstance(value, float)}
        if not known and figure not in bars:
            continue
        pick = max if figure in LOWER_IS_BETTER else min
        worst = pick(known, key=lambda seed: known[seed], default=None)
        mean = sum(known.values()) / len(known) if known else None
        summary[figure] = {
            "mean": mean,
            "worst": None if worst is None else known[worst],
            "worst_seed": worst,
            "each": each,
        }
        if figure in bars:
            bar, meeting = bars[figure], sum(value >= bars[figure] for value in known.values())
            enough = meeting >= math.ceil(MIN_SEED_SHARE * len(each))
            met = mean is not None and mean >= bar and enough
            summary[figure] |= {"bar": bar, "meeting": meeting, "met": met}
    return summary


def draw_table(
    summaries: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: Sequence[int], title: str
) -> Table:
    """Summaries of `summarise` by scene, as a table for the terminal."""
    table = Table(title=title)
    for heading in ("scene", "figure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("mean", "worst", *(f"seed {seed}" for seed in seeds), "bar", "met"):
        table.add_column(heading, justify="right", no_wrap=True)
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
