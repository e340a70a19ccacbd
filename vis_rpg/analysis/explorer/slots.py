"""What slots see in each step of an episode, and the recorded frames in which they fail.

E episodes of at most T steps, K slots; H and W of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perception.evaluation.evaluate import worst_frames
from perception.evaluation.visualise import overlay, reconstruction, slot_colour
from perception.slots.model import SEEN, SlotOutput

EACH = 3
"""Failures that are shown of each measure."""
DARK = 0.12
"""Brightness of what is not a slot's."""


def sheet(frame: np.ndarray, output: SlotOutput) -> np.ndarray:
    """Draw masks over the frame, the reconstruction, and each slot alone, side by side.

    Args:
        frame: (H, W, 3) uint8.
        output: Its slots.

    Returns:
        (H, (2 + K) * W, 3) uint8.
    """
    masks = output.decoded.masks[0].cpu().numpy()
    alone = masks[..., None] * frame + (1 - masks[..., None]) * DARK * 255  # (K, H, W, 3)
    tiles = [overlay(frame, masks), reconstruction(output), *alone.astype(np.uint8)]
    return np.concatenate(tiles, axis=1)


def glance(frame: np.ndarray, output: SlotOutput) -> np.ndarray:
    """Draw the frame (H, W, 3) and, to its right, its masks."""
    masks = overlay(frame, output.decoded.masks[0].cpu().numpy())
    return np.concatenate([np.pad(frame, ((0, 0), (0, 2), (0, 0)), constant_values=255), masks], 1)


def colours(slots: int) -> list[str]:
    """Return the colour of each slot."""
    return [f"rgb({', '.join(f'{value:.0f}' for value in slot_colour(k))})" for k in range(slots)]


def find_failures(measures: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> list[dict[str, Any]]:
    """Find the frames in which perception is worst by measures that need no labels.

    Of cases of one slot within some steps of an episode, which look alike where episodes begin
    alike, only the worst is taken.

    Args:
        measures: For each episode and step those of `perception.evaluation.diagnostics`, of one
            frame each.

    Returns:
        At most EACH cases of each measure: `rollout` and `step`, `slots`, and in words, `why`.
    """
    presence, jump, error, overlaps = (
        _stacked([[step[name][0] for step in episode] for episode in measures])
        for name in ("presence", "jump", "error", "overlap")
    )
    slots = presence.shape[2]
    usual = np.nanmedian(presence, axis=(0, 1))
    missed = np.where((usual > SEEN) & (presence <= SEEN), usual - presence, 0)

    def lost(k: int, score: float) -> str:
        return (
            f"slot {k} is lost or hidden: presence {usual[k] - score:.2f}, {usual[k]:.2f} in the "
            "median frame"
        )

    def jumps(k: int, score: float) -> str:
        return (
            f"slot {k} jumps by {score:.1%} of the frame's side in one step, "
            f"{np.nanmedian(jump[..., k]):.1%} in the median"
        )

    def differs(k: int, score: float) -> str:
        return (
            f"slot {k} is reconstructed with an error of {score:.3f}, "
            f"{np.nanmedian(error[..., k]):.3f} in the median"
        )

    def overlap(pair: int, score: float) -> str:
        first, second = divmod(pair, slots)
        return f"slots {first} and {second} lie on one object: overlap {score:.2f} of 1"

    kinds = (
        (lost, missed),
        (overlap, overlaps.reshape(*overlaps.shape[:2], -1)),
        (jumps, jump),
        (differs, error),
    )
    cases = []
    for why, scores in kinds:
        for step, item in worst_frames(1 - np.nanmax(scores, axis=0), EACH):
            rollout = int(np.nanargmax(scores[:, step, item]))
            words = why(item, float(scores[rollout, step, item]))
            which = divmod(item, slots) if why is overlap else (item,)
            cases.append({"rollout": rollout, "step": step, "slots": list(which), "why": words})
    return cases


def _stacked(episodes: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return (E, T, ...), NaN from an episode's end on."""
    longest = max(map(len, episodes))
    stacked = np.full((len(episodes), longest, *episodes[0][0].shape), np.nan)
    for own, episode in zip(stacked, episodes, strict=True):
        own[: len(episode)] = episode
    return stacked
