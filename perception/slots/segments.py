"""Things that a fixed camera sees, and how to see them in a frame: each owns some colours.

A colour that lies in two places that move apart (white fingers before a white board) belongs to no
thing by itself: its pixels go, in every frame, to the thing that is near and like them, and so do
specks that lie on another thing. What moves most of the time may be divided into two limbs, of
which one is more solid. Which things there are, `perception.finding` tells.

B frames, H and W of a frame, S pixels of them in which something is, P parts (colours), N things.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import cv2
import numpy as np
import torch
from kornia.color import rgb_to_lab
from numpy.typing import NDArray
from torch import Tensor, nn

LIGHTNESS = 0.5
"""Weight of lightness beside hue and chroma in the distance of colours: shading changes the one and
hardly the others."""
LEAST = 4
"""Pixels from which a part counts as seen in a frame."""
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
OFTEN = 0.15
"""Probability that a pixel of a shared part belongs to a thing from which that colour is one of the
thing's."""
SUCH = 0.15
"""Distance from a thing's colours below which a speck may be its own."""
STRANGE, LEVELS = 0.2, 64
"""Distance from all parts from which a colour is one that was never seen; levels of each primary
for which that is written down."""
SOME = 1e-3
"""Share of a pixel from which something is there."""
RARE = 1e-3
"""Least probability that a pixel of a shared part belongs to a thing."""
ROUNDS = 6
"""Rounds of expectation and maximisation over shared pixels."""


def colours_of(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as lightness, a and b of CIE Lab: (B, 3, H, W),
    about [-1, 1]."""
    return rgb_to_lab(images) / 100 * images.new_tensor([LIGHTNESS, 1.0, 1.0]).view(1, 3, 1, 1)


class SegmentProposals(nn.Module):
    """The things that were found, and how to see them in a frame.

    colours: (P, 3) of the parts, as `colours_of`; owner: (P,) which of the `bodies` each part
    belongs to, -1 for shared ones. Bodies are things, but for those with a joint, as many as
    `joints`: their limbs are two things.
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
        self.register_buffer(
            "never_seen", torch.zeros(LEVELS**3, dtype=torch.bool), persistent=False
        )
        self.never_seen: Tensor
        """Whether colours are strange, over a grid of the RGB cube; none is before `tabulate`."""
        self.register_load_state_dict_post_hook(lambda things, _: things.tabulate())

    def parts(self, pixels: Tensor) -> Tensor:
        """The part nearest in colour to each of the pixels (S, 3) in [0, 1]: (S,)."""
        lab = colours_of(pixels.T.view(1, 3, 1, -1)).view(3, -1).T
        return torch.cdist(lab, self.colours, compute_mode=EXACT).argmin(dim=1)

    def strange(self, images: Tensor) -> Tensor:
        """Which pixels of images (B, 3, H, W) in [0, 1] have the colour of no part: (B,
        H, W) bool."""
        red, green, blue = (images * (LEVELS - 1) + 0.5).long().unbind(dim=1)
        return self.never_seen[(red * LEVELS + green) * LEVELS + blue]

    @torch.no_grad()
    def tabulate(self) -> None:
        """Write down which colours are strange, so that `strange` need not compare each pixel with
        all parts."""
        levels = torch.linspace(0, 1, LEVELS, device=self.colours.device)
        cube = (
            colours_of(torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 1, -1))
            .flatten(2)[0]
            .T
        )
        self.never_seen.copy_(
            torch.cdist(cube, self.colours, compute_mode=EXACT).amin(dim=1) > STRANGE
        )

    @torch.no_grad()
    def forward(self, images: Tensor, foreground: Tensor) -> Tensor:
        """Share of each pixel that belongs to each thing: images (B, 3, H, W) in [0, 1] and
        foreground (B, H, W) in [0, 1] -> (B, N, H, W), whose sum over things is the foreground,
        where that is more than SOME. The second limb of a body with a joint comes after all bodies.
        """
        pixels = Pixels(foreground)
        shares = self._without_specks(
            images, pixels.back(self._bodies(pixels, self.parts(pixels.of(images))))
        )
        for joint in self._joints():
            limbs = joint(shares[:, joint.body])
            shares[:, joint.body] = limbs[:, 0]
            shares = torch.cat([shares, limbs[:, 1:]], dim=1)
        return shares

    def _joints(self) -> list[Joint]:
        return [cast(Joint, joint) for joint in self.joints]

    def _bodies(self, pixels: Pixels, parts: Tensor) -> Tensor:
        """Shares (S, N) of the pixels of the foreground, which are of these parts (S,)."""
        owner = self.owner[parts]
        shared = owner < 0
        shares = nn.functional.one_hot(owner.clamp(min=0), self.bodies).float() * ~shared.unsqueeze(
            1
        )
        likeness = self.likeness.T[parts[shared]]
        for _ in range(ROUNDS if len(likeness) else 0):
            mass, squares = pixels.about(shares, shared)
            logits = likeness - squares / (2 * self.spread.square()) - 2 * self.spread.log()
            logits = logits.masked_fill(mass[pixels.row[shared]] < LEAST - 1, -1e6)
            shares[shared] = logits.T.softmax(dim=0).T  # many times as fast as over rows so short
        return shares

    def _without_specks(self, images: Tensor, shares: Tensor) -> Tensor:
        """Give specks to what they lie on: shares (B, N, H, W) -> (B, N, H, W).

        The edge of a brown handle may have the brown of a board, far from it. A blob that is much
        less than a thing's largest in the frame goes to the thing that it borders on, if that has
        such colours too.
        """
        total, colours = shares.sum(dim=1), colours_of(images).permute(0, 2, 3, 1).cpu().numpy()
        labels = torch.where(total > 0.5, shares.argmax(dim=1), -1).cpu().numpy()
        often = self.likeness.exp() > OFTEN
        palettes = [
            self.colours[(self.owner == thing) | ((self.owner < 0) & often[thing])].cpu().numpy()
            for thing in range(self.bodies)
        ]
        tidy = labels.copy()
        for frame, lab, new in zip(labels, colours, tidy, strict=True):
            for speck in (
                speck for thing in range(self.bodies) for speck in _specks(frame == thing)
            ):
                other = _lies_on(speck, frame)
                if other is None:
                    continue
                apart = (
                    np.linalg.norm(lab[speck][:, None] - palettes[other], axis=2)
                    .min(axis=1, initial=np.inf)
                    .mean()
                )
                if apart < SUCH:
                    new[speck] = other
        given = torch.from_numpy(tidy).to(shares.device)
        own = nn.functional.one_hot(given.clamp(min=0), self.bodies).permute(
            0, 3, 1, 2
        ) * total.unsqueeze(1)
        return torch.where(
            (given == torch.from_numpy(labels).to(shares.device)).unsqueeze(1), shares, own
        )

    @torch.no_grad()
    def fit(self, images: Tensor, foreground: Tensor) -> None:
        """Fit `spread`, and how likely each thing has a pixel of each shared part, to frames as
        `forward` takes them."""
        pixels = Pixels(foreground)
        parts = self.parts(pixels.of(images))
        for _ in range(FITS):
            shares = self._bodies(pixels, parts)
            weights = shares * pixels.weight.unsqueeze(1)
            counts = torch.zeros_like(self.likeness.T).index_add_(0, parts, weights).T
            mass = counts.sum(dim=1)
            squares = (weights * pixels.about(shares)[1]).sum(dim=0)
            self.spread.copy_((squares / (2 * mass).clamp(min=1.0)).sqrt().clamp(min=SPREAD))
            self.likeness.copy_((counts / counts.sum(dim=0).clamp(min=1.0) + RARE).log())

    @torch.no_grad()
    def find_joints(self, images: Tensor, foreground: Tensor, moved: Tensor) -> None:
        """Give the joints to the bodies that move most of the time, and learn their limbs. moved:
        (B, H, W) bool, whether a pixel is not what it was in the frame before."""
        pixels = Pixels(foreground)
        bodies = pixels.back(self._bodies(pixels, self.parts(pixels.of(images))))
        mass = bodies.sum(dim=(2, 3))
        active = torch.einsum("bnhw,bhw->n", bodies, moved.float()) / mass.sum(dim=0).clamp(min=1.0)
        for joint, body in zip(self._joints(), active.argsort(descending=True), strict=False):
            joint.body.copy_(body)
            joint.fit(bodies[mass[:, body] >= 4 * LEAST, body])


class Pixels:
    """The S pixels of frames in which something is, one after the other. share: (B, H, W), how much
    of each it has."""

    def __init__(self, share: Tensor) -> None:
        self.shape = share.shape
        self.row, y, x = (share > SOME).nonzero(as_tuple=True)
        self.index = self.row, y, x
        self.place = torch.stack([x, y], dim=1).float()
        """(S, 2) x and y; row: (S,) which frame."""
        self.weight = share[self.index]
        """(S,)."""

    def of(self, images: Tensor) -> Tensor:
        """What images (B, C, H, W) have there: (S, C)."""
        row, y, x = self.index
        return images[row, :, y, x]

    def sums(self, values: Tensor) -> Tensor:
        """Sums (B, ...) of values (S, ...) by frame."""
        return values.new_zeros(self.shape[0], *values.shape[1:]).index_add_(0, self.row, values)

    def back(self, shares: Tensor) -> Tensor:
        """What shares (S, N) of each pixel are of the whole: (B, N, H, W), zero where
        nothing is."""
        whole = shares.new_zeros(*self.shape, shares.shape[1])
        whole[self.index] = shares * self.weight.unsqueeze(1)
        return whole.permute(0, 3, 1, 2)

    def about(self, shares: Tensor, chosen: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Pixels (B, N) of each of N things with these shares (S, N), and how far from its
        centroid, squared, each of the chosen pixels lies (S, N)."""
        own = shares * self.weight.unsqueeze(1)
        mass = self.sums(own)
        centroids = self.sums(own.unsqueeze(2) * self.place.unsqueeze(1)) / mass.clamp(
            min=1e-6
        ).unsqueeze(2)
        return mass, (self.place[chosen].unsqueeze(1) - centroids[self.row[chosen]]).square().sum(
            dim=2
        )


def _specks(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Blobs (H, W) of a mask (H, W) that have at most half of its largest one's pixels."""
    count, blobs, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    sizes = boxes[1:, cv2.CC_STAT_AREA]
    return (blobs == blob for blob in range(1, count) if sizes[blob - 1] <= sizes.max() / 2)


def _lies_on(speck: NDArray[np.bool_], labels: NDArray[np.int64]) -> int | None:
    """Which thing has most, and at least a third, of the pixels around a speck (H, W); labels: (H,
    W), -1 for the background."""
    around = labels[(cv2.dilate(speck.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~speck]
    touching = np.bincount(around + 1)[1:]
    return int(touching.argmax()) if touching.size and touching.max() * 3 >= len(around) else None


class Joint(nn.Module):
    """Where a thing of one colour bends: how to tell its two limbs apart.

    A forearm is solid and fingers are not: of what lies around a limb's pixels, more or less
    belongs to the same thing. Pixels are given to limbs by that and by where they lie, as a mixture
    of two Gaussians in each frame.
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
        pixels = Pixels(share)
        kind = self._kind(_surroundings(share, pixels))
        limbs = kind.T.softmax(dim=0).T
        for _ in range(ROUNDS):
            limbs = self._given_places(kind, limbs, pixels)
        return pixels.back(limbs)

    @torch.no_grad()
    def fit(self, share: Tensor) -> None:
        """Learn the limbs of a thing from its share of the pixels in frames (B, H, W).

        They start as the halves across its longer axis, that with the more solid surroundings as
        the second limb.
        """
        pixels = Pixels(share)
        around, weight = _surroundings(share, pixels), pixels.weight.unsqueeze(1)
        centres = pixels.sums(weight * pixels.place) / pixels.sums(weight)
        centred = pixels.place - centres[pixels.row]
        axis = torch.linalg.eigh(
            pixels.sums(weight.unsqueeze(2) * centred.unsqueeze(1) * centred.unsqueeze(2))
        )[1][:, :, 1]
        side = ((centred * axis[pixels.row]).sum(dim=1) > 0).float()
        limbs = torch.stack([1 - side, side], dim=1)
        own = limbs * weight
        solid = pixels.sums(own * around[:, -1:]) / pixels.sums(own).clamp(min=1e-6)
        limbs = torch.where(
            (solid[:, 1] > solid[:, 0])[pixels.row].unsqueeze(1), limbs, limbs.flip(1)
        )
        for _ in range(JOINT_ROUNDS):
            own = limbs * weight
            mass = own.sum(dim=0).clamp(min=1e-6)
            self.mean.copy_(own.T @ around / mass.unsqueeze(1))
            squares = (around.unsqueeze(1) - self.mean).square()
            self.variance.copy_(
                (torch.einsum("sn,snf->nf", own, squares) / mass.unsqueeze(1)).clamp(min=1e-4)
            )
            self.spread.copy_(
                ((own * pixels.about(limbs)[1]).sum(dim=0) / (2 * mass)).sqrt().clamp(min=2.0)
            )
            limbs = self._given_places(self._kind(around), limbs, pixels)

    def _kind(self, around: Tensor) -> Tensor:
        """(S, 2) log-likelihood of surroundings (S, F); they overlap, and count as one."""
        deviation = (around.unsqueeze(1) - self.mean).square() / self.variance + self.variance.log()
        return -0.5 * deviation.mean(dim=2)

    def _given_places(self, kind: Tensor, limbs: Tensor, pixels: Pixels) -> Tensor:
        mass, squares = pixels.about(limbs)
        logits = (
            kind
            - squares / (2 * self.spread.square())
            - 2 * self.spread.log()
            + (mass + 1).log()[pixels.row]
        )
        return logits.T.softmax(dim=0).T


def _surroundings(share: Tensor, pixels: Pixels) -> Tensor:
    """How much of the squares around each pixel belongs to the thing of this share (B, H, W): (S,
    F)."""
    squares = [
        nn.functional.avg_pool2d(share, 2 * r + 1, stride=1, padding=r, count_include_pad=False)
        for r in AROUND
    ]
    return pixels.of(torch.stack(squares, dim=1))
