"""Slot attention (Locatello et al. 2020) with learned queries and the bi-level gradient of BO-QSA
(Jia et al. 2023).

B batch, L tokens, K slots, D slot width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.gru import GRUCell
from perception.slots.segments import EXACT

ALIKE = 0.15
"""Distance in the RGB cube of side 1 below which two strange colours are one."""
WORTH = 3.0
"""Tokens from which they are a thing."""
CERTAIN = 20.0
"""Logit of a token that is given to a slot; less that, of it in the others."""


def straight_through(start: Tensor, queries: Tensor) -> Tensor:
    """`start`, whose gradient goes to the queries that it came from (Jia et al. 2023)."""
    return start + queries - queries.detach()


class SlotAttention(nn.Module):
    """Slots compete for foreground tokens: attention is normalised over slots, then a mean over
    tokens weighted by foreground.

    Every slot has its own learned query, so that slots keep their order; the last iteration starts
    from detached slots, with the gradient passed straight through to the queries.
    """

    def __init__(self, slots: int, width: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.queries = nn.Parameter(torch.randn(slots, width))
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_slots = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.cell = GRUCell(width, width)
        for projection in (self.to_query, self.to_key):
            nn.init.orthogonal_(
                projection.weight, gain=2.0
            )  # logits of unit scale from the start: flat attention is slow to leave

    def forward(
        self,
        tokens: Tensor,
        weight: Tensor,
        previous: Tensor | None = None,
        is_first: Tensor | None = None,
        strange: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Slots (B, K, D) and attention logits (B, K, L) of tokens (B, L, D) with foreground weight
        (B, L).

        previous: slots (B, K, D) of the frame before, None at a first frame; is_first: (B,) bool,
        rows that start anew although `previous` is given. A first frame takes all iterations from
        the queries, a later one a single iteration from `previous`. Where rows are mixed, all take
        all iterations, with static shapes: they cost little beside the encoder, and nothing has to
        wait for the value of `is_first`. strange: (B, L) the share of each token that has colours
        of no known thing, which `weight` leaves out, and (B, L, 3) these colours, in [0, 1]; idle
        slots see such things.
        """
        tokens = self.norm_tokens(tokens)
        keys, values = self.to_key(tokens), self.to_value(tokens)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        start = queries
        if previous is None or is_first is not None:
            with torch.no_grad():
                for _ in range(self.iterations - 1):
                    start = self._iterate(start, keys, values, weight)[0]
            start = start.detach()
        if previous is not None:
            start = (
                previous
                if is_first is None
                else torch.where(is_first.view(-1, 1, 1), start, previous)
            )
        slots, logits = self._iterate(straight_through(start, queries), keys, values, weight)
        return (
            (slots, logits)
            if strange is None
            else self._assign_unseen(slots, logits, start, values, weight, *strange)
        )

    def _iterate(
        self, slots: Tensor, keys: Tensor, values: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Slots share all weights: without its query beside it, a slot carried for long forgets
        # which one it is.
        q = self.to_query(self.norm_slots(slots + self.queries)) * slots.shape[-1] ** -0.5
        logits = q @ keys.transpose(1, 2)  # (B, K, L)
        attention = logits.softmax(dim=1) * weight.unsqueeze(1)
        return self._update(slots, attention, values), logits

    def _update(self, slots: Tensor, attention: Tensor, values: Tensor) -> Tensor:
        # One token's worth of doubt: a slot that sees nothing takes in nothing, rather than the
        # leavings of its neighbours. No residual MLP follows the GRU: what it adds at every frame
        # adds up over an episode, while the state of a GRU is bounded.
        attention = attention / (attention.sum(dim=2, keepdim=True) + 1.0)
        return self.cell(self.cell.input(attention @ values), slots)

    def _assign_unseen(
        self,
        slots: Tensor,
        logits: Tensor,
        before: Tensor,
        values: Tensor,
        weight: Tensor,
        strange: Tensor,
        colours: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Let idle slots see what is strange: slots and logits after the last iteration, which
        began from the slots `before`, as they are then. Tokens of one strange colour are one thing,
        and go to the idle slot that they change least: the one that saw them before.
        """
        idle = (logits.softmax(dim=1) * weight.unsqueeze(1)).sum(dim=2) < 1.0  # (B, K)
        left = strange
        for _ in range(slots.shape[1]):
            seed = colours.gather(1, left.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 3))
            alike = torch.cdist(colours, seed, compute_mode=EXACT).squeeze(2) < ALIKE
            thing = left * alike  # (B, L)
            adopted = self._update(before, thing.unsqueeze(1).expand_as(logits), values)
            change = (adopted - before).square().sum(dim=2).masked_fill(~idle, torch.inf)
            takes = (
                (thing.sum(dim=1) >= WORTH).unsqueeze(1)
                & idle
                & (change == change.amin(dim=1, keepdim=True))
            )
            slots = torch.where(takes.unsqueeze(2), adopted, slots)
            inside = (thing > weight).unsqueeze(1) & takes.any(dim=1).view(-1, 1, 1)
            logits = torch.where(inside, torch.where(takes.unsqueeze(2), CERTAIN, -CERTAIN), logits)
            idle, left = idle & ~takes, torch.where(alike, 0.0, left)
        return slots, logits
