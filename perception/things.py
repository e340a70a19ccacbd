"""Which things a fixed camera sees, from frames alone: colours that move as one are one thing.

Gestalt psychology's law of common fate, made an algorithm in four steps: what differs from the static background is foreground; its
colours are clustered into parts; parts whose centroids move together are merged into things, alike colours sooner than unlike ones; and
a colour that lies in two places that move apart (white fingers before a white board) belongs to no thing by itself: its pixels go, in
every frame, to the thing that is near and like them.

B frames, H and W of a frame, P parts, N things.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from kornia.color import rgb_to_lab
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

PARTS = 16
"""Colours that the foreground is divided into."""
LIGHTNESS = 0.5
"""Weight of lightness beside hue and chroma in the distance of colours: shading changes the one and hardly the others."""
BIN = 0.04
"""Side of the bins in which colours are counted; a bin weighs as the root of its count, so that small things have colours too."""
LEAST = 4
"""Pixels from which a part counts as seen in a frame."""
TOGETHER = 20
"""Frames with both from which it can be told whether two parts move as one."""
SMALL = 5.0
"""Mean pixels a frame below which a group of parts is no thing of its own."""
UNLIKE = 1.0
"""Price of a unit of colour distance, in coherence, when parts are merged."""
MERGE, SURE = 0.3, 0.8
"""Coherence less that price below which parts are never merged, and above which they are merged however few are left."""
TWO_PLACES = 0.2
"""Share of the frames in which a part lies in two places, from which it is looked at whether these move as one."""
LIKE = 8.0
"""Price of a unit of colour distance when a pixel of a shared part is given to a thing, in nats."""
SPREAD = 4.0
"""Least standard deviation of a thing's pixels about its centroid, in pixels."""
EXACT = "donot_use_mm_for_euclid_dist"
"""How distances are computed: products of matrices in TF32 would blur them."""
ROUNDS = 6
"""Rounds of expectation and maximisation over shared pixels."""


def colours_of(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as lightness, a and b of CIE Lab: (B, 3, H, W), about [-1, 1]."""
    return rgb_to_lab(images) / 100 * images.new_tensor([LIGHTNESS, 1.0, 1.0]).view(1, 3, 1, 1)


class Things(nn.Module):
    """The things that were found, and how to see them in a frame.

    colours: (P, 3) of the parts, as `colours_of`; owner: (P,) the thing of each part, -1 for shared ones.
    """

    def __init__(self, colours: Tensor, owner: Tensor, things: int) -> None:
        super().__init__()
        self.things = things
        self.register_buffer("colours", colours.float())
        self.register_buffer("owner", owner.long())
        self.register_buffer("spread", torch.full((things,), 5.0))
        self.colours: Tensor
        self.owner: Tensor
        self.spread: Tensor
        """(N,) standard deviation of each thing's pixels about its centroid, in pixels."""
        likeness = torch.full((things, len(colours)), -1e4)
        for thing in range(things):
            own = self.colours[self.owner == thing]
            if len(own):
                likeness[thing] = -LIKE * torch.cdist(self.colours, own).min(dim=1).values
        self.register_buffer("likeness", likeness)
        self.likeness: Tensor

    def parts(self, images: Tensor) -> Tensor:
        """The part nearest in colour to each pixel of (B, 3, H, W): (B, H, W)."""
        pixels = colours_of(images).permute(0, 2, 3, 1)
        return (
            torch.cdist(pixels.flatten(1, 2), self.colours.expand(len(images), -1, -1), compute_mode=EXACT)
            .argmin(dim=2)
            .view(pixels.shape[:3])
        )

    @torch.no_grad()
    def forward(self, images: Tensor, foreground: Tensor, learn: bool = False) -> Tensor:
        """Share of each pixel that belongs to each thing: images (B, 3, H, W) in [0, 1] and foreground (B, H, W) in [0, 1] ->
        (B, N, H, W), whose sum over things is the foreground. learn: fit `spread` to these frames."""
        height, width = images.shape[2:]
        y, x = torch.meshgrid(torch.arange(height, device=images.device), torch.arange(width, device=images.device), indexing="ij")
        places = torch.stack([x, y], dim=-1).flatten(0, 1).float()  # (L, 2)
        parts, weight = self.parts(images).flatten(1), foreground.flatten(1)
        owned = torch.nn.functional.one_hot(self.owner[parts].clamp(min=0), self.things).float() * (self.owner[parts] >= 0).unsqueeze(-1)
        shared = (self.owner[parts] < 0).unsqueeze(-1)
        likeness = self.likeness.T[parts]  # (B, L, N)
        shares = owned
        for _ in range(ROUNDS if shared.any() else 1):
            mass = torch.einsum("bln,bl->bn", shares, weight)
            centroids = torch.einsum("bln,bl,lc->bnc", shares, weight, places) / mass.clamp(min=1e-6).unsqueeze(-1)
            squares = torch.cdist(places.expand(len(images), -1, -1), centroids, compute_mode=EXACT).square()
            if learn:
                variance = torch.einsum("bln,bl,bln->n", shares, weight, squares) / (2 * mass.sum(dim=0)).clamp(min=1.0)
                self.spread.copy_(variance.sqrt().clamp(min=SPREAD))
            logits = likeness - squares / (2 * self.spread.square()) - 2 * self.spread.log()
            logits = logits.masked_fill((mass < LEAST - 1).unsqueeze(1), -1e6)
            shares = torch.where(shared, logits.softmax(dim=2), owned)
        return (shares * weight.unsqueeze(-1)).transpose(1, 2).unflatten(2, (height, width))


def find_things(images: Tensor, foreground: Tensor, most: int, rng: np.random.Generator) -> Things:
    """The things in frames (B, 3, H, W) in [0, 1] with foreground (B, H, W) bool; about `most`, more where more move apart.

    Raises ValueError where nothing stands out from the background.
    """
    colours = colours_of(images).permute(0, 2, 3, 1)
    centres = _clusters(colours[foreground].numpy(), rng)
    nobody = Things(torch.from_numpy(centres), torch.full((len(centres),), -1), 0)
    labels = torch.where(foreground, nobody.parts(images), -1).numpy()
    mass, centroids = _moments(labels, len(centres))
    shared = np.array([_lies_apart(labels, part) for part in range(len(centres))])
    groups = [g for g in _merged(mass, centroids, centres, ~shared, most) if mass[:, g].sum(axis=1).mean() >= SMALL]
    if not groups:  # a single speck is a thing too
        groups = [list(range(len(centres)))]
    owner = torch.full((len(centres),), -1)
    for thing, group in enumerate(groups):
        owner[group] = thing
    things = Things(torch.from_numpy(centres), owner, len(groups))
    things(images, foreground.float(), learn=True)
    return things


def _clusters(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """(P, 3) colours of parts, from foreground pixels (L, 3)."""
    if len(pixels) == 0:
        raise ValueError("nothing differs from the background: there is nothing to discover")
    bins, index, counts = np.unique(np.round(pixels / BIN).astype(int), axis=0, return_inverse=True, return_counts=True)
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


def _moments(labels: NDArray[np.int64], parts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels (B, P) and centroid (B, P, 2), in pixels, of each part in label maps (B, H, W), -1 for background."""
    frame, y, x = np.nonzero(labels >= 0)
    cell = frame * parts + labels[frame, y, x]
    count = len(labels) * parts
    mass = np.bincount(cell, minlength=count).astype(np.float64)
    sums = np.stack([np.bincount(cell, place, minlength=count) for place in (x, y)], axis=-1)
    return mass.reshape(-1, parts), (sums / np.maximum(mass, 1)[:, None]).reshape(-1, parts, 2)


def coherence(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """How far two paths (T, 2) are one: 1 less the variance of their difference in the sum of their variances. 1 where they keep their
    distance, 0 where they have nothing to do with each other."""
    both = one.var(axis=0).sum() + other.var(axis=0).sum()
    return float(1 - (one - other).var(axis=0).sum() / max(both, 1e-6))


def _merged(
    mass: NDArray[np.float64], centroids: NDArray[np.float64], colours: NDArray[np.float32], own: NDArray[np.bool_], most: int
) -> list[list[int]]:
    """Groups of parts (those that `own` a place) that move as one, merged two by two, the surest first."""
    groups: list[list[int]] = [[part] for part in np.flatnonzero(own).tolist()]
    weight = mass.sum(axis=0)

    def place(group: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pixels = mass[:, group].sum(axis=1)
        return pixels, (mass[:, group, None] * centroids[:, group]).sum(axis=1) / np.maximum(pixels, 1)[:, None]

    def affinity(one: list[int], other: list[int]) -> float:
        (pixels, path), (others, other_path) = place(one), place(other)
        means = [np.average(colours[group], axis=0, weights=weight[group]) for group in (one, other)]
        unlike = UNLIKE * float(np.linalg.norm(means[0] - means[1]))
        seen = (pixels >= LEAST) & (others >= LEAST)
        if seen.sum() < TOGETHER:  # what is never seen together may be one thing in two lights, if it is much alike
            return 1 - 3 * unlike
        return coherence(path[seen], other_path[seen]) - unlike

    while len(groups) > 1:
        pairs = [(affinity(groups[i], groups[j]), i, j) for i in range(len(groups)) for j in range(i)]
        best, i, j = max(pairs)
        if best < (MERGE if len(groups) > most else SURE):
            break
        groups[j] += groups.pop(i)
    return groups


def _lies_apart(labels: NDArray[np.int64], part: int) -> bool:
    """Whether a part often lies in two places that do not move as one."""
    seen, pairs = 0, []
    for image in labels[:: max(1, len(labels) // 400)]:
        mask = (image == part).astype(np.uint8)
        if mask.sum() < LEAST + 2:
            continue
        seen += 1
        # Blobs less than five pixels apart count as one.
        count, blobs, _, centres = cv2.connectedComponentsWithStats(cv2.dilate(mask, np.ones((5, 5), np.uint8)))
        sizes = np.bincount(blobs[mask > 0], minlength=count)[1:]
        if count > 2 and np.sort(sizes)[-2] >= 0.2 * mask.sum():
            pairs.append(centres[1:][np.argsort(-sizes)[:2]])
    if len(pairs) < max(TOGETHER, TWO_PLACES * seen):
        return False
    places = np.array(pairs, np.float64)  # (pairs, 2, 2)
    offsets = places[:, 0] - places[:, 1]
    axis = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    backwards = offsets @ axis < 0  # which of the two is the first is not known: as their offset points one way
    places[backwards] = places[backwards][:, ::-1]
    return coherence(places[:, 0], places[:, 1]) < 0.5
