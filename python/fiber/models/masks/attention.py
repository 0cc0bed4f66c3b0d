"""Attention with one projection of queries, keys and values, as in `nn.MultiheadAttention`.

The three have different inputs (positions are added to queries and keys only), so the projection
is a parameter that is applied in parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedAttention(nn.Module):
    """Multi-head attention.

    Shapes:
        queries: (B, Q, D).
        keys, values: (B, S, D); (B, h, S, d) once projected.
        hidden: bool, broadcast to (B, h, Q, S); True = may not be attended to. No row may be True
            as a whole.
    """

    extra_forwards = ("project_keys", "attend")

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
        self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Attend: (B, Q, D)."""
        return self.attend(queries, *self.project_keys(keys, values), hidden)

    def project_keys(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Project keys and values: 2 x (B, S, D) -> 2 x (B, h, S, d)."""
        return self._project(keys, 1), self._project(values, 2)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Attend to projected keys: (B, Q, D), 2 x (B, h, S, d) -> (B, Q, D)."""
        allowed = None if hidden is None else ~hidden
        attended = F.scaled_dot_product_attention(
            self._project(queries, 0), keys, values, attn_mask=allowed
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
