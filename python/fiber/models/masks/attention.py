"""Attention with one projection of queries, keys and values, as in `nn.MultiheadAttention`.

The three have different inputs (positions are added to queries and keys only), so the projection
is a parameter that is applied in parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.encoders.clip import PastKeys


class PackedAttention(nn.Module):
    """Multi-head attention.

    Shapes:
        queries: (B, Q, D).
        keys, values: (B, S, D).
        hidden: bool, broadcast to (B, h, Q, S); True = may not be attended to. No row may be True
            as a whole.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.in_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_bias = nn.Parameter(torch.zeros(3 * width))
        self.output = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_weight)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        hidden: Tensor | None = None,
        past: PastKeys | None = None,
    ) -> Tensor:
        """Attend: (B, Q, D).

        With `past`, keys and values follow those of earlier calls, which it has, and are appended;
        None adds none.
        """
        found = None
        if keys is not None and values is not None:
            found = self._project(keys, 1), self._project(values, 2)
        if past is not None:
            found = past.append(*found) if found is not None else past.kept()
        assert found is not None
        allowed = None if hidden is None else ~hidden
        attended = F.scaled_dot_product_attention(
            self._project(queries, 0), *found, attn_mask=allowed
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _project(self, tokens: Tensor, part: int) -> Tensor:
        rows = slice(part * self.width, (part + 1) * self.width)
        projected = F.linear(tokens, self.in_weight[rows], self.in_bias[rows])
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """Build a feed-forward layer with ReLU."""
    first, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
    for layer in (first, last):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.ReLU(), last)
