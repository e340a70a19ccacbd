"""Brings frames in line with a background: the brightness of each, and how far the camera shook.

B frames, V backgrounds, C channels, N points, H and W of the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELL, EACH = 8, 8
"""Points that are compared: in each cell of so many pixels a side, those with the strongest edges.
All over the picture, since where edges are strongest there may be a robot."""
RIM = 2
"""Pixels at the rim that are no points."""
EDGE = 0.02
"""Range of a colour in 3 x 3 pixels, in all backgrounds, from which a point lies on an edge."""
REACH, GAIN = 3.0, 5.0
"""Greatest shift in pixels, and greatest change of brightness."""
UNMOVED = 0.05
"""Share of the points on edges that are unchanged in the frames of a camera at rest."""
BRIGHT = 0.02
"""Colour from which a background's brightness tells the gain of a frame at first."""
ROUNDS = 5
"""Of iteratively reweighted least squares; in the first two, outliers are cut off less sharply."""


class Alignment(nn.Module):
    """Finds the gain and the shift of each frame: I(x + shift) = gain R(x), R the background.

    By iteratively reweighted least squares (Lucas and Kanade 1981, with weights of Geman and
    McClure 1985: objects before the background are outliers) and a prior of one pixel on shifts.
    Where a frame is equal to a background at most points and at some edges, the gain is exactly 1
    and the shift 0.

    Args:
        backgrounds: (V, C, H, W) in [0, 1], H and W at least CELL; each point is compared with
            the most similar one.
    """

    def __init__(self, backgrounds: Tensor) -> None:
        super().__init__()
        self.spread = nn.Buffer(torch.zeros(backgrounds.shape[-2:]))
        """(H, W) standard deviation of what is left of each channel of the background when frames
        have been aligned: edges are where they are to a fraction of a pixel only."""
        for name in ("places", "values", "slopes", "edges", "bright"):
            self.register_buffer(name, None, persistent=False)
        self.choose(backgrounds)

    @torch.no_grad()
    def choose(self, backgrounds: Tensor) -> None:
        """Choose the points at which frames are compared with backgrounds."""
        height, width = backgrounds.shape[-2:]
        smooth = blurred(backgrounds)
        padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
        along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        strengths = (along_x.square() + along_y.square()).sum(1)  # (V, H, W)
        strength = strengths.amax(0)
        rim = F.pad(backgrounds, (1, 1, 1, 1), mode="replicate")
        around = F.max_pool2d(rim, 3, stride=1) + F.max_pool2d(-rim, 3, stride=1)
        steep = around.amax(1).amin(0)  # (H, W)
        inside = torch.zeros_like(strength)
        inside[RIM:-RIM, RIM:-RIM] = 1.0
        cells = (inside * (strength + 1e-9)).unfold(0, CELL, CELL).unfold(1, CELL, CELL)
        best = cells.flatten(2).topk(EACH).indices  # (rows, columns, EACH)
        corners = (torch.arange(n // CELL, device=best.device) * CELL for n in (height, width))
        row, column = torch.meshgrid(*corners, indexing="ij")
        y = (row.unsqueeze(-1) + best // CELL).flatten()
        x = (column.unsqueeze(-1) + best % CELL).flatten()
        self.places = torch.stack([x, y], dim=1).to(smooth.dtype)
        self.values = smooth[..., y, x]
        self.slopes = torch.stack([along_x[..., y, x], along_y[..., y, x]], dim=1)
        self.edges = (steep[y, x] > EDGE).nonzero().squeeze(1)
        self.bright = (self.values[0].flatten() > BRIGHT).nonzero().squeeze(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Align frames.

        Args:
            images: (B, C, H, W) in [0, 1].

        Returns:
            Gains (B,) and shifts (B, 2), pixels to the right and down.
        """
        smooth = blurred(images)
        batch, _, height, width = images.shape
        size = images.new_tensor([width - 1, height - 1])

        def sampled(shift: Tensor) -> Tensor:
            """(B, C, N)."""
            grid = (self.places + shift.unsqueeze(1)) * 2 / size - 1
            return F.grid_sample(
                smooth, grid.unsqueeze(1), padding_mode="border", align_corners=True
            ).squeeze(2)

        shift = images.new_zeros(batch, 2)
        start, gain = sampled(shift), images.new_ones(batch)
        if len(self.bright):
            ratios = start.flatten(1)[:, self.bright] / self.values[0].flatten()[self.bright]
            gain = ratios.median(dim=1).values.clamp(1 / GAIN, GAIN)
        exact = self._exact((start.unsqueeze(1) - self.values).abs().amax(2).amin(1))
        for step in range(ROUNDS):
            scale = gain.view(-1, 1, 1, 1)
            errors = sampled(shift).unsqueeze(1) - scale * self.values
            nearest = errors.square().sum(2).argmin(1)  # (B, N)
            error = _chosen(errors, nearest)
            value, slope = _chosen(self.values[None], nearest), _chosen(self.slopes[None], nearest)
            squared = error.square().sum(1)
            variance = self._median(squared).unsqueeze(1) * (4 if step < 2 else 1) + 1e-7
            weight = 1 / (1 + squared / (4 * variance)).square()
            jacobian = torch.cat([value.unsqueeze(1), -scale * slope], dim=1)  # (B, 3, C, N)
            weighted = (jacobian * weight[:, None, None]).flatten(2)
            prior = F.pad(variance.expand(-1, 2), (1, 0))
            normal = weighted @ jacobian.flatten(2).transpose(1, 2) + torch.diag_embed(prior + 1e-3)
            right = (weighted @ error.flatten(1).unsqueeze(2)).squeeze(2)
            change = torch.linalg.solve(normal, right - prior * F.pad(shift, (1, 0)))
            gain = (gain + change[:, 0]).clamp(1 / GAIN, GAIN)
            shift = (shift + change[:, 1:]).clamp(-REACH, REACH)
        return torch.where(exact, 1.0, gain), torch.where(exact.unsqueeze(1), 0.0, shift)

    def _exact(self, apart: Tensor) -> Tensor:
        """Whether frames (B,) are equal to a background at most points and at some edges.

        When a camera moves, no edge stays where it was; a pattern that moves before one that rests
        leaves the others alone.
        """
        exact = apart.median(dim=1).values == 0
        if not len(self.edges):
            return exact
        return exact & (apart[:, self.edges].quantile(UNMOVED, dim=1) == 0)

    def _median(self, values: Tensor) -> Tensor:
        """The larger of the medians of values (B, N) at all points and at those on edges: (B,)."""
        everywhere = values.median(dim=1).values
        if not len(self.edges):
            return everywhere
        return torch.maximum(everywhere, values[:, self.edges].median(dim=1).values)


def shifted(pictures: Tensor, shift: Tensor) -> Tensor:
    """Move pictures (B, C, H, W) by shifts (B, 2) in pixels; the rim is repeated."""
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(
        *(torch.arange(n, device=pictures.device, dtype=pictures.dtype) for n in (height, width)),
        indexing="ij",
    )
    grid = torch.stack(
        [
            (x - shift[:, 0, None, None]) * 2 / (width - 1) - 1,
            (y - shift[:, 1, None, None]) * 2 / (height - 1) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=True)


def blurred(pictures: Tensor) -> Tensor:
    """Means over 3 x 3 pixels of pictures (B, C, H, W)."""
    return F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _chosen(values: Tensor, nearest: Tensor) -> Tensor:
    """Choose by background V: values (B or 1, V, ..., N) and choices (B, N) -> (B, ..., N)."""
    index = nearest.view(len(nearest), *[1] * (values.ndim - 2), -1)
    shape = len(nearest), *values.shape[1:]
    return values.expand(shape).gather(1, index.expand(len(nearest), 1, *shape[2:])).squeeze(1)
