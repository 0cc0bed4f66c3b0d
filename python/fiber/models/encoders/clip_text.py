"""Text encoder of CLIP: a causal pre-norm Transformer with learned positions.

Tokens attend to earlier tokens only, so padding after a text changes nothing in it.

Source: CLIP (Radford et al. 2021).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fiber.models.encoders.clip import ClipBlock, PastKeys, init_blocks
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.ops.dropout import checkpointed


class ClipTextEncoder(nn.Module):
    """Text encoder of CLIP, without its projection to the joint space.

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width, eps = config.width, config.layer_norm_eps
        self.word_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.max_positions, width))
        self.blocks = nn.ModuleList(
            ClipBlock(config, eps=eps, is_causal=True) for _ in range(config.num_blocks)
        )
        self.last_norm = nn.LayerNorm(width, eps=eps)
        nn.init.normal_(self.word_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        init_blocks(self.blocks, width)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Encode texts: (B, L) int64 -> (B, L, D).

        Raises:
            ValueError: if the texts are longer than the position embedding.
        """
        length, rows = token_ids.shape[1], len(self.position_embedding)
        if length > rows:
            raise ValueError(f"token_ids: expected at most {rows} tokens a text, got {length}")
        tokens = self.word_embedding(token_ids) + self.position_embedding[:length]
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                tokens = checkpointed(block, tokens)
            else:
                tokens = block(tokens)
        return self.last_norm(tokens)

    def start_decoding(self) -> TextDecoding:
        """Start to encode texts token by token."""
        return TextDecoding(self)


class TextDecoding:
    """Texts that grow by one token at a time, with the keys and values of those before it."""

    def __init__(self, encoder: ClipTextEncoder) -> None:
        self._encoder = encoder
        self._past = [PastKeys() for _ in encoder.blocks]
        self.length = 0

    def append(self, token_ids: Tensor) -> Tensor:
        """Append a token to each text and encode it: (B,) int64 -> (B, 1, D).

        Raises:
            ValueError: if the texts have as many tokens as the position embedding.
        """
        encoder, rows = self._encoder, len(self._encoder.position_embedding)
        if self.length >= rows:
            raise ValueError(f"the texts have {rows} tokens, the maximum of the text encoder")
        tokens = encoder.word_embedding(token_ids[:, None])
        tokens = tokens + encoder.position_embedding[self.length]
        for block, past in zip(
            cast("list[ClipBlock]", list(encoder.blocks)), self._past, strict=True
        ):
            tokens = block(tokens, past)
        self.length += 1
        return encoder.last_norm(tokens)


def last_tokens(tokens: Tensor, text_mask: Tensor) -> Tensor:
    """Select the last real token of each text: (B, L, D), (B, L) bool -> (B, D).

    The published code reads at the first of the largest ids, which is the same if texts end with
    the last id of the vocabulary.
    """
    last = text_mask.sum(1) - 1
    # Not `len`, which would fix the number of texts in exported graphs.
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), last]
