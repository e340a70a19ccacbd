"""Frames in other colours, so that slots know things by more than those.

B rows of a batch, N things, K slots (as many), H and W of the frame.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

EACH = 0.6
"""Probability that a thing of such a row has other colours."""
LEAST = 0.3
"""Least share of a thing's own colours in those that it is given."""


class Recolouring:
    """Colours of chance that things have in a share of the rows, for as long as a row's clip goes on.

    There colours do not tell which thing is which: any slot may take any thing when it first sees it, and then keeps it.
    """

    def __init__(self, rows: int, things: int, share: float) -> None:
        self.share = share
        self.chosen = torch.zeros(rows, dtype=torch.bool)
        """(B,) which rows are shown in other colours."""
        self.seats = torch.arange(things).repeat(rows, 1)
        """(B, N) the slot that is to see each thing: its own where colours are what they are."""
        self._order, self._gain = torch.zeros(rows, things, 3, dtype=torch.int64), torch.zeros(rows, things, 3)
        self._negative, self._other = torch.zeros(rows, things, 3), torch.zeros(rows, things, 3)

    def renew(self, rows: Tensor) -> None:
        """Choose anew for `rows` (B,), which begin another clip, and draw their colours: the channels in any order, each turned to its
        negative or not, mixed with any colour."""
        draw = torch.rand(5, *self._gain.shape)
        begins = rows.view(-1, 1, 1)
        painted = (draw[4, :, :, :1] < EACH).expand(-1, -1, 3)
        self.chosen = torch.where(rows, torch.rand(len(rows)) < self.share, self.chosen)
        self._order = torch.where(begins, torch.where(painted, draw[0].argsort(dim=2), torch.arange(3)), self._order)
        self._negative = torch.where(begins, ((draw[1] < 0.5) & painted).float(), self._negative)
        self._gain = torch.where(begins, torch.where(painted, LEAST + (1 - LEAST) * draw[2], 1.0), self._gain)
        self._other = torch.where(begins, draw[3], self._other)
        self.seats = torch.where(self.chosen.unsqueeze(1), self.seats, torch.arange(self.seats.shape[1]))

    def paint(self, images: Tensor, shares: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] with each thing of `shares` (B, N, H, W) in its row's colours; the background stays."""
        order, negative, gain, other = (part[..., None, None] for part in (self._order, self._negative, self._gain, self._other))
        turned = images.unsqueeze(1).expand(-1, shares.shape[1], -1, -1, -1).gather(2, order.expand(-1, -1, -1, *images.shape[2:]))
        turned = gain * (negative + (1 - 2 * negative) * turned) + (1 - gain) * other
        painted = (shares.unsqueeze(2) * turned).sum(dim=1) + (1 - shares.sum(dim=1, keepdim=True)) * images
        return torch.where(self.chosen.view(-1, 1, 1, 1), painted, images)

    def seat(self, cost: Tensor, lost: Tensor) -> Tensor:
        """The slot that is to see each thing (B, N), by the best assignment in chosen rows that are `lost` (B,): that begin, or whose slots
        are another row's. cost: (B, N, K) of thing n seen by slot k."""
        for row in torch.nonzero(self.chosen & lost).flatten().tolist():
            self.seats[row] = torch.from_numpy(linear_sum_assignment(cost[row].detach().cpu().numpy())[1].astype(np.int64))
        return self.seats
