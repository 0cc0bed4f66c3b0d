"""Captions by beam search, decoded incrementally for all beams of all images.

Keys and values of previous tokens are cached, and those of an image are shared by all of its texts.
The model is a network, which computes tensors, or one of exported graphs, which compute arrays of
numpy (`fiber.ops.arrays`).

Shapes: B images, K beams, V vocabulary size, n tokens after <s>. image_tokens is the output of the
model's `image_tokens`. max_tokens includes <s> and </s>.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fiber.models.caption_abilities import WritesCaptions
from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor

#: Ids of <s>, <pad> and </s>.
START_ID = 0
PAD_ID = 1
END_ID = 2

#: Logit assigned to <mask>, as in the published code.
_FORBIDDEN_LOGIT = -10000.0
#: Added to lengths before dividing by them, as in the published code.
_LENGTH_EPS = 1e-9

#: Beam size of captioning in the published code.
CAPTION_BEAMS = 5


class Captions(NamedTuple):
    """One caption per image."""

    #: (B, n) int64 without <s>; <pad> after </s>.
    token_ids: Tensor
    #: (B,) mean log probability per token.
    scores: Tensor


class CaptionDecoder:
    """Incremental language model over several texts per image."""

    def __init__(self, model: WritesCaptions, image_tokens: Tensor) -> None:
        #: (B, 1) int64, <s> for each image.
        self.start: Tensor = start_ids(image_tokens)
        self._model = model
        self._decoding = model.start_decoding(image_tokens)

    def log_probs(self, token_ids: Tensor) -> Tensor:
        """Append a token to each text; return next-token log probabilities: (B, n) -> (B, n, V)."""
        hidden = self._model.decode_next(self._decoding, token_ids)
        return next_token_log_probs(self._model, self._model.caption_logits(hidden))

    def select(self, sources: Tensor) -> None:
        """Select the texts to continue for each image, by (B, m) int64 indices."""
        self._decoding.select(sources)


def start_ids(image_tokens: Tensor) -> Tensor:
    """Return (B, 1) int64 ids of <s>."""
    ids = functions_of(image_tokens).indices([START_ID] * len(image_tokens), image_tokens)
    return ids[:, None]


def beam_search(
    model: WritesCaptions, image_tokens: Tensor, *, num_beams: int, max_tokens: int
) -> Captions:
    """Find the caption with the highest mean log probability by beam search.

    One beam means greedy search. As in the published code, a finished beam competes once per
    vocabulary entry with its unchanged score, so it may fill several beams. The search stops when
    all beams are finished.

    Raises:
        ValueError: if num_beams or max_tokens is out of range.
    """
    vocab_size = model.config.vocab_size
    if not 1 <= num_beams <= vocab_size:
        raise ValueError(f"num_beams must be from 1 to vocab_size ({vocab_size}), got {num_beams}")
    check_max_tokens(model, max_tokens)
    with functions_of(image_tokens).without_gradients():
        return search_beams(CaptionDecoder(model, image_tokens), num_beams, max_tokens)


def search_beams(decoder: CaptionDecoder, num_beams: int, max_tokens: int) -> Captions:
    """Run `beam_search` on a decoder."""
    log_probs = decoder.log_probs(decoder.start)[:, 0]
    f = functions_of(log_probs)
    vocab_size = log_probs.shape[-1]
    totals, token = f.topk(log_probs, num_beams)
    decoder.select(token * 0)
    # beams (B, K, t) without <s>; lengths and ended (B, K)
    beams, lengths, ended = token[..., None], f.zeros(totals.shape, totals) + 1, ends(token)
    for _ in range(2, max_tokens):
        if ended.all():
            break
        log_probs = f.where(~ended[..., None], decoder.log_probs(token), 0.0)
        new_lengths = lengths + f.where(~ended, lengths * 0 + 1, 0.0)
        # (B, K, V): log probability of each continuation of each beam
        sums = totals[..., None] + log_probs
        means = sums / (new_lengths[..., None] + _LENGTH_EPS)
        _, best = f.topk(means.reshape(len(means), num_beams * vocab_size), num_beams)
        source, token = best // vocab_size, best % vocab_size
        totals = f.take_along(sums.reshape(len(sums), num_beams * vocab_size), best, 1)
        lengths = f.take_along(new_lengths, source, 1)
        was_ended = f.take_along(ended, source, 1)
        token = f.where(~was_ended, token, PAD_ID)
        beams = f.concat((f.take_along(beams, source[..., None], 1), token[..., None]), -1)
        ended = was_ended | ends(token)
        decoder.select(source)
    return Captions(beams[:, 0], totals[:, 0] / lengths[:, 0])


def next_token_log_probs(model: WritesCaptions, logits: Tensor) -> Tensor:
    """Compute log probabilities with <mask> excluded: (..., V) -> (..., V), at least float32."""
    f = functions_of(logits)
    is_forbidden = f.arange(logits.shape[-1], logits) == model.mask_id
    logits = f.where(~is_forbidden, logits, _FORBIDDEN_LOGIT)
    return f.log_softmax(f.at_least_float32(logits))


def ends(token_ids: Tensor) -> Tensor:
    """Mark ids that end a text, </s> and <pad>."""
    return (token_ids == END_ID) | (token_ids == PAD_ID)


def written_tokens(token_ids: Sequence[int]) -> list[int]:
    """Truncate a caption before its first </s> or <pad>."""
    at = (index for index, token in enumerate(token_ids) if token in (END_ID, PAD_ID))
    return list(token_ids[: next(at, len(token_ids))])


def check_max_tokens(model: WritesCaptions, max_tokens: int) -> None:
    """Raise ValueError if the maximum length of captions is out of range."""
    longest = model.longest_caption
    if not 2 <= max_tokens <= longest:
        raise ValueError(f"max_tokens must be from 2 to {longest}, got {max_tokens}")
