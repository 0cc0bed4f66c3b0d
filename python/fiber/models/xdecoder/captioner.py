"""Captions of images and regions: greedy search, with keys and values of all earlier tokens kept.

Queries never see caption tokens, captions are causal, and so is the text encoder: the queries of an
image are decoded once, and then one token at a time.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fiber.data import Tokenizer
from fiber.models.heads import need_head
from fiber.models.xdecoder.config import XDecoderConfig
from fiber.models.xdecoder.decoder import Memory, XDecoderDecoder

#: Tokens that the published code appends to the start, whatever they are.
CAPTION_STEPS = 50
#: Mark of the end of a word in CLIP's vocabulary, which the decoder of its tokenizer leaves in.
_END_OF_WORD = "</w>"


class CaptionNetwork(Protocol):
    """What captions need of a model."""

    config: XDecoderConfig
    backbone: Any
    decoder: XDecoderDecoder
    text_projection: nn.Parameter

    def caption_logits(self, states: Tensor) -> Tensor:
        """Compute next-token logits."""
        ...


class CaptionDecoding:
    """Captions of images, continued by one token at a time."""

    def __init__(self, model: CaptionNetwork, memory: Memory, region: Tensor | None = None) -> None:
        need_head(model.config, "caption", "captioning")
        self._model, self.length = model, 0
        self._text = model.backbone.text.start_decoding()
        self._outside = model.decoder.outside_region(memory, region)
        self._pasts = model.decoder.read_queries(memory)

    def append(self, token_ids: Tensor) -> Tensor:
        """Append a token to each caption; return next-token logits: (B,) int64 -> (B, V)."""
        model = self._model
        tokens = self._text.append(token_ids) @ model.text_projection
        states = model.decoder.continue_captions(tokens, self.length, self._pasts, self._outside)
        self.length += 1
        return model.caption_logits(states)[:, 0]


@torch.no_grad()
def greedy_captions(
    model: CaptionNetwork,
    memory: Memory,
    *,
    start_id: int,
    end_id: int | None = None,
    region: Tensor | None = None,
    steps: int = CAPTION_STEPS,
) -> Tensor:
    """Write captions by greedy search.

    Args:
        model: model with the caption head.
        memory: images.
        start_id: first token of every caption.
        end_id: stop once every caption has it. Tokens after it mean nothing. None makes all
            steps, as published.
        region: (B, H, W) bool, True = the caption is of what is there. None means everywhere.
        steps: number of tokens after the first.

    Returns:
        (B, n) int64 token ids without the first, n <= steps.

    Raises:
        ValueError: if there are more steps than positions of the text encoder, or a region is
            empty at the size of a map.
    """
    most = model.config.max_tokens - 1
    if not 1 <= steps <= most:
        raise ValueError(f"steps: expected 1 to {most}, got {steps}")
    decoding = CaptionDecoding(model, memory, region)
    device = memory.mask_features.device
    token = torch.full((memory.batch_size,), start_id, dtype=torch.int64, device=device)
    found: list[Tensor] = []
    ended = torch.zeros_like(token, dtype=torch.bool)
    for _ in range(steps):
        token = decoding.append(token).argmax(-1)
        found.append(token)
        ended |= token == end_id
        if end_id is not None and ended.all():
            break
    return torch.stack(found, 1)


def caption_text(tokenizer: Tokenizer, token_ids: list[int], end_id: int) -> str:
    """Decode a caption: up to the end token and, as published, up to the first period."""
    if end_id in token_ids:
        token_ids = token_ids[: token_ids.index(end_id)]
    text = tokenizer.decode(token_ids).replace(_END_OF_WORD, " ")
    return " ".join(text.split()).partition(".")[0].strip()
