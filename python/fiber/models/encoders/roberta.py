"""RoBERTa text encoder: embeddings and post-norm layers.

Attention masks are bool and broadcast to (B, h, L, keys); True = attend. None attends to all keys.
Fusion is added by passing a layer a `branch`, which is applied to the self-attention output.

Source: RoBERTa (Liu et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fiber.config import RobertaConfig
from fiber.ops.dropout import SampleDropout, attention

#: Id of <pad>; positions of real tokens start at PAD_ID + 1.
PAD_ID = 1

#: Maps a self-attention output to its replacement, before the residual.
Branch = Callable[[Tensor], Tensor]


class TextEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings with LayerNorm and dropout."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.width, padding_idx=PAD_ID)
        self.position = nn.Embedding(config.max_positions, config.width, padding_idx=PAD_ID)
        # RoBERTa has a single token type.
        self.token_type = nn.Embedding(1, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = SampleDropout(config.dropout)

    def forward(self, token_ids: Tensor, tokens_before: int = 0) -> Tensor:
        """Embed token ids that come after `tokens_before` real tokens: (B, L) -> (B, L, D)."""
        real = token_ids.ne(PAD_ID)
        positions = (real.cumsum(1) + tokens_before) * real + PAD_ID
        token_type = self.token_type(token_ids.new_zeros(1))
        embedded = self.word(token_ids) + token_type + self.position(positions)
        return self.dropout(self.norm(embedded))


class KeyValueCache:
    """Keys and values of previous tokens in a self-attention layer; not differentiable."""

    def __init__(self) -> None:
        # Keys and values share a tensor with spare capacity, so a step copies only the new ones.
        self._stored = torch.empty(0)
        self._length = 0

    def extend(self, key_value: Tensor) -> Tensor:
        """Append the keys and values of new tokens, (2, B, h, L, d).

        Returns the keys and values of all tokens so far, (2, B, h, L_all, d).
        """
        start, self._length = self._length, self._length + key_value.shape[3]
        if not start or self._length > self._stored.shape[3]:
            shape = (*key_value.shape[:3], 2 * self._length, key_value.shape[4])
            grown = key_value.new_empty(shape)
            if start:
                grown[..., :start, :] = self._stored[..., :start, :]
            self._stored = grown
        self._stored[..., start : self._length, :] = key_value
        return self._stored[..., : self._length, :]


class TextSelfAttention(nn.Module):
    """Multi-head self-attention with an output projection but no residual connection."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = SampleDropout(config.dropout)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        cache: KeyValueCache | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Compute self-attention: (B, L, D) -> (B, L, D), or (B, num_queries, D).

        Keys and values are appended to `cache`, if given. With `num_queries`, only the outputs of
        the first `num_queries` tokens are computed.
        """
        # (B, L, 3 D) -> 3 x (B, h, L, d)
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is None:
            query, key, value = qkv.unbind(0)
        else:
            query, (key, value) = qkv[0], cache.extend(qkv[1:])
        attended = attention(
            query[:, :, :num_queries],
            key,
            value,
            mask=attention_mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return self.dropout(self.output(attended.transpose(1, 2).flatten(2)))


class TextLayer(nn.Module):
    """Self-attention and MLP, each followed by a residual connection and LayerNorm."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__()
        self.attention = TextSelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.ffn_width),
            nn.GELU(),
            nn.Linear(config.ffn_width, config.width),
            SampleDropout(config.dropout),
        )
        self.output_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        branch: Branch | None = None,
        *,
        normalize_output: bool = True,
        cache: KeyValueCache | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Run the layer: (B, L, D) -> (B, L, D), or (B, num_queries, D).

        `branch` is applied to the self-attention output before the residual. `normalize_output`
        enables the last LayerNorm. `cache` and `num_queries` are passed to `TextSelfAttention`.
        With `num_queries`, the mask must be the same for all queries.
        """
        attended = self.attention(hidden, attention_mask, cache, num_queries)
        if branch is not None:
            attended = branch(attended)
        hidden = self.attention_norm(attended + hidden[:, :num_queries])
        hidden = hidden + self.mlp(hidden)
        return self.output_norm(hidden) if normalize_output else hidden


class TextEncoder(nn.Module):
    """Embeddings, and a stack of post-norm layers on them."""

    def __init__(self, config: RobertaConfig, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.num_layers))
        self.apply(_init_weights)

    def forward(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts without fusion: (B, L) ids and (B, L) bool mask -> (B, L, D)."""
        hidden, attention_mask = self.embeddings(token_ids), key_attention_mask(text_mask)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return hidden


class RobertaEncoder(TextEncoder):
    """RoBERTa text encoder."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config, TextEmbeddings(config))


def key_attention_mask(text_mask: Tensor) -> Tensor:
    """Build the attention mask that hides padding: (B, L) bool -> (B, 1, 1, L) bool."""
    return text_mask[:, None, None, :]


def causal_attention_mask(text_mask: Tensor) -> Tensor:
    """Build the causal attention mask that hides padding: (B, L) bool -> (B, 1, L, L) bool."""
    length = text_mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
    return text_mask[:, None, None, :] & causal


def _init_weights(module: nn.Module) -> None:
    """Initialize weights with std 0.02, and biases and padding rows with 0, as in RoBERTa."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
