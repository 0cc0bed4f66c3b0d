"""Texts for CLIP's text encoder: cleaned as published, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.texts.cleaning import clean_text


def encode_text(
    tokenizer: Tokenizer, text: str, max_tokens: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Clean and encode a text; see `Tokenizer.encode`. Spans refer to the text as given."""
    cleaned = clean_text(text)
    ids, spans = tokenizer.encode(cleaned.text, max_tokens=max_tokens)
    return ids, [cleaned.original_span(span) for span in spans]


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Clean and encode texts.

    Returns:
        (B, L) int64 token ids with padding, and the (B, L) bool mask of real tokens. The mask
        follows from lengths, since CLIP's padding has the id of the end.
    """
    rows = [encode_text(tokenizer, text, max_tokens)[0] for text in texts]
    length = max(map(len, rows), default=0)
    ids = torch.full((len(rows), length), tokenizer.pad_id)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = True
    return ids, mask
