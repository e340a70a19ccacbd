"""Segment proposals: which pixels of a frame belong to each segment that discovery found.

A segment owns clusters of colours. A cluster that lies in two places that move apart (white fingers
before a white board) is shared: in every frame its pixels go to the segment that is near and alike,
and specks go to the segment that they lie on. An articulated segment is split in two by how solid
the surroundings of its pixels are. Twins, things of one colour that move apart, are told apart by
place: their pixels are divided among as many of them as are in sight, and each is the one that was
nearest a frame earlier. `perception.discovery.common_fate` finds the segments.

B frames, H and W of a frame, S of its foreground pixels, P colour clusters, N segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import cast

import cv2
import numpy as np
import torch
from kornia.color import rgb_to_lab
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

LIGHTNESS = 0.5
"""Weight of lightness against a and b in colour distances: shading changes mostly lightness."""
RADII = (2, 3, 5, 7)
"""Half widths, in pixels, of the squares whose solidity tells the halves of a split apart."""
LEVELS = 64
"""Levels per primary of the table of unseen colours."""
EXACT = "donot_use_mm_for_euclid_dist"
"""Mode of `torch.cdist`: matrix products in TF32 would blur distances."""


@dataclass(frozen=True)
class SegmentConfig:
    """How pixels are assigned to segments.

    Colour distances are in CIE Lab / 100, with lightness weighted by LIGHTNESS, unless RGB is
    named.
    """

    min_pixels: int = 4
    """Pixels from which a segment counts as seen in a frame."""
    colour_weight: float = 8.0
    """Cost of a unit of colour distance, in nats, when a shared pixel is assigned."""
    min_spread: float = 4.0
    """Least standard deviation of a segment's pixels about its centroid, in pixels."""
    fit_rounds: int = 4
    """Rounds that fit how often segments have pixels of shared clusters."""
    assign_rounds: int = 6
    """Rounds of expectation maximisation over shared pixels, and over the halves of a split."""
    split_rounds: int = 10
    """Rounds of expectation maximisation that fit a split."""
    shared_prob: float = 0.15
    """Probability of a segment, given a shared cluster, from which the cluster is in its codebook.
    """
    min_prob: float = 1e-3
    """Least probability of a segment, given a shared cluster."""
    speck_distance: float = 0.15
    """Mean distance from a segment's codebook below which a speck on it may be its own."""
    twin_share: float = 0.25
    """Share of a twin's usual pixels from which a blob is a twin in sight."""
    min_alpha: float = 1e-3
    """Foreground alpha from which a pixel is assigned."""
    unseen_distance: float = 0.2
    """Distance from all clusters from which a colour counts as unseen; inf for none."""
    unseen_same_distance: float = 0.15
    """Distance in the RGB cube of side 1 below which two unseen colours are one object's."""
    unseen_tokens: float = 3.0
    """Tokens from which pixels of one unseen colour are an object."""
    unseen_logit: float = 20.0
    """Attention logit of a token for the slot it is assigned to; its negative for the others."""


DEFAULTS = SegmentConfig()


def colours_of(images: Tensor) -> Tensor:
    """Convert images (B, 3, H, W) in [0, 1] to weighted CIE Lab (B, 3, H, W), about [-1, 1]."""
    return rgb_to_lab(images) / 100 * images.new_tensor([LIGHTNESS, 1.0, 1.0]).view(1, 3, 1, 1)


class SegmentProposals(nn.Module):
    """The segments of a scene and how to find them in a frame.

    Args:
        codebook: (P, 3) colours of the clusters, as `colours_of`.
        owner: (P,) the segment that owns each cluster, -1 for shared clusters.
        segments: Number of segments before splits.
        splits: How many of them are split in two; second halves come after all segments.
        config: Thresholds.
        twins: How many things alike the last segments are; all but the first of each come last.
    """

    def __init__(
        self,
        codebook: Tensor,
        owner: Tensor,
        segments: int,
        splits: int = 0,
        config: SegmentConfig = DEFAULTS,
        twins: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.config, self.segments, self.count = config, segments, segments + splits
        self.splits = nn.ModuleList(ArticulatedSplit(config) for _ in range(splits))
        self.twins = nn.ModuleList(TwinSplit(count, config) for count in twins)
        self.alike: list[list[int]] = []
        """Of each twins: which of the N are they."""
        for segment, count in enumerate(twins, segments - len(twins)):
            self.alike.append([segment, *range(self.count, self.count + count - 1)])
            self.count += count - 1
        self.codebook, self.owner = nn.Buffer(codebook.float()), nn.Buffer(owner.long())
        self.spread = nn.Buffer(torch.full((segments,), 5.0))
        """(N,) standard deviation of each segment's pixels about its centroid, in pixels."""
        self.cluster_log_prob = nn.Buffer(torch.full((segments, len(codebook)), -1e4))
        """(N, P) log probability of a segment, given a pixel's cluster, up to a constant."""
        for segment in range(segments):
            own = self.codebook[self.owner == segment]
            if len(own):
                distance = torch.cdist(self.codebook, own).min(dim=1).values
                self.cluster_log_prob[segment] = -config.colour_weight * distance
        self.unseen = nn.Buffer(torch.zeros(LEVELS**3, dtype=torch.bool), persistent=False)
        """Whether colours on a grid of the RGB cube are unseen; none is before `tabulate_unseen`.
        """
        self.register_load_state_dict_post_hook(lambda proposals, _: proposals.tabulate_unseen())

    def clusters(self, pixels: Tensor) -> Tensor:
        """The cluster (S,) nearest in colour to each of the pixels (S, 3) in [0, 1]."""
        lab = colours_of(pixels.T.view(1, 3, 1, -1)).view(3, -1).T
        return torch.cdist(lab, self.codebook, compute_mode=EXACT).argmin(dim=1)

    def is_unseen(self, images: Tensor) -> Tensor:
        """Which pixels of images (B, 3, H, W) in [0, 1] have unseen colours: (B, H, W) bool."""
        red, green, blue = (images * (LEVELS - 1) + 0.5).long().unbind(dim=1)
        return self.unseen[(red * LEVELS + green) * LEVELS + blue]

    @torch.no_grad()
    def tabulate_unseen(self) -> None:
        """Tabulate unseen colours, so that `is_unseen` compares no pixel with all clusters."""
        levels = torch.linspace(0, 1, LEVELS, device=self.codebook.device)
        cube = colours_of(torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 1, -1))
        distance = torch.cdist(cube.flatten(2)[0].T, self.codebook, compute_mode=EXACT)
        self.unseen.copy_(distance.amin(dim=1) > self.config.unseen_distance)

    @torch.no_grad()
    def forward(self, images: Tensor, foreground: Tensor) -> Tensor:
        """Divide the foreground among segments.

        Args:
            images: (B, 3, H, W) in [0, 1].
            foreground: (B, H, W) in [0, 1].

        Returns:
            (B, N, H, W) shares, which sum to the foreground where that exceeds `min_alpha`. Twins
            are in order from left to right; `follow` orders them as in the frame before.
        """
        pixels = Pixels(foreground, self.config.min_alpha)
        owned = self._assign(pixels, self.clusters(pixels.of(images)))
        shares = self._without_specks(images, pixels.scatter(owned))
        for split in self._splits():
            halves = split(shares[:, split.segment])
            shares[:, split.segment] = halves[:, 0]
            shares = torch.cat([shares, halves[:, 1:]], dim=1)
        for (segment, *_), twins in zip(self.alike, self.twins, strict=True):
            each = twins(shares[:, segment])
            shares[:, segment] = each[:, 0]
            shares = torch.cat([shares, each[:, 1:]], dim=1)
        return shares

    def follow(self, shares: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Order twins as in the frame before: each is the one whose place is near.

        Args:
            shares: (B, N, H, W), as `forward` returns them.
            before: (B, N, 2) what this function returned a frame before; None at a first frame.

        Returns:
            The shares, and the latest place (B, N, 2) of each segment, x and y in pixels, NaN for
            one that has not been seen.
        """
        height, width = shares.shape[2:]
        mass = shares.sum(dim=(2, 3))
        x, y = (
            (shares.sum(dim=axis) @ torch.arange(size).to(shares)) / mass
            for axis, size in ((2, width), (3, height))
        )
        places = torch.stack([x, y], dim=2).where(
            mass.unsqueeze(2) > self.config.min_alpha, torch.nan
        )
        if before is None or not self.alike:
            return shares, places
        order = torch.arange(self.count, device=shares.device).repeat(len(shares), 1)
        apart = torch.cdist(before, places, compute_mode=EXACT).nan_to_num(height + width)
        for alike in self.alike:
            for row, cost in zip(order, apart[:, alike][:, :, alike].cpu().numpy(), strict=True):
                row[alike] = row[alike][linear_sum_assignment(cost)[1]]
        places = places.take_along_dim(order.unsqueeze(2), dim=1)
        ordered = shares.take_along_dim(order[:, :, None, None], dim=1)
        return ordered, torch.where(places.isnan(), before, places)

    def orders(self) -> Tensor:
        """All orders (O, N) of segments in which only twins change places; the usual one first."""
        orders = []
        for own in product(*map(permutations, self.alike)):
            orders.append(torch.arange(self.count))
            for alike, chosen in zip(self.alike, own, strict=True):
                orders[-1][alike] = torch.tensor(chosen)
        return torch.stack(orders)

    def bodies(self) -> Tensor:
        """The body (N,) of each segment: the halves of a split are one."""
        first, all_of = self.segments, torch.arange(self.count, device=self.owner.device)
        split = [split.segment.view(1) for split in self._splits()]
        return torch.cat([all_of[:first], *split, all_of[first + len(split) :]])

    def _splits(self) -> list[ArticulatedSplit]:
        return [cast(ArticulatedSplit, split) for split in self.splits]

    def _assign(self, pixels: Pixels, clusters: Tensor) -> Tensor:
        """Shares (S, N) of foreground pixels of these clusters (S,)."""
        owner = self.owner[clusters]
        shared = owner < 0
        shares = nn.functional.one_hot(owner.clamp(min=0), self.segments).float()
        shares = shares * ~shared.unsqueeze(1)
        log_prob = self.cluster_log_prob.T[clusters[shared]]
        for _ in range(self.config.assign_rounds if len(log_prob) else 0):
            mass, squares = pixels.moments(shares, shared)
            logits = log_prob - squares / (2 * self.spread.square()) - 2 * self.spread.log()
            absent = mass[pixels.row[shared]] < self.config.min_pixels - 1
            # Softmax over the first axis: many times as fast as over rows so short.
            shares[shared] = logits.masked_fill(absent, -1e6).T.softmax(dim=0).T
        return shares

    def _without_specks(self, images: Tensor, shares: Tensor) -> Tensor:
        """Give specks to the segment they lie on: shares (B, N, H, W) -> (B, N, H, W).

        A blob much smaller than its segment's largest in the frame (the edge of a brown handle may
        have the brown of a board) goes to the segment around it, if that has such colours too.
        """
        total, colours = shares.sum(dim=1), colours_of(images).permute(0, 2, 3, 1).cpu().numpy()
        labels = torch.where(total > 0.5, shares.argmax(dim=1), -1).cpu().numpy()
        often = (self.owner < 0) & (self.cluster_log_prob.exp() > self.config.shared_prob)
        codebooks = [
            self.codebook[(self.owner == segment) | often[segment]].cpu().numpy()
            for segment in range(self.segments)
        ]
        tidy = labels.copy()
        for frame, lab, new in zip(labels, colours, tidy, strict=True):
            for segment in range(self.segments):
                for speck in _specks(frame == segment):
                    other = _lies_on(speck, frame)
                    if other is None:
                        continue
                    apart = np.linalg.norm(lab[speck][:, None] - codebooks[other], axis=2)
                    if apart.min(axis=1, initial=np.inf).mean() < self.config.speck_distance:
                        new[speck] = other
        given = torch.from_numpy(tidy).to(shares.device)
        kept = given == torch.from_numpy(labels).to(shares.device)
        own = nn.functional.one_hot(given.clamp(min=0), self.segments).permute(0, 3, 1, 2)
        return torch.where(kept.unsqueeze(1), shares, own * total.unsqueeze(1))

    @torch.no_grad()
    def fit(self, images: Tensor, foreground: Tensor) -> None:
        """Fit `spread` and `cluster_log_prob` to frames, as `forward` takes them."""
        pixels = Pixels(foreground, self.config.min_alpha)
        clusters = self.clusters(pixels.of(images))
        for _ in range(self.config.fit_rounds):
            shares = self._assign(pixels, clusters)
            weights = shares * pixels.weight.unsqueeze(1)
            counts = torch.zeros_like(self.cluster_log_prob.T).index_add_(0, clusters, weights).T
            squares = (weights * pixels.moments(shares)[1]).sum(dim=0)
            spread = (squares / (2 * counts.sum(dim=1)).clamp(min=1.0)).sqrt()
            self.spread.copy_(spread.clamp(min=self.config.min_spread))
            prob = counts / counts.sum(dim=0).clamp(min=1.0) + self.config.min_prob
            self.cluster_log_prob.copy_(prob.log())

    @torch.no_grad()
    def fit_splits(self, images: Tensor, foreground: Tensor, moved: Tensor) -> None:
        """Split the segments that move most of the time, twins apart.

        Args:
            images: (B, 3, H, W) in [0, 1].
            foreground: (B, H, W) in [0, 1].
            moved: (B, H, W) bool, whether a pixel differs from the frame before.
        """
        pixels = Pixels(foreground, self.config.min_alpha)
        shares = pixels.scatter(self._assign(pixels, self.clusters(pixels.of(images))))
        mass = shares.sum(dim=(2, 3))
        active = torch.einsum("bnhw,bhw->n", shares, moved.float()) / mass.sum(dim=0).clamp(min=1.0)
        alone = active[: self.segments - len(self.twins)]
        for split, segment in zip(self._splits(), alone.argsort(descending=True), strict=False):
            split.segment.copy_(segment)
            split.fit(shares[mass[:, segment] >= 4 * self.config.min_pixels, segment])


class Pixels:
    """The S foreground pixels of frames, one after the other.

    Args:
        share: (B, H, W), how much of each pixel is foreground.
        least: Share from which a pixel is one of them.
    """

    def __init__(self, share: Tensor, least: float) -> None:
        self.shape = share.shape
        self.row, y, x = self.index = (share > least).nonzero(as_tuple=True)
        self.place = torch.stack([x, y], dim=1).float()
        """(S, 2) x and y; row: (S,) which frame."""
        self.weight = share[self.index]
        """(S,)."""

    def of(self, images: Tensor) -> Tensor:
        """Values of images (B, C, H, W) there: (S, C)."""
        row, y, x = self.index
        return images[row, :, y, x]

    def sums(self, values: Tensor) -> Tensor:
        """Sums (B, ...) of values (S, ...) by frame."""
        return values.new_zeros(self.shape[0], *values.shape[1:]).index_add_(0, self.row, values)

    def scatter(self, shares: Tensor) -> Tensor:
        """Shares (S, N) of each pixel's weight as (B, N, H, W), zero elsewhere."""
        whole = shares.new_zeros(*self.shape, shares.shape[1])
        whole[self.index] = shares * self.weight.unsqueeze(1)
        return whole.permute(0, 3, 1, 2)

    def moments(
        self, shares: Tensor, chosen: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Area and spread of segments.

        Args:
            shares: (S, N) of each pixel.
            chosen: Which pixels distances are for.

        Returns:
            Pixels (B, N) and the squared distance (S, N) of chosen pixels from the centroids.
        """
        own = shares * self.weight.unsqueeze(1)
        mass, sums = self.sums(own), self.sums(own.unsqueeze(2) * self.place.unsqueeze(1))
        offsets = self.place[chosen].unsqueeze(1)
        centroids = sums / mass.clamp(min=1e-6).unsqueeze(2)
        return mass, (offsets - centroids[self.row[chosen]]).square().sum(dim=2)


def _specks(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Blobs (H, W) of a mask (H, W) with at most half of the pixels of its largest."""
    count, blobs, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    sizes = boxes[1:, cv2.CC_STAT_AREA]
    return (blobs == blob for blob in range(1, count) if sizes[blob - 1] <= sizes.max() / 2)


def _lies_on(speck: NDArray[np.bool_], labels: NDArray[np.int64]) -> int | None:
    """The segment with most, and at least a third, of the pixels (H, W) around a speck (H, W)."""
    around = labels[(cv2.dilate(speck.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~speck]
    touching = np.bincount(around + 1)[1:]
    return int(touching.argmax()) if touching.size and touching.max() * 3 >= len(around) else None


class ArticulatedSplit(nn.Module):
    """Splits a segment of one colour in two where it bends.

    A forearm is solid and fingers are not: more or less of a pixel's surroundings belongs to the
    same segment. Pixels go to halves by that and by place, as a mixture of two Gaussians in each
    frame.
    """

    def __init__(self, config: SegmentConfig = DEFAULTS) -> None:
        super().__init__()
        self.config = config
        self.mean, self.variance = (nn.Buffer(torch.ones(2, len(RADII))) for _ in range(2))
        """(2, F) of the shares of a half's surroundings that belong to the segment."""
        self.spread = nn.Buffer(torch.full((2,), config.min_spread))
        """(2,) standard deviation of a half's pixels about its centroid, in pixels."""
        self.segment = nn.Buffer(torch.tensor(0))
        """The segment that is split."""

    @torch.no_grad()
    def forward(self, share: Tensor) -> Tensor:
        """Split a segment's share of the pixels: (B, H, W) -> (B, 2, H, W), which sum to it."""
        pixels = Pixels(share, self.config.min_alpha)
        likelihood = self._log_likelihood(_surroundings(share, pixels))
        halves = likelihood.T.softmax(dim=0).T
        for _ in range(self.config.assign_rounds):
            halves = self._assign(likelihood, halves, pixels)
        return pixels.scatter(halves)

    @torch.no_grad()
    def fit(self, share: Tensor) -> None:
        """Fit the halves to a segment's share of the pixels (B, H, W).

        They start as the halves across its longer axis; the more solid one is the second.
        """
        pixels = Pixels(share, self.config.min_alpha)
        around, weight = _surroundings(share, pixels), pixels.weight.unsqueeze(1)
        centres = pixels.sums(weight * pixels.place) / pixels.sums(weight)
        centred = pixels.place - centres[pixels.row]
        products = weight.unsqueeze(2) * centred.unsqueeze(1) * centred.unsqueeze(2)
        axis = torch.linalg.eigh(pixels.sums(products))[1][:, :, 1]
        side = ((centred * axis[pixels.row]).sum(dim=1) > 0).float()
        halves = torch.stack([1 - side, side], dim=1)
        own = halves * weight
        solid = pixels.sums(own * around[:, -1:]) / pixels.sums(own).clamp(min=1e-6)
        ordered = (solid[:, 1] > solid[:, 0])[pixels.row].unsqueeze(1)
        halves = torch.where(ordered, halves, halves.flip(1))
        for _ in range(self.config.split_rounds):
            own = halves * weight
            mass = own.sum(dim=0).clamp(min=1e-6)
            self.mean.copy_(own.T @ around / mass.unsqueeze(1))
            squares = (around.unsqueeze(1) - self.mean).square()
            variance = torch.einsum("sn,snf->nf", own, squares) / mass.unsqueeze(1)
            self.variance.copy_(variance.clamp(min=1e-4))
            spread = ((own * pixels.moments(halves)[1]).sum(dim=0) / (2 * mass)).sqrt()
            self.spread.copy_(spread.clamp(min=2.0))
            halves = self._assign(self._log_likelihood(around), halves, pixels)

    def _log_likelihood(self, around: Tensor) -> Tensor:
        """(S, 2) of surroundings (S, F); the squares overlap, so that they count as one."""
        deviation = (around.unsqueeze(1) - self.mean).square() / self.variance + self.variance.log()
        return -0.5 * deviation.mean(dim=2)

    def _assign(self, likelihood: Tensor, halves: Tensor, pixels: Pixels) -> Tensor:
        mass, squares = pixels.moments(halves)
        logits = likelihood - squares / (2 * self.spread.square()) - 2 * self.spread.log()
        return (logits + (mass + 1).log()[pixels.row]).T.softmax(dim=0).T


class TwinSplit(nn.Module):
    """Divides a segment among things of one colour by place, in contact too.

    Args:
        count: T, how many there are; fewer may be in sight.
        config: Thresholds.
    """

    def __init__(self, count: int, config: SegmentConfig = DEFAULTS) -> None:
        super().__init__()
        self.count, self.config = count, config
        self.size = nn.Buffer(torch.tensor(1.0))
        """Usual pixels of one."""

    @torch.no_grad()
    def forward(self, share: Tensor) -> Tensor:
        """Divide a segment's share of the pixels: (B, H, W) -> (B, T, H, W), which sum to it.

        As many are in sight as there are blobs, or more where a blob is as large as several.
        """
        which = torch.zeros(share.shape, dtype=torch.int64)
        for frame, own in zip(which.numpy(), share.cpu().numpy(), strict=True):
            mask = own > self.config.min_alpha
            _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            size = float(self.size)
            blobs = int((boxes[1:, cv2.CC_STAT_AREA] >= self.config.twin_share * size).sum())
            seen = min(self.count, max(blobs, round(float(own.sum()) / size)))
            if seen > 1:
                frame[mask] = _divided(np.argwhere(mask)[:, ::-1].astype(np.float64), seen)
        own = nn.functional.one_hot(which.to(share.device), self.count)
        return own.movedim(3, 1) * share.unsqueeze(1)


def _divided(places: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Divide places (S, 2) by k-means among `count` things (S,), in order from left to right."""
    centres, near = np.empty((0, 2)), places.mean(axis=0, keepdims=True)
    for _ in range(count):  # the first far from the mean, the others from those before
        apart = np.linalg.norm(places[:, None] - near, axis=2).min(axis=1)
        centres = near = np.vstack([centres, places[apart.argmax()]])
    found, which = kmeans2(places, centres, minit="matrix")
    return found[:, 0].argsort(kind="stable").argsort()[which]


def _surroundings(share: Tensor, pixels: Pixels) -> Tensor:
    """Share (S, F) of the squares around each pixel that a segment's share (B, H, W) covers."""
    squares = [
        nn.functional.avg_pool2d(share, 2 * r + 1, stride=1, padding=r, count_include_pad=False)
        for r in RADII
    ]
    return pixels.of(torch.stack(squares, dim=1))
