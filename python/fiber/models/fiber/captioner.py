"""Captions by sampling, and log probabilities of captions. Beam search is in `beam_search.py`.

Shapes: B images, S samples, V vocabulary size, n tokens after <s>. image_tokens is the (B, H, W, C)
output of the model's `image_tokens`. max_tokens includes <s> and </s>.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.models.caption_abilities import WritesCaptions
from fiber.models.fiber.beam_search import (
    PAD_ID,
    START_ID,
    CaptionDecoder,
    check_max_tokens,
    ends,
    next_token_log_probs,
)


class Samples(NamedTuple):
    """Sampled captions, several per image."""

    #: (B, S, n) int64 without <s>; <pad> after the first </s> or <pad>.
    token_ids: Tensor
    #: (B, S, n) float32 log probability of each sampled token, 0 after the end.
    log_probs: Tensor


@torch.no_grad()
def sample_captions(
    model: WritesCaptions,
    image_tokens: Tensor,
    *,
    samples_per_image: int = 1,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Samples:
    """Sample captions.

    A sample ends with </s> or <pad>, as in the published beam search; <mask> is never sampled. The
    model stays in its current mode, since published self-critical training samples with dropout.

    Args:
        model: model with the caption head.
        image_tokens: (B, H, W, C).
        samples_per_image: S.
        max_tokens: maximum length.
        temperature: value that divides the logits.
        top_k: sample from the k most likely tokens.
        top_p: nucleus sampling, applied after top_k.
        generator: generator on the model's device, or one per image to make samples independent of
            the other images.

    Returns:
        Samples with log probabilities as in `caption_log_probs`, computed without temperature,
        top_k and top_p.

    Raises:
        ValueError: if an option is out of range, or the number of generators is not B.
    """
    check_max_tokens(model, max_tokens)
    _check_sampling(samples_per_image, temperature, top_k, top_p)
    if isinstance(generator, Sequence) and len(generator) != len(image_tokens):
        expected = f"one generator per image ({len(image_tokens)})"
        raise ValueError(f"generator: expected {expected}, got {len(generator)}")
    decoder = CaptionDecoder(model, image_tokens)
    log_probs = decoder.log_probs(decoder.start).expand(-1, samples_per_image, -1)
    decoder.select(torch.zeros(log_probs.shape[:2], dtype=torch.int64, device=image_tokens.device))
    ended = torch.zeros(log_probs.shape[:2], dtype=torch.bool, device=image_tokens.device)
    tokens: list[Tensor] = []
    values: list[Tensor] = []
    for step in range(1, max_tokens):
        if step > 1:
            log_probs = decoder.log_probs(tokens[-1])
        weights = _truncate((log_probs / temperature).softmax(-1), top_k, top_p)
        token = _sample(weights, generator)
        values.append(log_probs.gather(2, token[..., None])[..., 0].masked_fill(ended, 0.0))
        tokens.append(token.masked_fill(ended, PAD_ID))
        ended = ended | ends(tokens[-1])
        if ended.all():
            break
    return Samples(torch.stack(tokens, -1), torch.stack(values, -1))


def caption_log_probs(model: WritesCaptions, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
    """Compute differentiable log probabilities of token_ids from `sample_captions`.

    token_ids is (B, S, n) int64 without <s>. Returns (B, S, n) float32, with 0 after the first </s>
    or <pad>.

    Raises:
        ValueError: if token_ids does not have shape (B, S, n) with n >= 1.
    """
    if token_ids.ndim != 3 or token_ids.shape[0] != len(image_tokens) or not token_ids.shape[2]:
        raise ValueError(
            f"token_ids: expected shape ({len(image_tokens)}, samples, tokens) with at least one"
            f" token, got {tuple(token_ids.shape)}"
        )
    ids = token_ids.flatten(0, 1)
    written = is_written(ids)
    inputs = F.pad(ids[:, :-1], (1, 0), value=START_ID)
    text = model.decode_text(image_tokens, inputs, written)
    log_probs = next_token_log_probs(model, model.mlm_logits(text, written))
    found = log_probs.gather(1, ids[written][:, None])[:, 0]
    return found.new_zeros(ids.shape).masked_scatter(written, found).view(token_ids.shape)


def is_written(token_ids: Tensor) -> Tensor:
    """Mark tokens up to and including the first </s> or <pad>: (..., n) -> (..., n) bool."""
    is_end = ends(token_ids)
    return (is_end.cumsum(-1) - is_end.long()) == 0


def _truncate(probabilities: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Apply top_k and top_p: set the probabilities (..., V) of excluded tokens to 0."""
    if top_k is None and top_p == 1.0:
        return probabilities
    ordered, order = probabilities.sort(-1, descending=True)
    if top_k is not None:
        ordered[..., top_k:] = 0.0
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)


def _sample(
    weights: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    """Sample a token for each text: (B, S, V) -> (B, S) int64."""
    if isinstance(generator, Sequence):
        pairs = zip(weights, generator, strict=True)
        sampled = [torch.multinomial(own, 1, generator=source) for own, source in pairs]
        tokens = torch.cat(sampled or [weights.new_empty(0, 1, dtype=torch.int64)])
    else:
        tokens = torch.multinomial(weights.flatten(0, 1), 1, generator=generator)
    return tokens.view(weights.shape[:2])


def _check_sampling(samples: int, temperature: float, top_k: int | None, top_p: float) -> None:
    if samples < 1:
        raise ValueError(f"samples_per_image must be >= 1, got {samples}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be >= 1 or None, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be > 0 and <= 1, got {top_p}")
