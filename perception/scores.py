"""What a slot model is worth on episodes whose truth is known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from perception.metrics import best_overlaps, match_slots, matched_overlaps, mean_ari, position_r2
from perception.slot_model import Sight, SlotModel


@torch.no_grad()
def see_episodes(model: SlotModel, frames: NDArray[np.uint8]) -> list[Sight]:
    """Filter episodes (E, T, H, W, 3) from their first frames on: T sights of batch E."""
    return model.see_sequence(torch.from_numpy(frames).transpose(0, 1))


def label_map(sight: Sight) -> NDArray[np.int64]:
    """The likeliest slot of each pixel, (B, H, W): 0 for background, 1 .. K for slots."""
    shares = torch.cat([1 - sight.alpha.unsqueeze(1), sight.decoded.masks], dim=1)
    return shares.argmax(dim=1).numpy()


def score(
    model: SlotModel, frames: NDArray[np.uint8], segmentation: NDArray[np.int64], positions: NDArray[np.float64]
) -> dict[str, float | list[float] | list[int]]:
    """Scores on episodes: frames (E, T, H, W, 3), segmentation (E, T, H, W), positions (E, T, N, 2) in any unit.

    The linear map behind `position_r2` is fitted on the episodes of even index and tested on the others.
    """
    sights = see_episodes(model, frames)
    labels = np.stack([label_map(s) for s in sights], axis=1)
    coordinates = np.stack([s.coordinates.double().numpy() for s in sights], axis=1)  # (E, T, K, 4)
    centroids = coordinates[..., :2]
    objects = positions.shape[2]
    truth, guess = flat(segmentation), flat(labels)
    masks = guess[:, None] == np.arange(1, model.config.slots + 1)[None, :, None, None]
    matched = matched_overlaps(truth, masks, objects)
    slots = match_slots(flat(positions), flat(centroids))
    presence = flat(coordinates)[..., 3].mean(axis=0)
    spare = np.setdiff1d(np.arange(model.config.slots), slots)
    return {
        "fg_ari": mean_ari(truth, guess, with_background=False),
        "ari": mean_ari(truth, guess, with_background=True),
        "mbo": float(np.nanmean(best_overlaps(truth, masks, objects))),
        "miou": float(np.nanmean(matched)),
        "iou": np.nanmean(matched, axis=0).tolist(),
        "position_r2": position_r2(flat(positions[::2]), flat(centroids[::2]), flat(positions[1::2]), flat(centroids[1::2])).tolist(),
        "slots": slots.tolist(),
        "presence": presence[slots].tolist(),
        "spare_presence": presence[spare].tolist(),
    }


def flat(values: NDArray) -> NDArray:
    """(E, T, ...) -> (E * T, ...)."""
    return values.reshape(-1, *values.shape[2:])


def resting_jitter(model: SlotModel, frames: NDArray[np.uint8]) -> float:
    """How far the centroid of an object at rest wanders from frame to frame: the largest 99% quantile over slots, in the unit of
    centroids ([-1, 1]), of episodes (E, T, H, W, 3).

    At rest is a slot whose mask covers pixels that are the same in two neighbouring frames; no truth is needed.
    """
    sights = see_episodes(model, frames)
    jitter: list[list[float]] = [[] for _ in range(model.config.slots)]
    for t in range(1, len(sights)):
        before, now = sights[t - 1], sights[t]
        changed = torch.from_numpy((frames[:, t] != frames[:, t - 1]).any(axis=-1)).float()
        touched = torch.einsum("bkhw,bhw->bk", now.decoded.masks + before.decoded.masks, changed)
        resting = (touched < 0.5) & (now.coordinates[..., 3] > 0.5) & (before.coordinates[..., 3] > 0.5)
        moved = (now.coordinates - before.coordinates)[..., :2].abs().amax(dim=-1)
        for k in range(model.config.slots):
            jitter[k] += moved[:, k][resting[:, k]].tolist()
    return max((float(np.quantile(j, 0.99)) for j in jitter if j), default=0.0)
