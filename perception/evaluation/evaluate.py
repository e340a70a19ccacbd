"""Scores of a slot model on episodes whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from perception.encoding import MOVED
from perception.evaluation import metrics
from perception.slots.model import SEEN, SlotModel, SlotOutput

Score = float | None | list[float | None] | list[int]

MIN_GAP = 5
"""Frames within which cases of one object look alike."""
AT_REST = 1e-4
"""Displacement in a step below which an object rests, in units of the world."""
NOISE_MEDIAN = 1.26
"""Median of the largest of three channels' changes, in their standard deviation, if normal."""
NOISE_LIMIT = 5.0
"""Standard deviations above which a change is no noise: hardly any of an object's hundred pixels
exceeds it."""


@torch.no_grad()
def encode_episodes(model: SlotModel, frames: NDArray[np.uint8]) -> list[SlotOutput]:
    """Encode episodes (E, T, H, W, 3) from their first frames on: T outputs of batch E."""
    return model.encode_video(torch.from_numpy(frames).transpose(0, 1).to(model.sizes.device))


def argmax_masks(output: SlotOutput) -> NDArray[np.int64]:
    """The likeliest slot of each pixel (B, H, W): 0 for background, 1 .. K for slots."""
    shares = torch.cat([1 - output.alpha.unsqueeze(1), output.decoded.masks], dim=1)
    return shares.argmax(dim=1).cpu().numpy()


def evaluate(
    model: SlotModel,
    frames: NDArray[np.uint8],
    segmentation: NDArray[np.int64],
    objects: int,
    positions: NDArray[np.float64] | None = None,
    twins: Sequence[int] = (),
) -> dict[str, Score]:
    """Score a slot model on episodes.

    The foreground (`fg_ari`, `video_fg_ari`, `mbo`, `miou`) is the objects of interest and the
    robot; `ari` counts every pixel and label.

    Args:
        model: The slot model.
        frames: (E, T, H, W, 3).
        segmentation: (E, T, H, W), 0 for the static background, 1 .. `objects` for the objects of
            interest, objects + 1 for the rest of the robot, more for what else moves.
        objects: Number of objects of interest.
        positions: (E, T, objects, 2 or 3), with which is measured what remembering hidden objects
            (`perception.slots.occlusion`) does: `moves_at_rest`, the share of steps in which the
            slot of an object at rest moves by MOVED or more, as seen and as remembered, and
            `misses_motion`, the share of steps with a motion that is seen, and true, in which the
            remembered slot does not move so far: of all objects of interest, hidden or not.
        twins: Objects of interest that look alike. Nothing tells which is which but where they have
            been since an episode began, so that in each episode they bear the names, one for all
            of its frames, by which they fit their slots best.

    Returns:
        Scores by name. None where there is nothing to measure: an object never in sight, one that
        never moves, FG-ARI of a single object.
    """
    outputs = encode_episodes(model, frames)
    labels = np.stack([argmax_masks(output) for output in outputs], axis=1)  # (E, T, H, W)
    coordinates = np.stack(
        [output.coordinates.double().cpu().numpy() for output in outputs], axis=1
    )  # (E, T, K, 4)
    slots = coordinates.shape[2]
    if len(twins):
        segmentation, positions = renamed(segmentation, positions, labels, objects, slots, twins)
    presence = coordinates[..., 3].mean(axis=(0, 1))
    truth, guess = (maps.reshape(-1, *maps.shape[2:]) for maps in (segmentation, labels))
    found = compare(truth, guess, objects, slots)
    owners = metrics.match_slots(found.iou)
    centres = metrics.mask_centres(segmentation, objects)
    # Nothing tells where an object without a slot is.
    centroids = coordinates[:, :, owners[:objects], :2] * (owners[:objects, None] >= 0)
    position_r2 = metrics.position_r2(centres, centroids)
    iou = _mean(found.matched)
    foreground = found.table[:, 1 : objects + 2]
    episodes = foreground.reshape(*segmentation.shape[:2], *foreground.shape[1:]).sum(axis=1)
    several = (foreground.sum(axis=(0, 2)) > 0).sum() > 1
    figures = {
        "fg_ari": _mean(metrics.adjusted_rand_index(foreground)) if several else np.nan,
        "ari": metrics.adjusted_rand_index(found.table).mean(),
        "worst_iou": _least(iou[:objects]),
        "mean_position_r2": _mean(position_r2),
        "worst_position_r2": _least(position_r2),
        "mbo": _mean(metrics.best_overlaps(found.iou).ravel()),
        "miou": _mean(found.matched.ravel()),
        "robot_iou": iou[objects],
        "video_fg_ari": _mean(metrics.adjusted_rand_index(episodes)) if several else np.nan,
        "switch_rate": metrics.switch_rate(found.slots.reshape(*segmentation.shape[:2], -1)),
    }
    if positions is not None:
        whole = remembered(model, outputs)
        figures |= memory_errors(positions, coordinates, whole, owners[:objects])
    spare = np.setdiff1d(np.arange(slots), owners)
    return {name: _number(value) for name, value in figures.items()} | {
        "iou": [_number(value) for value in iou[:objects]],
        "position_r2": [_number(value) for value in position_r2],
        "slots": owners.tolist(),
        "presence": presence[owners[owners >= 0]].tolist(),
        "spare_presence": presence[spare].tolist(),
    }


def renamed(
    segmentation: NDArray[np.int64],
    positions: NDArray[np.float64] | None,
    labels: NDArray[np.int64],
    objects: int,
    slots: int,
    twins: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Let twins change names in episodes where others fit their slots better.

    Args:
        segmentation: As of `evaluate`.
        positions: Likewise.
        labels: (E, T, H, W) predicted.
        objects: Likewise.
        slots: K.
        twins: Likewise.

    Returns:
        The segmentation and the positions under the new names.
    """
    truth, guess = (maps.reshape(-1, *maps.shape[2:]) for maps in (segmentation, labels))
    iou = compare(truth, guess, objects, slots).iou
    owners = metrics.match_slots(iou)[list(twins)]
    fit = _mean(iou.reshape(*labels.shape[:2], *iou.shape[1:]).swapaxes(0, 1))  # (E, N, K)
    fit = np.nan_to_num(fit)[:, list(twins)][:, :, owners]
    segmentation, places = segmentation.copy(), None if positions is None else positions.copy()
    for episode, overlap in enumerate(fit):
        names = np.arange(segmentation.max() + 1)
        objects_of = np.array(twins)[linear_sum_assignment(overlap.T, maximize=True)[1]]
        names[objects_of + 1] = np.array(twins) + 1
        segmentation[episode] = names[segmentation[episode]]
        if positions is not None and places is not None:
            places[episode][:, list(twins)] = positions[episode][:, objects_of]
    return segmentation, places


def remembered(model: SlotModel, outputs: list[SlotOutput]) -> NDArray[np.float64]:
    """Coordinates (E, T, K, 4) with what other objects hide, from an episode's T outputs."""
    places: list[NDArray[np.float64]] = []
    carried: dict[str, torch.Tensor] = {}
    for output in outputs:
        coordinates, carried = model.remember(output, carried)
        places.append(coordinates.double().cpu().numpy())
    return np.stack(places, axis=1)


def memory_errors(
    positions: NDArray[np.float64],
    seen: NDArray[np.float64],
    whole: NDArray[np.float64],
    owners: NDArray[np.int64],
) -> dict[str, float]:
    """Compare how slots move, as seen and as remembered, with how the objects move.

    Args:
        positions: True ones (E, T, N, 2 or 3).
        seen: Coordinates of slots (E, T, K, 4), as seen.
        whole: The same with what others hide.
        owners: (N,) the slot of each object, -1 for none.

    Returns:
        `moves_at_rest_seen`, `moves_at_rest` and `misses_motion`, as of `evaluate`, each NaN where
        no step counts.
    """
    positions = positions[:, :, owners >= 0]
    slots = owners[owners >= 0]
    rests = np.abs(np.diff(positions, axis=1)).max(axis=-1, initial=0.0) < AT_REST
    there = seen[:, :, slots, 3] > SEEN
    followed = there[:, 1:] & there[:, :-1]
    as_seen, remembered = (
        np.linalg.norm(np.diff(places[:, :, slots, :2], axis=1), axis=-1) >= MOVED
        for places in (seen, whole)
    )
    rests, moves = rests & followed, ~rests & followed & as_seen
    return {
        "moves_at_rest_seen": float(as_seen[rests].mean()) if rests.any() else np.nan,
        "moves_at_rest": float(remembered[rests].mean()) if rests.any() else np.nan,
        "misses_motion": float((~remembered)[moves].mean()) if moves.any() else np.nan,
    }


@dataclass
class Comparison:
    """Metrics of true and predicted masks of B images, of N objects, the robot included."""

    table: NDArray[np.int64]
    """(B, labels, K + 1): pixels of each true label in each slot."""
    iou: NDArray[np.float64]
    """(B, N, K), NaN for objects out of sight."""
    matched: NDArray[np.float64]
    """(B, N): IoU under the best matching of the image, in which the robot takes part: a large arm
    cannot stand in for a lost cube."""
    slots: NDArray[np.int64]
    """(B, N): the slot under that matching, -1 for none."""


def compare(
    segmentation: NDArray[np.int64], labels: NDArray[np.int64], objects: int, slots: int
) -> Comparison:
    """Compare label maps image by image.

    Args:
        segmentation: (B, H, W) true labels.
        labels: (B, H, W) predicted labels.
        objects: Number of objects of interest.
        slots: K.

    Returns:
        The comparison.
    """
    table = metrics.contingency(
        segmentation, labels, max(int(segmentation.max()), objects + 1), slots
    )
    iou = metrics.overlaps(table, objects + 1)
    return Comparison(table, iou, *metrics.matched_overlaps(iou))


def worst_frames(matched: NDArray[np.float64], count: int) -> list[tuple[int, int]]:
    """Find the worst cases of one episode.

    Args:
        matched: (T, N) IoU.
        count: Most cases wanted.

    Returns:
        (frame, object) pairs, the worst first: none that is perfect, and of those of one object
        within MIN_GAP frames, which look alike, only the worst.
    """
    chosen: list[tuple[int, int]] = []
    for cell in np.argsort(matched, axis=None)[: (matched < 1).sum()]:
        frame, item = divmod(int(cell), matched.shape[1])
        if all(item != other or abs(frame - at) > MIN_GAP for at, other in chosen):
            chosen.append((frame, item))
    return chosen[:count]


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is there; NaN where nothing is."""
    seen = ~np.isnan(values)
    total, count = np.where(seen, values, 0).sum(axis=0), seen.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _least(values: NDArray[np.float64]) -> float:
    """The least of what is there; NaN where nothing is."""
    return float(np.fmin.reduce(values))


def _number(value: float | np.floating | NDArray[np.float64]) -> float | None:
    return None if np.isnan(value) else float(value)


@torch.no_grad()
def resting_jitter(model: SlotModel, frames: NDArray[np.uint8]) -> float:
    """Measure how far the centroid of an object at rest moves from frame to frame, without truth.

    A slot is at rest where no pixel under its mask changes by more than the frames' noise. If no
    slot ever is, the frames are encoded again with as much noise added, and the difference of the
    centroids counts, which is rather too much than too little.

    Args:
        model: The slot model.
        frames: (E, T, H, W, 3).

    Returns:
        The largest 99% quantile over slots, in the unit of centroids ([-1, 1]).
    """
    outputs = encode_episodes(model, frames)
    jitter: list[list[float]] = [[] for _ in range(model.config.slots)]
    levels = []
    for t, (before, now) in enumerate(pairwise(outputs), start=1):
        change = np.abs(frames[:, t].astype(np.int16) - frames[:, t - 1]).max(axis=-1)
        noise = np.median(change, axis=(1, 2)) / NOISE_MEDIAN  # (E,) standard deviation
        levels.append(noise.mean())
        changed = torch.from_numpy(change > NOISE_LIMIT * noise[:, None, None]).to(now.alpha)
        touched = torch.einsum("bkhw,bhw->bk", now.decoded.masks + before.decoded.masks, changed)
        _add_moves(jitter, before, now, touched < 0.5)
    sigma = float(np.mean(levels)) / 2**0.5 if levels else 0.0
    if sigma > 0 and not any(jitter):
        noisy = frames + np.random.default_rng(0).normal(0, sigma, frames.shape)
        others = encode_episodes(model, noisy.round().clip(0, 255).astype(np.uint8))
        for output, other in zip(outputs, others, strict=True):
            _add_moves(jitter, output, other, True)
    return max((float(np.quantile(j, 0.99)) for j in jitter if j), default=0.0)


def _add_moves(
    jitter: list[list[float]], before: SlotOutput, now: SlotOutput, chosen: torch.Tensor | bool
) -> None:
    """Add how far each slot's centroid moved where it is present and `chosen` (B, K)."""
    there = (before.coordinates[..., 3] > SEEN) & (now.coordinates[..., 3] > SEEN) & chosen
    moves = (now.coordinates - before.coordinates)[..., :2].abs().amax(dim=-1)
    for own, distance, present in zip(jitter, moves.T, there.T, strict=True):
        own += distance[present].tolist()
