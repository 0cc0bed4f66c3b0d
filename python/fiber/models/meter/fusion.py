"""Cross-modal layers on top of both encoders.

Attention masks are bool and broadcast to (B, h, queries, keys); True = attend. None attends to all
keys.

Source: METER (Dou et al. 2022).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.meter.config import CrossConfig


class Attention(nn.Module):
    """Multi-head attention with an output projection, a residual connection and LayerNorm."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_dropout = config.dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from tokens to a source: (B, Q, D) and (B, K, D) -> (B, Q, D)."""
        # (B, Q, D) -> (B, h, Q, d)
        query = self.query(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        # (B, K, 2 D) -> 2 x (B, h, K, d)
        key, value = (
            self.key_value(source).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        projected = self.output(attended.transpose(1, 2).flatten(2))
        return self.norm(tokens + self.dropout(projected))


class FeedForward(nn.Module):
    """MLP with a residual connection and LayerNorm."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.ffn_width),
            nn.GELU(),
            nn.Linear(config.ffn_width, config.width),
            nn.Dropout(config.dropout),
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the MLP: (B, T, D) -> (B, T, D)."""
        return self.norm(tokens + self.mlp(tokens))


class CrossLayer(nn.Module):
    """Layer of one side: self-attention, attention to the other side, and MLP."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def attend(self, tokens: Tensor, mask: Tensor | None, num_queries: int | None = None) -> Tensor:
        """Run the self-attention, which the other side has no part in.

        Returns (B, T, D), or (B, num_queries, D) for the first tokens.
        """
        return self.self_attention(tokens[:, :num_queries], tokens, mask)

    def forward(self, attended: Tensor, other: Tensor, other_mask: Tensor | None) -> Tensor:
        """Run the rest of the layer on the output of `attend`: (B, T, D) -> (B, T, D)."""
        return self.feed_forward(self.cross_attention(attended, other, other_mask))


class MergedLayer(nn.Module):
    """Layer on the tokens of both sides: self-attention and MLP."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Run the layer: (B, T, D) -> (B, T, D)."""
        return self.feed_forward(self.self_attention(tokens, tokens, mask))
