"""The static background of a fixed camera, and the foreground before it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from perception.slots.alignment import Alignment, blurred, shifted
from perception.slots.shadows import shades

ALONE, NEAR, AROUND = 5.5, 3.5, 2.9
"""In standard deviations of the noise of each channel: the distance from the background at which a
pixel is foreground by itself, and its own and the root mean square of the 3 x 3 pixels around it at
which it is with its neighbours. Of noise alone, in three channels, 1 pixel in 10^6 is beyond the
first and 5 beyond both others."""
NORMAL = 1.4826
"""Standard deviation of normal noise over its median absolute value."""
LUMA, CHROMA, REACH = 0.06, 0.5, 8
"""Of compressed frames: the difference of brightness, or of colour, from which a pixel may be
foreground, and by which share of the greatest difference of colour within so many pixels it must
differ in colour: that of an object runs over into its surroundings."""
MIXED = 0.25
"""Share of its difference from the background by which a pixel that is mixed from that and a
neighbour may be of another colour."""
NEIGHBOURS = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
CENTRED = 6.0
"""Width of the bins in which a noisy pixel's colours are counted, in standard deviations."""


@dataclass(frozen=True)
class BackgroundConfig:
    """How the background is estimated. Distances are in the RGB cube of side 1."""

    certain_share: float = 0.9
    """Share of the frames from which a pixel's most common colour is certainly its background."""
    candidate_share: float = 0.015
    """Share of the frames from which a colour may be the background."""
    window: int = 2
    """Half the width, in pixels, of the window of neighbours that a doubtful pixel continues."""
    max_distance: float = 0.3
    """Distance from its neighbours from which it does not matter how far a colour is."""
    frequency_weight: float = 0.05
    """Distance that a colour e times as common makes up for."""
    same_distance: float = 0.025
    """Distance below which two pixels look the same."""
    changed_distance: float = 0.05
    """Distance from the background above which a pixel has changed: more than noise."""
    inpaint_rings: int = 3
    """Reach, in pixels, of inpainting into a region that an object never uncovers; 0 for none."""
    inpaint_area: int = 3
    """Pixels from which such a region is inpainted."""
    inpaint_frames: int = 1000
    """About how many frames are searched for such regions."""
    flicker_share: float = 0.8
    """Share of the steps in which a pixel changes, from which it is background whatever is done:
    things pass it now and then; inf for none."""
    flicker_colour_share: float = 0.05
    """Share of the frames from which a colour of such a pixel is the background's."""
    shadow_share: float = 0.1
    """Share of what is seen before a colour of the background that must be this colour darkened,
    for two such colours, if there are shadows; inf for none."""


def estimate_background(
    clips: NDArray[np.uint8], config: BackgroundConfig = BackgroundConfig(), noise: float = 0.0
) -> NDArray[np.uint8]:
    """Estimate for each pixel the colour of the scene behind all that moves.

    What covers a pixel most of the time (a door near its hinge) is not background. A colour is
    certain only where nearly all frames show it; from there the background grows inwards, where it
    continues most plainly first: of the colours that a doubtful pixel shows now and then, it takes
    one that is common and continues its known neighbours. Last, what a moving object never uncovers
    is inpainted.

    Args:
        clips: (E, T, H, W, 3), from randomized resets: what rests in one place in all of them
            is background.
        config: Thresholds.
        noise: Standard deviation of each channel's noise, of a range of 1.

    Returns:
        (H, W, 3).
    """
    height, width = clips.shape[2:4]
    frames = clips.reshape(-1, height, width, 3)
    if noise:  # bins as wide as the noise, the middle one about each pixel's median
        apart = frames - np.median(frames, axis=0).astype(np.int16)
        levels = np.rint(apart / max(4.0, CENTRED * noise * 255)).astype(np.int32) + 64
    else:
        levels = frames.astype(np.uint32) >> 2  # rendering noise is below one of 64 levels
    colours = (levels[..., 0] << 16) | (levels[..., 1] << 8) | levels[..., 2]  # 0 to 128 each
    background, known = np.zeros((height, width, 3)), np.zeros((height, width), dtype=bool)
    doubtful: dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for y, x in np.ndindex(height, width):
        _, index, counts = np.unique(colours[:, y, x], return_inverse=True, return_counts=True)
        shares = counts / len(frames)
        choice = np.flatnonzero(shares >= min(config.candidate_share, shares.max()))
        medians = np.stack([np.median(frames[:, y, x][index == i], axis=0) for i in choice])
        if shares.max() >= config.certain_share:
            background[y, x], known[y, x] = medians[shares[choice].argmax()], True
        else:
            doubtful[y, x] = shares[choice], medians

    def window(*place: int) -> tuple[slice, ...]:
        return tuple(slice(max(0, n - config.window), n + config.window + 1) for n in place)

    def best(place: tuple[int, int]) -> tuple[float, tuple[int, int], int]:
        """The cost of a doubtful pixel's best colour, the pixel, and the colour's index."""
        shares, medians = doubtful[place]
        around = background[window(*place)][known[window(*place)]]
        apart = np.linalg.norm((around[:, None] - medians) / 255, axis=2)
        unlike = np.quantile(apart, 0.25, axis=0) if len(around) else config.max_distance
        cost = np.minimum(unlike, config.max_distance) - config.frequency_weight * np.log(shares)
        return float(cost.min()), place, int(cost.argmin())

    latest = {place: best(place) for place in doubtful}
    heap = list(latest.values())
    heapq.heapify(heap)
    while doubtful:
        offer = heapq.heappop(heap)
        place = offer[1]
        if latest.get(place) != offer:
            continue  # its neighbours have changed since
        del latest[place]
        background[place], known[place] = doubtful.pop(place)[1][offer[2]], True
        rows, columns = window(*place)
        for near in np.ndindex(known[rows, columns].shape):
            other = rows.start + near[0], columns.start + near[1]
            if other in doubtful:
                latest[other] = best(other)
                heapq.heappush(heap, latest[other])
    estimate = background.astype(np.uint8)
    far, alike = (
        max(own, deviations * noise)
        for own, deviations in ((config.changed_distance, ALONE), (config.same_distance, 2 * NEAR))
    )
    config = replace(config, changed_distance=far, same_distance=alike)
    mask = never_uncovered(frames, estimate, config).astype(np.uint8)
    return np.asarray(cv2.inpaint(estimate, mask, 2, cv2.INPAINT_NS), np.uint8)


def flickering(
    clips: NDArray[np.uint8],
    background: NDArray[np.uint8],
    config: BackgroundConfig = BackgroundConfig(),
) -> NDArray[np.uint8]:
    """Find the other colours of a background part of which moves all the time, as a screen does.

    Args:
        clips: (E, T, H, W, 3).
        background: (H, W, 3), as `estimate_background` returns it.
        config: Thresholds.

    Returns:
        (V, H, W, 3), backgrounds that differ from the given one where it flickers; V is 0 if it
        does not.
    """
    limit = 255 * config.same_distance
    steps = (np.linalg.norm(np.diff(clip.astype(np.float32), axis=0), axis=3) for clip in clips)
    changes = np.mean([(step > limit).mean(axis=0) for step in steps], axis=0)
    pixels = np.argwhere(changes >= config.flicker_share)
    palettes = []
    for y, x in pixels:
        colours, counts = np.unique(clips[:, :, y, x].reshape(-1, 3), axis=0, return_counts=True)
        palettes.append(colours[counts >= config.flicker_colour_share * counts.sum()])
    others = np.repeat(background[None], max(map(len, palettes), default=0), axis=0)
    for (y, x), palette in zip(pixels, palettes, strict=True):
        others[: len(palette), y, x] = palette
    return others


def never_uncovered(
    frames: NDArray[np.uint8],
    background: NDArray[np.uint8],
    config: BackgroundConfig = BackgroundConfig(),
) -> NDArray[np.bool_]:
    """Find the pixels of a background that show an object that moves by less than its length.

    In most frames such a pixel looks like a neighbour that has changed: now on one side, now on the
    other. Pixels that are found count as changed in their turn, ring by ring.

    Args:
        frames: (B, H, W, 3).
        background: (H, W, 3).
        config: Thresholds.

    Returns:
        (H, W).
    """
    images = frames[:: max(1, len(frames) // config.inpaint_frames)].astype(np.float32) / 255
    difference = np.linalg.norm(images - background / np.float32(255), axis=3)
    changed = difference > config.changed_distance
    never = np.zeros(background.shape[:2], bool)
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    alike = [
        np.linalg.norm(images - np.roll(images, shift, axis=(1, 2)), axis=3) < config.same_distance
        for shift in shifts
    ]
    for _ in range(config.inpaint_rings):
        belongs = np.zeros_like(changed)
        for shift, like in zip(shifts, alike, strict=True):
            belongs |= like & np.roll(changed | never, shift, axis=(1, 2))
        often = (belongs & ~changed).mean(axis=0) > 0.5 * (~changed).mean(axis=0)
        # At the edge of the picture a neighbour would be a pixel of the opposite side.
        never[1:-1, 1:-1] |= often[1:-1, 1:-1]
    _, regions, sizes, _ = cv2.connectedComponentsWithStats(never.astype(np.uint8))
    return never & (sizes[regions, cv2.CC_STAT_AREA] >= config.inpaint_area)


def nearest_background(frames: Tensor, backgrounds: Iterable[Tensor]) -> Tensor:
    """Choose for each pixel the background colour nearest to the frame's.

    A task's variants (one block or two, each with its goal) share a camera but not a floor.

    Args:
        frames: (B, 3, H, W).
        backgrounds: The empty scenes, each (3, H, W), or (B, 3, H, W) as each frame sees it.

    Returns:
        (B, 3, H, W).
    """
    first, *others = backgrounds
    nearest, least = first.expand_as(frames), (frames - first).square().sum(dim=1, keepdim=True)
    for other in others:  # a fifth of the time of argmin over so few
        distance = (frames - other).square().sum(dim=1, keepdim=True)
        nearest = torch.where(distance < least, other, nearest)
        least = torch.minimum(distance, least)
    return nearest


def foreground_alpha(
    frames: Tensor,
    background: Tensor,
    threshold: float,
    softness: float,
    noise: Tensor | None = None,
) -> Tensor:
    """Soft foreground mask by distance from the background.

    Args:
        frames: (B, 3, H, W) in [0, 1].
        background: (B, 3, H, W) in [0, 1].
        threshold: Colour distance, in the RGB cube of side 1, at which alpha is one half.
        softness: Width of the transition, in the same unit.
        noise: (B, H, W) standard deviation of each channel's noise, of a range of 1: thresholds
            rise with it (ALONE, NEAR, AROUND); None, or 0, changes nothing.

    Returns:
        (B, H, W) in [0, 1].
    """
    squared = (frames - background).square().sum(dim=1).add(1e-8)
    beyond = distance = squared.sqrt()
    if noise is not None:
        alone, near, around = ((k * noise).clamp(min=threshold) for k in (ALONE, NEAR, AROUND))
        pooled = blurred(squared.unsqueeze(1)).squeeze(1).sqrt()
        beyond = torch.maximum(distance - alone, torch.minimum(distance - near, pooled - around))
        beyond = torch.where(noise > 0, beyond + threshold, distance)
    return torch.sigmoid((beyond - threshold) / softness)


def luma_chroma(pictures: Tensor) -> Tensor:
    """Brightness and two differences of colour (B, 3, H, W) of pictures, as JPEG has them."""
    red, green, blue = pictures.unbind(dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([luma, 0.564 * (blue - luma), 0.713 * (red - luma)], dim=1)


def compressed_alpha(rest: Tensor, noise: Tensor, softness: float) -> Tensor:
    """Soft foreground mask of compressed frames, by brightness or by colour.

    Args:
        rest: (B, 3, H, W) differences from the background.
        noise: (B, H, W) standard deviation of each channel's noise, of a range of 1.
        softness: Width of the transition, of the same range.

    Returns:
        (B, H, W) in [0, 1].
    """
    luma, *chroma = luma_chroma(rest).unbind(dim=1)
    colour = torch.stack(chroma).square().sum(dim=0).sqrt()
    most = F.max_pool2d(colour.unsqueeze(1), 2 * REACH + 1, stride=1, padding=REACH).squeeze(1)
    least = (ALONE * noise).clamp(min=LUMA)
    beyond = torch.minimum(colour - least, colour - CHROMA * most)
    return torch.sigmoid(torch.maximum(luma.abs() - least, beyond) / softness)


@dataclass
class View:
    """Frames before their background."""

    images: Tensor
    """(B, 3, H, W) about [0, 1], as bright as the background."""
    background: Tensor
    """(B, 3, H, W), where the camera sees it."""
    alpha: Tensor
    """(B, H, W) foreground."""
    shift: Tensor
    """(B, 2) pixels by which the camera shook, to the right and down."""


def view(
    images: Tensor,
    backgrounds: Tensor,
    threshold: float,
    softness: float,
    alignment: Alignment | None = None,
    compressed: bool = False,
    darkest: float = 1.0,
) -> View:
    """Tell frames from the background.

    Args:
        images: (B, 3, H, W) in [0, 1].
        backgrounds: (V, 3, H, W) in [0, 1].
        threshold: As of `foreground_alpha`.
        softness: Likewise.
        alignment: With the backgrounds, for a camera that is not exact: each frame's brightness,
            shift and noise are measured. On a frame that equals its background nearly everywhere
            they change nothing, unless the alignment has a spread.
        compressed: With an alignment, whether frames have been compressed.
        darkest: Share of its brightness that a background keeps in shadows, which are background;
            1 for no shadows. Without an alignment only.

    Returns:
        The view.
    """
    shift = images.new_zeros(len(images), 2)
    if alignment is None or threshold < 0:  # below 0 all is foreground
        background = nearest_background(images, backgrounds)
        alpha = foreground_alpha(images, background, threshold, softness)
        if darkest < 1:
            kept = shades(images, backgrounds)
            alpha = alpha * ((kept < darkest) | (kept == 1))
        return View(images, background, alpha, shift)
    images, background, shift = aligned(images, backgrounds, alignment)
    rest = images - background
    noise = (rest.abs().flatten(1).median(dim=1).values * NORMAL).view(-1, 1, 1)
    spread = shifted(alignment.spread.expand(len(images), 1, -1, -1), shift).squeeze(1)
    noise = torch.maximum(noise, spread)
    if compressed:
        return View(images, background, compressed_alpha(rest, noise, softness), shift)
    alpha = foreground_alpha(images, background, threshold, softness, noise)
    return View(images, background, alpha * ~mixed(rest, noise), shift)


def aligned(
    images: Tensor, backgrounds: Tensor, alignment: Alignment
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring frames and backgrounds in line.

    Args:
        images: (B, 3, H, W) in [0, 1].
        backgrounds: (V, 3, H, W) in [0, 1].
        alignment: With the backgrounds.

    Returns:
        The frames, as bright as the backgrounds; the nearest backgrounds where the camera sees
        them, both (B, 3, H, W); and shifts (B, 2).
    """
    gain, shift = alignment(images)
    images = (images / gain.view(-1, 1, 1, 1)).clamp(0, 1)
    still = (shift == 0).all(1).view(-1, 1, 1, 1)
    seen = [
        torch.where(still, empty, shifted(empty.expand_as(images), shift)) for empty in backgrounds
    ]
    return images, nearest_background(images, seen), shift


def mixed(rest: Tensor, noise: Tensor) -> Tensor:
    """Find pixels that are more than half background and the rest of a neighbour's colour.

    So the rim of an object looks to a camera that is a fraction of a pixel aside.

    Args:
        rest: (B, 3, H, W) differences from the background.
        noise: (B, H, W) standard deviation of each channel's noise.

    Returns:
        (B, H, W) bool.
    """
    height, width = rest.shape[-2:]
    around = F.pad(rest, (1, 1, 1, 1), mode="replicate")
    own = rest.square().sum(1)
    found = torch.zeros_like(own, dtype=torch.bool)
    for y, x in NEIGHBOURS:
        other = around[..., y : y + height, x : x + width]
        square = other.square().sum(1)
        product = (rest * other).sum(1)
        # |rest - a other|² with a = product / square
        unlike = (own - product.square() / square.clamp(min=1e-8)).clamp(min=0)
        like = unlike < torch.maximum(MIXED**2 * own, (NEAR * noise).square())
        found |= (product > 0) & (product < square / 2) & like
    return found & (noise > 0)
