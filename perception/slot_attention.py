"""Slot attention (Locatello et al. 2020) with learned queries and the bi-level gradient of BO-QSA (Jia et al. 2023).

B batch, L tokens, K slots, D slot width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.gru import GRUCell


class SlotAttention(nn.Module):
    """Slots compete for foreground tokens: attention is normalised over slots, then a mean over tokens weighted by foreground.

    Every slot has its own learned query, so that slots keep their order; the last iteration starts from detached slots, with the
    gradient passed straight through to the queries. doubt: tokens' worth of it in all iterations but the last, which has one: a slot
    that sees nothing takes in nothing, rather than the leavings of its neighbours. With little doubt it first looks at these, and finds
    a thing in colours that are nobody's.
    """

    def __init__(self, slots: int, width: int, iterations: int, doubt: float = 1.0) -> None:
        super().__init__()
        self.iterations, self.doubt = iterations, doubt
        self.queries = nn.Parameter(torch.randn(slots, width))
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_slots = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.cell = GRUCell(width, width)
        for projection in (self.to_query, self.to_key):
            nn.init.orthogonal_(projection.weight, gain=2.0)  # logits of unit scale from the start: flat attention is slow to leave
        self.refine = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(
        self, tokens: Tensor, weight: Tensor, previous: Tensor | None = None, is_first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Slots (B, K, D) and attention logits (B, K, L) of tokens (B, L, D) with foreground weight (B, L).

        previous: slots (B, K, D) of the frame before, None at a first frame; is_first: (B,) bool, rows that start anew although
        `previous` is given. A first frame takes all iterations from the queries, a later one a single iteration from `previous`.
        Mixed rows run all iterations with static shapes and later rows keep their slots until the last: the iterations cost
        little beside the encoder, and nothing has to wait for the value of `is_first`.
        """
        tokens = self.norm_tokens(tokens)
        keys, values = self.to_key(tokens), self.to_value(tokens)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        start = queries if previous is None else previous
        with torch.no_grad():
            if previous is None or is_first is not None:
                first = None if previous is None or is_first is None else is_first.view(-1, 1, 1)
                start = start if first is None else torch.where(first, queries, start)
                for _ in range(self.iterations - 1):
                    refined = self._iterate(start, keys, values, weight, self.doubt)[0]
                    start = refined if first is None else torch.where(first, refined, start)
        return self._iterate(start.detach() + queries - queries.detach(), keys, values, weight)

    def _iterate(self, slots: Tensor, keys: Tensor, values: Tensor, weight: Tensor, doubt: float = 1.0) -> tuple[Tensor, Tensor]:
        # Slots share all weights: without its query beside it, a slot carried for long forgets which one it is.
        q = self.to_query(self.norm_slots(slots + self.queries)) * slots.shape[-1] ** -0.5
        logits = q @ keys.transpose(1, 2)  # (B, K, L)
        attention = logits.softmax(dim=1) * weight.unsqueeze(1)
        attention = attention / (attention.sum(dim=2, keepdim=True) + doubt)
        slots = self.cell(self.cell.input(attention @ values), slots)
        return slots + self.refine(slots), logits
