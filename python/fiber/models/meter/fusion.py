"""Cross-modal layers on top of both encoders.

Attention masks are bool and broadcast to (B, h, queries, keys); True = attend. None attends to all
keys.

Source: METER (Dou et al. 2022).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from fiber.models.meter.config import CrossConfig
from fiber.ops.dropout import SampleDropout, attention, dropout
from fiber.ops.linear import is_plain


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
        self.dropout = SampleDropout(config.dropout)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from tokens to a source: (B, Q, D) and (B, K, D) -> (B, Q, D)."""
        # (B, Q, D) -> (B, h, Q, d)
        query = self.query(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if tokens.shape[1] == 1 and is_plain(self.key_value):
            attended = self._attend_from_one(query, source, mask)
            return self.norm(tokens + self.dropout(self.output(attended)))
        # (B, K, 2 D) -> 2 x (B, h, K, d)
        key, value = (
            self.key_value(source).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        attended = attention(
            query,
            key,
            value,
            mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        projected = self.output(attended.transpose(1, 2).flatten(2))
        return self.norm(tokens + self.dropout(projected))

    def _attend_from_one(self, query: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from one token: (B, h, 1, d) and (B, K, D) -> (B, 1, D), before `output`.

        A sum over keys commutes with a linear layer: the query is projected to the channels of the
        source, and the weighted mean of the source to values, so that no key or value is computed.
        """
        weight, bias = self.key_value.weight, self.key_value.bias
        # Fused attention keeps scores and weights in float32; float64 stays as it is.
        dtype = torch.promote_types(source.dtype, torch.float32)
        with _without_autocast(source.device.type):
            source = source.to(dtype)
            key, value = weight.to(dtype).unflatten(0, (2, self.num_heads, -1))
            # (h, B, d) @ (h, d, D) -> (B, h, D)
            folded = (query[:, :, 0].transpose(0, 1).to(dtype) @ key).transpose(0, 1)
            # The bias of keys adds the same to all scores of a query, which softmax ignores.
            scores = folded @ source.transpose(1, 2) * key.shape[1] ** -0.5
            if mask is not None:
                scores = scores.masked_fill(~mask[:, 0], torch.finfo(dtype).min)
            weights = dropout(scores.softmax(-1), self.attention_dropout, training=self.training)
            # (h, B, D) @ (h, D, d) -> (B, h, d)
            attended = ((weights @ source).transpose(0, 1) @ value.transpose(1, 2)).transpose(0, 1)
            # After dropout, the weights of a query do not sum to 1.
            value_bias = bias.to(dtype).unflatten(0, (2, self.num_heads, -1))[1]
            attended = attended + weights.sum(-1, keepdim=True) * value_bias
        return attended.flatten(1)[:, None].to(query.dtype)


class FeedForward(nn.Module):
    """MLP with a residual connection and LayerNorm."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.ffn_width),
            nn.GELU(),
            nn.Linear(config.ffn_width, config.width),
            SampleDropout(config.dropout),
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the MLP: (B, T, D) -> (B, T, D)."""
        return self.norm(tokens + self.mlp(tokens))


class CrossLayer(nn.Module):
    """Layer of one side: self-attention, attention to the other side, and MLP."""

    #: See `fiber.models.shard_units`.
    extra_forwards = ("attend",)

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
    """Layer on the tokens of both sides: self-attention and MLP.

    The paper compares co-attention with merged attention, but its code of the latter was never
    released. The layer is that of co-attention without its attention to the other side; this and
    the names of its tensors in files are of this package.
    """

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, tokens: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Run the layer on those tokens of a source that are needed: (B, Q, D) -> (B, Q, D).

        `source` are the (B, T, D) tokens of both sides, which are attended to.
        """
        return self.feed_forward(self.self_attention(tokens, source, mask))


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Disable autocast, which the meta device does not have."""
    if device_type == "meta":
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
