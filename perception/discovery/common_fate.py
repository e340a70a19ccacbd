"""Which things a fixed camera sees, from frames alone: colours that move as one are one thing.

Gestalt psychology's law of common fate, made an algorithm in three steps: what differs from the
static background is foreground; its colours are clustered into parts; parts whose centroids move
together, or keep their distance, are merged into things, alike colours sooner than unlike ones. A
colour that lies in two places that move apart is shared by things.

B frames, H and W of a frame, P parts.
"""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from perception.slots.segments import LEAST, LIGHTNESS, SegmentProposals, colours_of

PARTS = 26
"""Colours that the foreground is divided into."""
PALETTES = 5
"""How often they are drawn, until as many things come out as are looked for: two whites may fall
into one part by chance."""
BIN = 0.04
"""Side of the bins in which colours are counted; a bin weighs as the root of its count, so that
small things have colours too."""
TOGETHER = 20
"""Frames with both from which it can be told whether two parts move as one."""
SMALL = 5.0
"""Mean pixels a frame below which a group of parts is no thing of its own."""
UNLIKE = 1.7
"""Price of a squared unit of colour distance, in coherence, when parts are merged: shades are
cheap, other colours dear."""
BRIGHT = 1.5
"""How much more lightness counts there: black and white are unlike."""
HUE, LARGE = 0.6, 80.0
"""Price of another hue between groups of parts of so many pixels a frame; less between smaller
ones: a patch of another colour is a thing's, a large area of it is another thing."""
BLACK = 0.05
"""Lightness below which there is hardly a hue."""
MERGE, SURE = 0.3, 0.8
"""Coherence less that price below which parts are never merged, and above which they are merged
however few are left."""
REST = 0.1
"""The former for groups of less than SOLID pixels, where no palette gives as few things as are
looked for."""
WHOLE = 0.5
"""Share of what is mostly seen of a group of parts from which it counts as seen whole."""
RIGID = 2.0
"""Standard deviation of the way from one group of parts to another, in pixels, below which they are
joined and colour counts less."""
SOLID = 25.0
"""Pixels a frame of both groups from which that is so."""
TURNING = 0.4
"""Coherence from which it counts half whether groups of parts keep their distance, as the ends of a
hammer do that turns."""
TWO_PLACES = 0.2
"""Share of the frames in which a part lies in two places, from which it is looked at whether these
move as one."""
SECOND = 0.2
"""Share of a part's pixels from which its second place counts."""
FIT_IN = 500
"""Frames to which shared colours and limbs are fitted."""


def propose_segments(
    images: Tensor,
    foreground: Tensor,
    most: int,
    rng: np.random.Generator,
    joints: int = 0,
    moved: Tensor | None = None,
) -> SegmentProposals:
    """The things in frames (B, 3, H, W) in [0, 1] with foreground (B, H, W) bool; about `most`,
    more where more move apart. The `joints` of them that move most of the time (a robot does, what
    it handles does not) are divided in two; `moved` (B, H, W) bool tells what differs from the
    frame before.

    Raises ValueError where nothing stands out from the background.
    """
    colours = colours_of(images).permute(0, 2, 3, 1)
    found: list[tuple[NDArray[np.float32], list[list[int]]]] = []
    for _ in range(PALETTES):
        found.append(
            _grouped(images, foreground, _clusters(colours[foreground].numpy(), rng), most)
        )
        if len(found[-1][1]) == most:
            break
    centres, groups = min(
        found, key=lambda centres_and_groups: abs(len(centres_and_groups[1]) - most)
    )
    if len(groups) > most:
        centres, groups = _grouped(images, foreground, centres, most, REST)
    owner = torch.full((len(centres),), -1)
    for thing, group in enumerate(groups):
        owner[group] = thing
    things = SegmentProposals(
        torch.from_numpy(centres), owner, len(groups), min(joints, len(groups))
    )
    few = slice(None, None, max(1, len(images) // FIT_IN))
    things.fit(images[few], foreground[few].float())
    if joints:
        assert moved is not None, "joints are given to what moves most"
        things.find_joints(images[few], foreground[few].float(), moved[few])
    things.tabulate()
    return things


def _grouped(
    images: Tensor,
    foreground: Tensor,
    centres: NDArray[np.float32],
    most: int,
    small_least: float = MERGE,
) -> tuple[NDArray[np.float32], list[list[int]]]:
    """The colours of parts (P, 3), and the groups of parts that are things."""
    nobody = SegmentProposals(torch.from_numpy(centres), torch.full((len(centres),), -1), 0)
    labels = np.full(foreground.shape, -1)
    labels[foreground.numpy()] = nobody.parts(images.permute(0, 2, 3, 1)[foreground]).numpy()
    mass, centroids = _moments(labels, len(centres))
    own = np.array([not _lies_apart(labels, part) for part in range(len(centres))])
    groups = [
        group
        for group in _merged(mass, centroids, centres, own, most, small_least)
        if mass[:, group].sum(axis=1).mean() >= SMALL
    ]
    return centres, groups or [list(range(len(centres)))]  # a single speck is a thing too


def _clusters(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """(P, 3) colours of parts, from foreground pixels (L, 3)."""
    if len(pixels) == 0:
        raise ValueError(
            "nothing differs from the background: there is nothing to discover; try more "
            "frames, or a lower threshold"
        )
    bins, index, counts = np.unique(
        np.round(pixels / BIN).astype(int), axis=0, return_inverse=True, return_counts=True
    )
    means = np.zeros(bins.shape)
    np.add.at(means, index.ravel(), pixels)
    means /= counts[:, None]
    often = counts >= min(max(2, 1e-5 * len(pixels)), counts.max())
    weights = np.sqrt(np.where(often, counts, 0))
    drawn = means[rng.choice(len(means), 20_000, p=weights / weights.sum())]
    most = min(PARTS, len(np.unique(drawn, axis=0)))
    best, least = drawn[:1], np.inf
    for _ in range(8):
        centres, nearest = kmeans2(drawn, most, minit="++", seed=rng)
        cost = ((drawn - centres[nearest]) ** 2).sum()
        if cost < least:
            best, least = centres, cost
    return best.astype(np.float32)


def _moments(
    labels: NDArray[np.int64], parts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels (B, P) and centroid (B, P, 2), in pixels, of each part in label maps (B, H, W), -1 for
    background."""
    frame, y, x = np.nonzero(labels >= 0)
    cell = frame * parts + labels[frame, y, x]
    count = len(labels) * parts
    mass = np.bincount(cell, minlength=count).astype(np.float64)
    sums = np.stack([np.bincount(cell, place, minlength=count) for place in (x, y)], axis=-1)
    return mass.reshape(-1, parts), (sums / np.maximum(mass, 1)[:, None]).reshape(-1, parts, 2)


def coherence(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """How far two paths (T, 2) are one: 1 less the variance of their difference in the sum of their
    variances. 1 where they keep their distance, 0 where they have nothing to do with each other."""
    both = one.var(axis=0).sum() + other.var(axis=0).sum()
    return float(1 - (one - other).var(axis=0).sum() / max(both, 1e-6))


def _merged(
    mass: NDArray[np.float64],
    centroids: NDArray[np.float64],
    colours: NDArray[np.float32],
    own: NDArray[np.bool_],
    most: int,
    small_least: float,
) -> list[list[int]]:
    """Groups of parts (those that `own` a place) that move as one, merged two by two, the surest
    first; small_least: of coherence less price, for groups of less than SOLID pixels where there
    are more than `most`."""
    groups: list[list[int]] = [[part] for part in np.flatnonzero(own).tolist()]
    weight = mass.sum(axis=0)

    def place(group: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pixels = mass[:, group].sum(axis=1)
        return pixels, (mass[:, group, None] * centroids[:, group]).sum(axis=1) / np.maximum(
            pixels, 1
        )[:, None]

    def affinity(one: list[int], other: list[int]) -> float:
        (pixels, path), (others, other_path) = place(one), place(other)
        means = [
            np.average(colours[group], axis=0, weights=weight[group]) for group in (one, other)
        ]
        apart = float(np.linalg.norm(means[0] - means[1]))
        seen = (pixels >= LEAST) & (others >= LEAST)
        if (
            seen.sum() < TOGETHER
        ):  # what is never seen together may be one thing in two lights, if it is much alike
            return 1 - 3 * apart
        lesser = min(weight[one].sum(), weight[other].sum()) / len(mass)
        price = UNLIKE * float(np.square((means[0] - means[1]) * [BRIGHT, 1, 1]).sum())
        price += (
            HUE
            * min(1.0, lesser / LARGE) ** 2
            * float(np.linalg.norm(_hue(means[0]) - _hue(means[1])))
        )
        whole = (
            seen
            & (pixels >= WHOLE * np.quantile(pixels, 0.9))
            & (others >= WHOLE * np.quantile(others, 0.9))
        )
        if lesser >= SOLID and whole.sum() >= TOGETHER:
            price *= min(1.0, float((path - other_path)[whole].var(axis=0).sum()) / RIGID**2)
        together = coherence(path[seen], other_path[seen])
        if together > TURNING and lesser < SOLID:
            distance = np.linalg.norm(path[seen] - other_path[seen], axis=1)
            spread = path[seen].var(axis=0).sum() + other_path[seen].var(axis=0).sum()
            together = (
                together + max(together, 1 - 2 * float(distance.var() / max(spread, 1e-6)))
            ) / 2
        return together - price

    left = list(range(len(groups)))
    known: dict[tuple[int, int], float] = {}
    while len(left) > 1:
        # Too many things are merged sooner, the smaller of them soonest; what is no thing of its
        # own is so anyway.
        sizes = {group: weight[groups[group]].sum() / len(mass) for group in left}
        many = len(left) - sum(size < SMALL for size in sizes.values()) > most
        pairs = []
        for pair in combinations(left, 2):
            if pair not in known:
                known[pair] = affinity(*(groups[group] for group in pair))
            lesser = min(sizes[group] for group in pair)
            least = (
                (small_least if lesser < SOLID else MERGE)
                if many
                else MERGE
                if lesser < SMALL
                else SURE
            )
            pairs += [(known[pair], pair)] if known[pair] >= least else []
        if not pairs:
            break
        one, other = max(pairs)[1]
        groups[one] += groups[other]
        left.remove(other)
        known = {pair: value for pair, value in known.items() if one not in pair}
    return [groups[group] for group in left]


def _hue(colour: NDArray[np.floating]) -> NDArray[np.floating]:
    """Direction of a colour (3,), as `colours_of`, from black: the same for all its shades. (3,),
    at most of length 1."""
    lab = colour / [LIGHTNESS, 1, 1]
    return lab / np.linalg.norm(lab + [BLACK, 0, 0])


def _lies_apart(labels: NDArray[np.int64], part: int) -> bool:
    """Whether a part often lies in two places that do not move as one."""
    seen, pairs = 0, []
    for image in labels[:: max(1, len(labels) // 400)]:
        mask = (image == part).astype(np.uint8)
        if mask.sum() < LEAST + 2:
            continue
        seen += 1
        # Blobs less than five pixels apart count as one.
        count, blobs, _, centres = cv2.connectedComponentsWithStats(
            cv2.dilate(mask, np.ones((5, 5), np.uint8))
        )
        sizes = np.bincount(blobs[mask > 0], minlength=count)[1:]
        if count > 2 and np.sort(sizes)[-2] >= max(LEAST, SECOND * mask.sum()):
            pairs.append(centres[1:][np.argsort(-sizes)[:2]])
    if len(pairs) < max(TOGETHER, TWO_PLACES * seen):
        return False
    places = np.array(pairs, np.float64)  # (pairs, 2, 2)
    offsets = places[:, 0] - places[:, 1]
    axis = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    backwards = (
        offsets @ axis < 0
    )  # which of the two is the first is not known: as their offset points one way
    places[backwards] = places[backwards][:, ::-1]
    return coherence(places[:, 0], places[:, 1]) < 0.5
