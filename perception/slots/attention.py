"""Slot attention (Locatello et al. 2020) with learned queries.

The gradient is the bi-level one of BO-QSA (Jia et al. 2023).

B batch, L tokens, K slots, D slot width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.gru import GRUCell
from perception.slots.segments import DEFAULTS, EXACT, SegmentConfig


class SlotAttention(nn.Module):
    """Slots that compete for foreground tokens.

    Attention is normalised over slots, then averages tokens weighted by foreground. Every slot has
    a learned query, so that slots keep their order. The last iteration starts from detached slots,
    and its gradient passes straight through to the queries (Jia et al. 2023).

    Args:
        slots: K.
        width: D.
        iterations: Iterations on an episode's first frame.
        config: How pixels of unseen colours are grouped.
    """

    def __init__(
        self, slots: int, width: int, iterations: int, config: SegmentConfig = DEFAULTS
    ) -> None:
        super().__init__()
        self.iterations, self.config = iterations, config
        self.queries = nn.Parameter(torch.randn(slots, width))
        self.norm_tokens, self.norm_slots = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.cell = GRUCell(width, width)
        for projection in (self.to_query, self.to_key):
            # Logits of unit scale from the start: flat attention is slow to leave.
            nn.init.orthogonal_(projection.weight, gain=2.0)

    def forward(
        self,
        tokens: Tensor,
        weight: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        unseen: tuple[Tensor, Tensor] | None = None,
        skip: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Attend to the tokens of one frame.

        A first frame takes all iterations from the queries, a later one a single iteration from
        `previous`. Mixed rows all take all iterations, with static shapes.

        Args:
            tokens: (B, L, D).
            weight: (B, L) foreground of each token.
            previous: (B, K, D) slots of the frame before, None at a first frame.
            is_first: (B,) bool, rows that start anew although `previous` is given.
            unseen: (B, L) share of each token with unseen colours, which `weight` leaves out, and
                (B, L, 3) these colours in [0, 1]; unused slots take them.
            skip: As of `SlotModel.forward`.

        Returns:
            Slots (B, K, D) and attention logits (B, K, L).
        """
        tokens = self.norm_tokens(tokens)
        start = queries = self.queries.expand(tokens.shape[0], -1, -1)
        if skip and previous is not None and is_first is not None and not is_first.any():
            is_first = None
        if previous is None or is_first is not None:
            with torch.no_grad():
                for _ in range(self.iterations - 1):
                    start = self._iterate(start, tokens, weight)[0]
            start = start.detach()
        if previous is not None and is_first is not None:
            start = torch.where(is_first.view(-1, 1, 1), start, previous)
        elif previous is not None:
            start = previous
        slots, logits = self._iterate(start + queries - queries.detach(), tokens, weight)
        if unseen is None:
            return slots, logits
        return self._assign_unseen(slots, logits, start, tokens, weight, *unseen)

    def _iterate(self, slots: Tensor, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # Slots share all weights: without its query, a slot carried for long forgets which it is.
        # Keys and values are linear in tokens, of which there are many more than slots, so slots
        # are projected in their place: q (W t) = (q W) t, and sums over W t are W of the sums.
        q = self.to_query(self.norm_slots(slots + self.queries)) * slots.shape[-1] ** -0.5
        logits = (q @ self.to_key.weight) @ tokens.transpose(1, 2)  # (B, K, L)
        return self._update(slots, logits.softmax(dim=1) * weight.unsqueeze(1), tokens), logits

    def _update(self, slots: Tensor, attention: Tensor, tokens: Tensor) -> Tensor:
        # One token's worth of doubt: a slot without tokens takes in nothing, rather than what its
        # neighbours leave. No residual MLP follows the GRU: what it adds would add up over an
        # episode, while the state of a GRU is bounded.
        attention = attention / (attention.sum(dim=2, keepdim=True) + 1.0)
        return self.cell(self.cell.input(self.to_value(attention @ tokens)), slots)

    def _assign_unseen(
        self,
        slots: Tensor,
        logits: Tensor,
        before: Tensor,
        tokens: Tensor,
        weight: Tensor,
        unseen: Tensor,
        colours: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Assign tokens of unseen colours to unused slots after the last iteration.

        Tokens of one colour are one object, and go to the unused slot that they change least, from
        the slots `before` that iteration: the one that had them before.
        """
        unused = (logits.softmax(dim=1) * weight.unsqueeze(1)).sum(dim=2) < 1.0  # (B, K)
        left, certain = unseen, self.config.unseen_logit
        for _ in range(slots.shape[1]):
            seed = colours.gather(1, left.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 3))
            distance = torch.cdist(colours, seed, compute_mode=EXACT).squeeze(2)
            alike = distance < self.config.unseen_same_distance
            taken = left * alike  # (B, L)
            updated = self._update(before, taken.unsqueeze(1).expand_as(logits), tokens)
            change = (updated - before).square().sum(dim=2).masked_fill(~unused, torch.inf)
            nearest = unused & (change == change.amin(dim=1, keepdim=True))
            takes = (taken.sum(dim=1) >= self.config.unseen_tokens).unsqueeze(1) & nearest
            slots = torch.where(takes.unsqueeze(2), updated, slots)
            inside = (taken > weight).unsqueeze(1) & takes.any(dim=1).view(-1, 1, 1)
            logits = torch.where(inside, torch.where(takes.unsqueeze(2), certain, -certain), logits)
            unused, left = unused & ~takes, torch.where(alike, 0.0, left)
        return slots, logits
