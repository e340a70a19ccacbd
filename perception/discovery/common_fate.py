"""Proposes segments from frames alone: colours that move as one are one segment.

Gestalt psychology's law of common fate in three steps. What differs from the static background is
foreground; its colours are clustered; clusters whose centroids move together, or keep their
distance, are merged into segments, alike colours sooner than unlike ones. A cluster that lies in
two places that move apart is shared by segments; if hardly any of its places touches a segment, it
is a segment of twins: things of one colour, told apart by place.

B frames, H and W of a frame, P colour clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from perception.slots.segments import (
    DEFAULTS,
    LIGHTNESS,
    SegmentConfig,
    SegmentProposals,
    TwinSplit,
    colours_of,
)


class NothingToDiscover(ValueError):
    """Nothing in the frames differs from the background."""


@dataclass(frozen=True)
class ProposalConfig:
    """How colour clusters are made and merged.

    Colour distances are those of `SegmentConfig`, areas mean pixels per frame, coherence at most 1.
    """

    clusters: int = 26
    """Colours that the foreground is divided into."""
    codebook_tries: int = 5
    """Codebooks drawn at most until there are as many segments as wanted."""
    colour_bin: float = 0.04
    """Side of the bins in which colours are counted. A bin weighs as the root of its count, so that
    small objects have colours too."""
    paired_frames: int = 20
    """Frames with both clusters from which it can be told whether they move as one."""
    min_area: float = 5.0
    """Area below which a group of clusters is no segment."""
    colour_price: float = 1.7
    """Price, in coherence, of a squared unit of colour distance between merged clusters."""
    lightness_price: float = 1.5
    """Factor of lightness in that distance: black and white are unlike."""
    hue_price: float = 0.6
    """Price of another hue between large groups: a patch of another colour belongs to an object, a
    large area of it is another object."""
    hue_area: float = 80.0
    """Area of the smaller group from which that price is full."""
    black_lightness: float = 0.05
    """Lightness below which there is hardly a hue."""
    merge_coherence: float = 0.3
    """Coherence less price below which clusters are never merged."""
    sure_coherence: float = 0.8
    """Coherence less price above which they are merged however few segments are left."""
    rest_coherence: float = 0.1
    """`merge_coherence` of groups below `solid_area` if no codebook gives few enough segments."""
    whole_share: float = 0.5
    """Share of a group's usual pixels from which it counts as seen whole."""
    rigid_std: float = 2.0
    """Standard deviation, in pixels, of the offset of two groups below which colour costs less."""
    solid_area: float = 25.0
    """Area of both groups from which that holds."""
    turning_coherence: float = 0.4
    """Coherence from which a kept distance counts half (the ends of a hammer that turns)."""
    two_place_share: float = 0.2
    """Share of the frames in which a cluster lies in two places, from which it may be shared."""
    second_place_share: float = 0.2
    """Share of a cluster's pixels from which its second place counts."""
    alone_share: float = 0.5
    """Share of the places of a shared cluster that touch no segment, from which they are twins; inf
    for none."""
    fit_frames: int = 500
    """Frames to which shared colours and splits are fitted."""
    frames: int = 1500
    """Frames from which segments are proposed."""


def propose_segments(
    images: Tensor,
    foreground: Tensor,
    wanted: int,
    rng: np.random.Generator,
    splits: int = 0,
    moved: Tensor | None = None,
    config: ProposalConfig = ProposalConfig(),
    segments: SegmentConfig = DEFAULTS,
) -> SegmentProposals:
    """Propose about as many segments as wanted, more if more move apart.

    Args:
        images: (B, 3, H, W) in [0, 1].
        foreground: (B, H, W) bool.
        wanted: Number of segments before splits.
        rng: Draws colours.
        splits: How many of the segments that move most (a robot does, what it handles does not) are
            split in two.
        moved: (B, H, W) bool, pixels that differ from the frame before; needed for splits.
        config: Thresholds.
        segments: Thresholds of the proposals.

    Returns:
        The fitted proposals.

    Raises:
        NothingToDiscover: If nothing differs from the background.
    """
    pixels = colours_of(images).permute(0, 2, 3, 1)[foreground].numpy()
    found: list[tuple[int, _Clusters, list[list[int]]]] = []
    while len(found) < config.codebook_tries and (not found or found[-1][0] != 0):
        codebook = _codebook(pixels, config, rng)
        clusters = _Clusters(codebook, images, foreground, config, segments)
        groups = clusters.segments(wanted, config.merge_coherence)
        found.append((len(groups) + clusters.twin_count - wanted, clusters, groups))
    spare, clusters, groups = min(found, key=lambda candidate: abs(candidate[0]))
    if spare > 0:
        groups = clusters.segments(wanted, config.rest_coherence)
    groups = groups + [twins.clusters for twins in clusters.twins]
    codebook = clusters.codebook
    owner = torch.full((len(codebook),), -1)
    for segment, group in enumerate(groups):
        owner[group] = segment
    counts = [twins.count for twins in clusters.twins]
    proposals = SegmentProposals(
        torch.from_numpy(codebook),
        owner,
        len(groups),
        min(splits, len(groups) - len(counts)),
        segments,
        counts,
    )
    for split, twins in zip(proposals.twins, clusters.twins, strict=True):
        cast(TwinSplit, split).size.fill_(twins.size)
    few = slice(None, None, max(1, len(images) // config.fit_frames))
    proposals.fit(images[few], foreground[few].float())
    if splits:
        assert moved is not None, "the segments that move most are split"
        proposals.fit_splits(images[few], foreground[few].float(), moved[few])
    proposals.tabulate_unseen()
    return proposals


def _codebook(
    pixels: NDArray[np.float32], config: ProposalConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(P, 3) colours of clusters, from foreground pixels (L, 3)."""
    if len(pixels) == 0:
        raise NothingToDiscover(
            "nothing differs from the background: there is nothing to discover; try more "
            "frames, or a lower threshold"
        )
    bins, index, counts = np.unique(
        np.round(pixels / config.colour_bin).astype(int),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    means = np.zeros(bins.shape)
    np.add.at(means, index.ravel(), pixels)
    means /= counts[:, None]
    often = counts >= min(max(2, 1e-5 * len(pixels)), counts.max())
    weights = np.sqrt(np.where(often, counts, 0))
    drawn = means[rng.choice(len(means), 20_000, p=weights / weights.sum())]
    count = min(config.clusters, len(np.unique(drawn, axis=0)))
    tries = [kmeans2(drawn, count, minit="++", seed=rng) for _ in range(8)]
    best = min(tries, key=lambda fit: ((drawn - fit[0][fit[1]]) ** 2).sum())
    return np.asarray(best[0], np.float32)


def coherence(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """How far two paths (T, 2) move as one.

    Returns:
        1 less the variance of their difference in the sum of their variances: 1 if they keep their
        offset, 0 if they are independent.
    """
    both = one.var(axis=0).sum() + other.var(axis=0).sum()
    return float(1 - (one - other).var(axis=0).sum() / max(both, 1e-6))


@dataclass
class _Places:
    """The places of a mask in a frame, M of them, the largest first."""

    sizes: NDArray[np.int64]
    """(M,) pixels."""
    centres: NDArray[np.float64]
    """(M, 2)."""
    alone: NDArray[np.bool_]
    """(M,) whether nothing of another segment touches them."""


@dataclass
class _Twins:
    """Things of one colour."""

    clusters: list[int]
    count: int
    """How many are in sight at once."""
    size: float
    """Median pixels of one."""


class _Clusters:
    """The clusters of one codebook (P, 3) in frames, and how they move.

    Takes the frames and configs of `propose_segments`.
    """

    def __init__(
        self,
        codebook: NDArray[np.float32],
        images: Tensor,
        foreground: Tensor,
        config: ProposalConfig,
        assignment: SegmentConfig,
    ) -> None:
        self.codebook, self.config, self.min_pixels = codebook, config, assignment.min_pixels
        count = len(codebook)
        nobody = SegmentProposals(torch.from_numpy(codebook), torch.full((count,), -1), 0)
        labels = np.full(foreground.shape, -1)
        pixels = images.permute(0, 2, 3, 1)[foreground]
        labels[foreground.numpy()] = nobody.clusters(pixels).numpy()
        self.mass, self.centroids = _moments(labels, count)
        self.weight = self.mass.sum(axis=0)
        some = labels[:: max(1, len(labels) // 400)]
        self.owned = [c for c in range(count) if not self._shared(self._places(some == c))]
        self.twins = self._find_twins(some)
        self.twin_count = sum(twins.count for twins in self.twins)

    def segments(self, wanted: int, small_coherence: float) -> list[list[int]]:
        """Groups of clusters that are segments.

        small_coherence: `merge_coherence` of groups below `solid_area` while there are more than
        wanted.
        """
        groups = [
            group
            for group in self._merge(
                [[c] for c in self.owned], wanted - self.twin_count, small_coherence
            )
            if self.mass[:, group].sum(axis=1).mean() >= self.config.min_area
        ]
        if groups or self.twins:
            return groups
        return [list(range(len(self.codebook)))]  # a single speck is an object too

    def _merge(
        self, groups: list[list[int]], wanted: int, small_coherence: float
    ) -> list[list[int]]:
        """Merge groups two by two, the surest first."""
        config, left = self.config, list(range(len(groups)))
        known: dict[tuple[int, int], float] = {}
        while len(left) > 1:
            sizes = {group: self._area(groups[group]) for group in left}
            many = sum(size >= config.min_area for size in sizes.values()) > wanted
            # Too many segments are merged sooner, the smaller of them soonest; groups too small to
            # be a segment are merged anyway.
            small = small_coherence if many else config.merge_coherence
            large = config.merge_coherence if many else config.sure_coherence
            area = config.solid_area if many else config.min_area
            mergeable = []
            for pair in combinations(left, 2):
                if pair not in known:
                    known[pair] = self._affinity(*(groups[group] for group in pair))
                lesser = min(sizes[group] for group in pair)
                if known[pair] >= (small if lesser < area else large):
                    mergeable.append((known[pair], pair))
            if not mergeable:
                break
            one, other = max(mergeable)[1]
            groups[one] += groups[other]
            left.remove(other)
            known = {pair: value for pair, value in known.items() if one not in pair}
        return [groups[group] for group in left]

    def _area(self, group: list[int]) -> float:
        return self.weight[group].sum() / len(self.mass)

    def _path(self, group: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels (B,) and centroid (B, 2) of a group."""
        pixels = self.mass[:, group].sum(axis=1)
        sums = (self.mass[:, group, None] * self.centroids[:, group]).sum(axis=1)
        return pixels, sums / np.maximum(pixels, 1)[:, None]

    def _affinity(self, one: list[int], other: list[int]) -> float:
        """Coherence of two groups, less the price of their colours."""
        config = self.config
        (pixels, path), (others, other_path) = self._path(one), self._path(other)
        first, second = (
            np.average(self.codebook[group], axis=0, weights=self.weight[group])
            for group in (one, other)
        )
        seen = (pixels >= self.min_pixels) & (others >= self.min_pixels)
        if seen.sum() < config.paired_frames:
            # Never seen together: one object in two lights, if colours are much alike.
            return 1 - 3 * float(np.linalg.norm(first - second))
        lesser = min(self._area(one), self._area(other))
        scaled = (first - second) * [config.lightness_price, 1, 1]
        hues = float(np.linalg.norm(self._hue(first) - self._hue(second)))
        price = config.colour_price * float(np.square(scaled).sum())
        price += config.hue_price * min(1.0, lesser / config.hue_area) ** 2 * hues
        usual, others_usual = (np.quantile(area, 0.9) for area in (pixels, others))
        whole = seen & (pixels >= config.whole_share * usual)
        whole &= others >= config.whole_share * others_usual
        if lesser >= config.solid_area and whole.sum() >= config.paired_frames:
            variance = float((path - other_path)[whole].var(axis=0).sum())
            price *= min(1.0, variance / config.rigid_std**2)
        path, other_path = path[seen], other_path[seen]
        together = coherence(path, other_path)
        if together > config.turning_coherence and lesser < config.solid_area:
            distance = np.linalg.norm(path - other_path, axis=1)
            spread = path.var(axis=0).sum() + other_path.var(axis=0).sum()
            kept = 1 - 2 * float(distance.var() / max(spread, 1e-6))
            together = (together + max(together, kept)) / 2
        return together - price

    def _hue(self, colour: NDArray[np.floating]) -> NDArray[np.floating]:
        """Direction (3,) of a colour (3,) from black: the same for all its shades."""
        lab = colour / [LIGHTNESS, 1, 1]
        return lab / np.linalg.norm(lab + [self.config.black_lightness, 0, 0])

    def _find_twins(self, labels: NDArray[np.int64]) -> list[_Twins]:
        """Find shared clusters (of label maps (B, H, W)) whose places are things of their own."""
        shared = [[c] for c in range(len(self.codebook)) if c not in self.owned]
        owned = np.isin(labels, self.owned)
        twins = []
        for group in self._merge(shared, 0, self.config.merge_coherence):
            places = self._places(np.isin(labels, group), owned)
            several = [of for of in places if len(of.sizes) > 1]
            alone = [own for of in several for own in of.alone]
            if alone and np.mean(alone) >= self.config.alone_share and self._shared(places):
                counts = [len(of.sizes) for of in places]
                count = int(np.quantile(counts, 1 - self.config.two_place_share, method="higher"))
                sizes = [of.sizes for of in several if len(of.sizes) == count]
                twins.append(_Twins(group, count, float(np.median(sizes))))
        return twins

    def _places(
        self, masks: NDArray[np.bool_], others: NDArray[np.bool_] | None = None
    ) -> list[_Places]:
        """Places of masks (B, H, W) where there are enough pixels; others: what may touch them."""
        found = []
        for number, mask in enumerate(masks):
            if mask.sum() < self.min_pixels + 2:
                continue
            # Blobs less than five pixels apart count as one.
            count, blobs, _, centres = cv2.connectedComponentsWithStats(
                cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
            )
            sizes = np.bincount(blobs[mask], minlength=count)[1:]
            least = max(self.min_pixels, self.config.second_place_share * mask.sum())
            chosen = np.argsort(-sizes)
            chosen = chosen[sizes[chosen] >= least]
            touching = blobs[others[number]] if others is not None else np.empty(0, np.int32)
            found.append(
                _Places(sizes[chosen], centres[1:][chosen], ~np.isin(chosen + 1, touching))
            )
        return found

    def _shared(self, places: list[_Places]) -> bool:
        """Whether a cluster often lies in two places that do not move as one."""
        config = self.config
        pairs = [of.centres[:2] for of in places if len(of.sizes) > 1]
        if len(pairs) < max(config.paired_frames, config.two_place_share * len(places)):
            return False
        both = np.array(pairs, np.float64)  # (pairs, 2, 2)
        offsets = both[:, 0] - both[:, 1]
        axis = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
        # Which of the two is the first is not known: their offsets are to point one way.
        backwards = offsets @ axis < 0
        both[backwards] = both[backwards][:, ::-1]
        return coherence(both[:, 0], both[:, 1]) < 0.5


def _moments(
    labels: NDArray[np.int64], clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels (B, P) and centroids (B, P, 2) of clusters in label maps (B, H, W), else -1."""
    frame, y, x = np.nonzero(labels >= 0)
    cell = frame * clusters + labels[frame, y, x]
    count = len(labels) * clusters
    mass = np.bincount(cell, minlength=count).astype(np.float64)
    sums = np.stack([np.bincount(cell, place, minlength=count) for place in (x, y)], axis=-1)
    centroids = (sums / np.maximum(mass, 1)[:, None]).reshape(-1, clusters, 2)
    return mass.reshape(-1, clusters), centroids
