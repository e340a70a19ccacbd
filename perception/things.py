"""Which things a fixed camera sees, from frames alone: colours that move as one are one thing.

Gestalt psychology's law of common fate, made an algorithm in four steps: what differs from the static background is foreground; its
colours are clustered into parts; parts whose centroids move together, or keep their distance, are merged into things, alike colours
sooner than unlike ones; and a colour that lies in two places that move apart (white fingers before a white board) belongs to no thing by
itself: its pixels go, in every frame, to the thing that is near and like them, and so do specks that lie on another thing. Where it is
asked for, what moves most of the time is then divided into two limbs, of which one is more solid.

B frames, H and W of a frame, P parts, N things.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import torch
from kornia.color import rgb_to_lab
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

PARTS = 26
"""Colours that the foreground is divided into."""
PALETTES = 5
"""How often they are drawn, until as many things come out as are looked for: two whites may fall into one part by chance."""
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
UNLIKE = 1.7
"""Price of a squared unit of colour distance, in coherence, when parts are merged: shades are cheap, other colours dear."""
BRIGHT = 1.5
"""How much more lightness counts there: black and white are unlike."""
HUE, LARGE = 0.6, 80.0
"""Price of another hue between groups of parts of so many pixels a frame; less between smaller ones: a patch of another colour is a
thing's, a large area of it is another thing."""
BLACK = 0.05
"""Lightness below which there is hardly a hue."""
MERGE, SURE = 0.3, 0.8
"""Coherence less that price below which parts are never merged, and above which they are merged however few are left."""
REST = 0.1
"""The former for groups of less than SOLID pixels, where no palette gives as few things as are looked for."""
WHOLE = 0.5
"""Share of what is mostly seen of a group of parts from which it counts as seen whole."""
RIGID = 2.0
"""Standard deviation of the way from one group of parts to another, in pixels, below which they are joined and colour counts less."""
SOLID = 25.0
"""Pixels a frame of both groups from which that is so."""
TURNING = 0.4
"""Coherence from which it counts half whether groups of parts keep their distance, as the ends of a hammer do that turns."""
TWO_PLACES = 0.2
"""Share of the frames in which a part lies in two places, from which it is looked at whether these move as one."""
SECOND = 0.2
"""Share of a part's pixels from which its second place counts."""
LIKE = 8.0
"""Price of a unit of colour distance when a pixel of a shared part is given to a thing, in nats."""
SPREAD = 4.0
"""Least standard deviation of a thing's pixels about its centroid, in pixels."""
EXACT = "donot_use_mm_for_euclid_dist"
"""How distances are computed: products of matrices in TF32 would blur them."""
FITS = 4
"""Rounds in which it is learned how often things have pixels of shared parts."""
AROUND = (2, 3, 5, 7)
"""Half the widths of the squares whose solidity tells limbs apart, in pixels."""
JOINT_ROUNDS = 10
"""Rounds of expectation and maximisation over limbs."""
FIT_IN = 500
"""Frames to which shared colours and limbs are fitted."""
OFTEN = 0.15
"""Probability that a pixel of a shared part belongs to a thing from which that colour is one of the thing's."""
SUCH = 0.15
"""Distance from a thing's colours below which a speck may be its own."""
RARE = 1e-3
"""Least probability that a pixel of a shared part belongs to a thing."""
ROUNDS = 6
"""Rounds of expectation and maximisation over shared pixels."""


def colours_of(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as lightness, a and b of CIE Lab: (B, 3, H, W), about [-1, 1]."""
    return rgb_to_lab(images) / 100 * images.new_tensor([LIGHTNESS, 1.0, 1.0]).view(1, 3, 1, 1)


class Things(nn.Module):
    """The things that were found, and how to see them in a frame.

    colours: (P, 3) of the parts, as `colours_of`; owner: (P,) which of the `bodies` each part belongs to, -1 for shared ones. Bodies are
    things, but for those with a joint, as many as `joints`: their limbs are two things.
    """

    def __init__(self, colours: Tensor, owner: Tensor, bodies: int, joints: int = 0) -> None:
        super().__init__()
        self.bodies, self.things = bodies, bodies + joints
        self.joints = nn.ModuleList(Joint() for _ in range(joints))
        self.register_buffer("colours", colours.float())
        self.register_buffer("owner", owner.long())
        self.register_buffer("spread", torch.full((bodies,), 5.0))
        self.colours: Tensor
        self.owner: Tensor
        self.spread: Tensor
        """(N,) standard deviation of each thing's pixels about its centroid, in pixels."""
        likeness = torch.full((bodies, len(colours)), -1e4)
        for thing in range(bodies):
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
    def forward(self, images: Tensor, foreground: Tensor) -> Tensor:
        """Share of each pixel that belongs to each thing: images (B, 3, H, W) in [0, 1] and foreground (B, H, W) in [0, 1] ->
        (B, N, H, W), whose sum over things is the foreground. The second limb of a body with a joint comes after all bodies."""
        shares = self._without_specks(images, self._bodies(images, foreground))
        for joint in self._joints():
            limbs = joint(shares[:, joint.body])
            shares[:, joint.body] = limbs[:, 0]
            shares = torch.cat([shares, limbs[:, 1:]], dim=1)
        return shares

    def _joints(self) -> list[Joint]:
        return [cast(Joint, joint) for joint in self.joints]

    def _bodies(self, images: Tensor, foreground: Tensor) -> Tensor:
        places = _places(images)
        parts, weight = self.parts(images).flatten(1), foreground.flatten(1)
        owner = self.owner[parts]
        owned = torch.nn.functional.one_hot(owner.clamp(min=0), self.bodies).float() * (owner >= 0).unsqueeze(-1)
        shared = (owner < 0).unsqueeze(-1)
        likeness = self.likeness.T[parts]  # (B, L, N)
        shares = owned
        for _ in range(ROUNDS if shared.any() else 1):
            mass, squares = _about(shares, weight, places)
            logits = likeness - squares / (2 * self.spread.square()) - 2 * self.spread.log()
            logits = logits.masked_fill((mass < LEAST - 1).unsqueeze(1), -1e6)
            shares = torch.where(shared, logits.softmax(dim=2), owned)
        return (shares * weight.unsqueeze(-1)).transpose(1, 2).unflatten(2, images.shape[2:])

    def _without_specks(self, images: Tensor, shares: Tensor) -> Tensor:
        """Give specks to what they lie on: shares (B, N, H, W) -> (B, N, H, W).

        The edge of a brown handle may have the brown of a board, far from it. A blob that is much less than a thing's largest in the frame
        goes to the thing that it borders on, if that has such colours too.
        """
        total, colours = shares.sum(dim=1), colours_of(images).permute(0, 2, 3, 1).cpu().numpy()
        labels = torch.where(total > 0.5, shares.argmax(dim=1), -1).cpu().numpy()
        often = self.likeness.exp() > OFTEN
        palettes = [self.colours[(self.owner == thing) | ((self.owner < 0) & often[thing])].cpu().numpy() for thing in range(self.bodies)]
        tidy = labels.copy()
        for image, lab, new in zip(labels, colours, tidy, strict=True):
            for thing in range(self.bodies):
                count, blobs, boxes, _ = cv2.connectedComponentsWithStats((image == thing).astype(np.uint8), connectivity=8)
                sizes = boxes[:, cv2.CC_STAT_AREA]
                for blob in range(1, count):
                    if sizes[blob] > sizes[1:].max() / 2:
                        continue
                    speck = blobs == blob
                    around = image[(cv2.dilate(speck.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~speck]
                    touching = np.bincount(around + 1, minlength=self.bodies + 1)[1:]
                    other = int(touching.argmax())
                    if touching[other] * 3 < len(around):
                        continue
                    apart = np.linalg.norm(lab[speck][:, None] - palettes[other], axis=2).min(axis=1, initial=np.inf).mean()
                    if apart < SUCH:
                        new[speck] = other
        given = torch.from_numpy(tidy).to(shares.device)
        own = nn.functional.one_hot(given.clamp(min=0), self.bodies).permute(0, 3, 1, 2) * total.unsqueeze(1)
        return torch.where((given == torch.from_numpy(labels).to(shares.device)).unsqueeze(1), shares, own)

    @torch.no_grad()
    def fit(self, images: Tensor, foreground: Tensor) -> None:
        """Fit `spread`, and how likely each thing has a pixel of each shared part, to frames as `forward` takes them."""
        places = _places(images)
        for _ in range(FITS):
            counts, squares = torch.zeros_like(self.likeness), torch.zeros_like(self.spread)
            for some, alpha in zip(images.split(100), foreground.split(100), strict=True):
                shares = self._bodies(some, alpha).flatten(2).transpose(1, 2)
                counts += torch.zeros_like(counts.T).index_add_(0, self.parts(some).flatten(), shares.flatten(0, 1)).T
                squares += (shares * _about(shares, torch.ones_like(shares[..., 0]), places)[1]).sum(dim=(0, 1))
            mass = counts.sum(dim=1)
            self.spread.copy_((squares / (2 * mass).clamp(min=1.0)).sqrt().clamp(min=SPREAD))
            self.likeness.copy_((counts / counts.sum(dim=0).clamp(min=1.0) + RARE).log())

    @torch.no_grad()
    def find_joints(self, images: Tensor, foreground: Tensor, moved: Tensor) -> None:
        """Give the joints to the bodies that move most of the time, and learn their limbs. moved: (B, H, W) bool, whether a pixel is not
        what it was in the frame before."""
        bodies = torch.cat([self._bodies(*some) for some in zip(images.split(100), foreground.split(100), strict=True)])
        mass = bodies.sum(dim=(2, 3))
        active = torch.einsum("bnhw,bhw->n", bodies, moved.float()) / mass.sum(dim=0).clamp(min=1.0)
        for joint, body in zip(self._joints(), active.argsort(descending=True), strict=False):
            joint.body.copy_(body)
            joint.fit(bodies[mass[:, body] >= 4 * LEAST, body])


def _places(images: Tensor) -> Tensor:
    """(H * W, 2) x and y of the pixels of images (..., H, W)."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=images.device), torch.arange(width, device=images.device), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1).float()


def _about(shares: Tensor, weight: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of each thing (B, N) where it has shares (B, L, N) of pixels of weight (B, L), and the squared distance of each of the places
    (L, 2) from its centroid (B, L, N)."""
    mass = torch.einsum("bln,bl->bn", shares, weight)
    centroids = torch.einsum("bln,bl,lc->bnc", shares, weight, places) / mass.clamp(min=1e-6).unsqueeze(-1)
    return mass, torch.cdist(places.expand(len(shares), -1, -1), centroids, compute_mode=EXACT).square()


class Joint(nn.Module):
    """Where a thing of one colour bends: how to tell its two limbs apart.

    A forearm is solid and fingers are not: of what lies around a limb's pixels, more or less belongs to the same thing. Pixels are given
    to limbs by that and by where they lie, as a mixture of two Gaussians in each frame.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.ones(2, len(AROUND)))
        self.register_buffer("spread", torch.full((2,), SPREAD))
        self.register_buffer("body", torch.tensor(0))
        self.body: Tensor
        """Which body bends here."""
        self.mean: Tensor
        """(2, F) of the shares of a limb's surroundings that belong to the thing."""
        self.variance: Tensor
        """(2, F)."""
        self.spread: Tensor
        """(2,) standard deviation of a limb's pixels about its centroid, in pixels."""

    @torch.no_grad()
    def forward(self, share: Tensor) -> Tensor:
        """Divide a thing's share of the pixels: (B, H, W) -> (B, 2, H, W), whose sum it is."""
        kind = self._kind(_surroundings(share))
        limbs = kind.softmax(dim=2)
        for _ in range(ROUNDS):
            limbs = self._given_places(kind, limbs, share)
        return (limbs * share.flatten(1).unsqueeze(-1)).transpose(1, 2).unflatten(2, share.shape[1:])

    @torch.no_grad()
    def fit(self, share: Tensor) -> None:
        """Learn the limbs of a thing from its share of the pixels in frames (B, H, W).

        They start as the halves across its longer axis, that with the more solid surroundings as the second limb.
        """
        around, places, weight = _surroundings(share), _places(share), share.flatten(1)
        centred = places - (weight @ places / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)).unsqueeze(1)  # (B, L, 2)
        axis = torch.linalg.eigh(torch.einsum("bl,blc,bld->bcd", weight, centred, centred))[1][:, :, 1]
        side = (torch.einsum("blc,bc->bl", centred, axis) > 0).float()
        limbs = torch.stack([1 - side, side], dim=2)
        solid = torch.einsum("bln,bl,bl->bn", limbs, weight, around[..., -1]) / torch.einsum("bln,bl->bn", limbs, weight).clamp(min=1e-6)
        limbs = torch.where((solid[:, 1] > solid[:, 0]).view(-1, 1, 1), limbs, limbs.flip(2))
        for _ in range(JOINT_ROUNDS):
            own = limbs * weight.unsqueeze(-1)
            mass = own.sum(dim=(0, 1)).clamp(min=1e-6)
            self.mean.copy_(torch.einsum("bln,blf->nf", own, around) / mass.unsqueeze(1))
            squares = (around.unsqueeze(2) - self.mean).square()
            self.variance.copy_((torch.einsum("bln,blnf->nf", own, squares) / mass.unsqueeze(1)).clamp(min=1e-4))
            self.spread.copy_((torch.einsum("bln,bln->n", own, _about(limbs, weight, places)[1]) / (2 * mass)).sqrt().clamp(min=2.0))
            limbs = self._given_places(self._kind(around), limbs, share)

    def _kind(self, around: Tensor) -> Tensor:
        """(B, L, 2) log-likelihood of surroundings (B, L, F); they overlap, and count as one."""
        deviation = (around.unsqueeze(2) - self.mean).square() / self.variance + self.variance.log()
        return -0.5 * deviation.mean(dim=3)

    def _given_places(self, kind: Tensor, limbs: Tensor, share: Tensor) -> Tensor:
        mass, squares = _about(limbs, share.flatten(1), _places(share))
        logits = kind - squares / (2 * self.spread.square()) - 2 * self.spread.log() + (mass + 1).log().unsqueeze(1)
        return logits.softmax(dim=2)


def _surroundings(share: Tensor) -> Tensor:
    """How much of the squares around each pixel belongs to the thing: (B, H, W) -> (B, L, F)."""
    squares = [nn.functional.avg_pool2d(share, 2 * r + 1, stride=1, padding=r, count_include_pad=False) for r in AROUND]
    return torch.stack(squares, dim=-1).flatten(1, 2)


def find_things(
    images: Tensor, foreground: Tensor, most: int, rng: np.random.Generator, joints: int = 0, moved: Tensor | None = None
) -> Things:
    """The things in frames (B, 3, H, W) in [0, 1] with foreground (B, H, W) bool; about `most`, more where more move apart. The `joints`
    of them that move most of the time (a robot does, what it handles does not) are divided in two; `moved` (B, H, W) bool tells what
    differs from the frame before.

    Raises ValueError where nothing stands out from the background.
    """
    colours = colours_of(images).permute(0, 2, 3, 1)
    found: list[tuple[NDArray[np.float32], list[list[int]]]] = []
    for _ in range(PALETTES):
        found.append(_grouped(images, foreground, _clusters(colours[foreground].numpy(), rng), most))
        if len(found[-1][1]) == most:
            break
    centres, groups = min(found, key=lambda centres_and_groups: abs(len(centres_and_groups[1]) - most))
    if len(groups) > most:
        centres, groups = _grouped(images, foreground, centres, most, REST)
    owner = torch.full((len(centres),), -1)
    for thing, group in enumerate(groups):
        owner[group] = thing
    things = Things(torch.from_numpy(centres), owner, len(groups), min(joints, len(groups)))
    few = slice(None, None, max(1, len(images) // FIT_IN))
    things.fit(images[few], foreground[few].float())
    if moved is not None and joints:
        things.find_joints(images[few], foreground[few].float(), moved[few])
    return things


def _grouped(
    images: Tensor, foreground: Tensor, centres: NDArray[np.float32], most: int, small_least: float = MERGE
) -> tuple[NDArray[np.float32], list[list[int]]]:
    """The colours of parts (P, 3), and the groups of parts that are things."""
    nobody = Things(torch.from_numpy(centres), torch.full((len(centres),), -1), 0)
    labels = torch.where(foreground, nobody.parts(images), -1).numpy()
    mass, centroids = _moments(labels, len(centres))
    own = np.array([not _lies_apart(labels, part) for part in range(len(centres))])
    groups = [group for group in _merged(mass, centroids, centres, own, most, small_least) if mass[:, group].sum(axis=1).mean() >= SMALL]
    return centres, groups or [list(range(len(centres)))]  # a single speck is a thing too


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
    mass: NDArray[np.float64],
    centroids: NDArray[np.float64],
    colours: NDArray[np.float32],
    own: NDArray[np.bool_],
    most: int,
    small_least: float,
) -> list[list[int]]:
    """Groups of parts (those that `own` a place) that move as one, merged two by two, the surest first; small_least: of coherence less
    price, for groups of less than SOLID pixels where there are more than `most`."""
    groups: list[list[int]] = [[part] for part in np.flatnonzero(own).tolist()]
    weight = mass.sum(axis=0)

    def place(group: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pixels = mass[:, group].sum(axis=1)
        return pixels, (mass[:, group, None] * centroids[:, group]).sum(axis=1) / np.maximum(pixels, 1)[:, None]

    def affinity(one: list[int], other: list[int]) -> float:
        (pixels, path), (others, other_path) = place(one), place(other)
        means = [np.average(colours[group], axis=0, weights=weight[group]) for group in (one, other)]
        apart = float(np.linalg.norm(means[0] - means[1]))
        seen = (pixels >= LEAST) & (others >= LEAST)
        if seen.sum() < TOGETHER:  # what is never seen together may be one thing in two lights, if it is much alike
            return 1 - 3 * apart
        lesser = min(weight[one].sum(), weight[other].sum()) / len(mass)
        price = UNLIKE * float(np.square((means[0] - means[1]) * [BRIGHT, 1, 1]).sum())
        price += HUE * min(1.0, lesser / LARGE) ** 2 * float(np.linalg.norm(_hue(means[0]) - _hue(means[1])))
        whole = seen & (pixels >= WHOLE * np.quantile(pixels, 0.9)) & (others >= WHOLE * np.quantile(others, 0.9))
        if lesser >= SOLID and whole.sum() >= TOGETHER:
            price *= min(1.0, float((path - other_path)[whole].var(axis=0).sum()) / RIGID**2)
        together = coherence(path[seen], other_path[seen])
        if together > TURNING and lesser < SOLID:
            distance = np.linalg.norm(path[seen] - other_path[seen], axis=1)
            spread = path[seen].var(axis=0).sum() + other_path[seen].var(axis=0).sum()
            together = (together + max(together, 1 - 2 * float(distance.var() / max(spread, 1e-6)))) / 2
        return together - price

    while len(groups) > 1:
        # Too many things are merged sooner, the smaller of them soonest; what is no thing of its own is so anyway.
        sizes = [weight[group].sum() / len(mass) for group in groups]
        many = len(groups) - sum(size < SMALL for size in sizes) > most
        pairs = []
        for i in range(len(groups)):
            for j in range(i):
                lesser = min(sizes[i], sizes[j])
                least = (small_least if lesser < SOLID else MERGE) if many else MERGE if lesser < SMALL else SURE
                value = affinity(groups[i], groups[j])
                pairs += [(value, i, j)] if value >= least else []
        if not pairs:
            break
        _, i, j = max(pairs)
        groups[j] += groups.pop(i)
    return groups


def _hue(colour: NDArray[np.floating]) -> NDArray[np.floating]:
    """Direction of a colour (3,), as `colours_of`, from black: the same for all its shades. (3,), at most of length 1."""
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
        count, blobs, _, centres = cv2.connectedComponentsWithStats(cv2.dilate(mask, np.ones((5, 5), np.uint8)))
        sizes = np.bincount(blobs[mask > 0], minlength=count)[1:]
        if count > 2 and np.sort(sizes)[-2] >= max(LEAST, SECOND * mask.sum()):
            pairs.append(centres[1:][np.argsort(-sizes)[:2]])
    if len(pairs) < max(TOGETHER, TWO_PLACES * seen):
        return False
    places = np.array(pairs, np.float64)  # (pairs, 2, 2)
    offsets = places[:, 0] - places[:, 1]
    axis = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    backwards = offsets @ axis < 0  # which of the two is the first is not known: as their offset points one way
    places[backwards] = places[backwards][:, ::-1]
    return coherence(places[:, 0], places[:, 1]) < 0.5
