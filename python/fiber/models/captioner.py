"""Writing captions: greedy and beam search over a coarse model with the caption head.

Letters: K beams, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fiber.models.image_text import FiberImageText
from fiber.models.roberta import PAD_ID

#: Ids of <s>, which every caption starts with, and </s>, which ends it.
START_ID = 0
END_ID = 2

#: Logit of <mask>, which is no word of a caption, as published.
_FORBIDDEN_LOGIT = -10000.0
#: Added to lengths before dividing, as published.
_LENGTH_EPS = 1e-9


class Captions(NamedTuple):
    """The caption of each picture."""

    #: (B, n) int64 without <s>; </s> where one was written, <pad> after it.
    token_ids: Tensor
    #: (B,) mean log probability of a token.
    scores: Tensor


@torch.no_grad()
def greedy_search(model: FiberImageText, image_tokens: Tensor, *, max_tokens: int) -> Captions:
    """Write the likeliest next token until </s>.

    Args:
        model: with the caption head.
        image_tokens: (B, H, W, C) last stage of `encode_image`.
        max_tokens: longest caption, <s> and </s> included.
    """
    return beam_search(model, image_tokens, num_beams=1, max_tokens=max_tokens)


@torch.no_grad()
def beam_search(
    model: FiberImageText, image_tokens: Tensor, *, num_beams: int, max_tokens: int
) -> Captions:
    """Keep the K captions with the highest mean log probability, and return the best.

    As published, a beam that has ended competes once for every vocabulary entry with its unchanged
    score, so one ended beam may fill several places; the search stops when all beams have ended.

    Args:
        model: with the caption head.
        image_tokens: (B, H, W, C) last stage of `encode_image`.
        num_beams: K.
        max_tokens: longest caption, <s> and </s> included.

    Raises:
        ValueError: if num_beams or max_tokens leave nothing to search.
    """
    vocab_size = model.config.roberta.vocab_size
    if not 1 <= num_beams <= vocab_size or not 2 <= max_tokens <= model.config.roberta.max_tokens:
        raise ValueError(
            f"num_beams {num_beams} must be 1 to {vocab_size}, and max_tokens {max_tokens}"
            f" 2 to {model.config.roberta.max_tokens}"
        )
    batch = image_tokens.shape[0]
    device = image_tokens.device
    ids = torch.full((batch, 1), START_ID, device=device)
    totals, chosen = _next_log_probs(model, image_tokens, ids).topk(num_beams)
    # (B, K, t) tokens after <s>; (B, K) whether a beam has ended, and its length in tokens
    beams, lengths = chosen[..., None], torch.ones_like(totals)
    ended = _ends(chosen)
    image_tokens = image_tokens.repeat_interleave(num_beams, 0)
    for _ in range(2, max_tokens):
        if ended.all():
            break
        ids = torch.nn.functional.pad(beams.flatten(0, 1), (1, 0), value=START_ID)
        log_probs = _next_log_probs(model, image_tokens, ids).view(batch, num_beams, -1)
        log_probs = log_probs.masked_fill(ended[..., None], 0.0)
        new_lengths = lengths + (~ended).to(lengths.dtype)
        # (B, K, V) -> (B, K V): mean log probability of every continuation of every beam
        sums = totals[..., None] + log_probs
        means = sums / (new_lengths[..., None] + _LENGTH_EPS)
        best = means.flatten(1).topk(num_beams).indices
        source, token = best // vocab_size, best % vocab_size
        totals = sums.flatten(1).gather(1, best)
        lengths, was_ended = new_lengths.gather(1, source), ended.gather(1, source)
        token = token.masked_fill(was_ended, PAD_ID)
        kept = beams.gather(1, source[..., None].expand_as(beams))
        beams = torch.cat((kept, token[..., None]), -1)
        ended = was_ended | _ends(token)
    return Captions(beams[:, 0], totals[:, 0] / lengths[:, 0])


def _ends(token_ids: Tensor) -> Tensor:
    return (token_ids == END_ID) | (token_ids == PAD_ID)


def _next_log_probs(model: FiberImageText, image_tokens: Tensor, ids: Tensor) -> Tensor:
    """Log probabilities of the token after the last one: (n, t) -> (n, V)."""
    hidden = model.decode_text(image_tokens, ids, torch.ones_like(ids, dtype=torch.bool))
    logits = model.caption_logits(hidden[:, -1])
    logits[:, model.config.roberta.mask_id] = _FORBIDDEN_LOGIT
    return logits.float().log_softmax(-1)
