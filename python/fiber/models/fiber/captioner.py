"""Caption generation with the caption head: beam search and sampling.

Decoding is incremental and batched over all texts of all images. Keys and values of previous tokens
are cached, and the keys and values of an image are shared by all of its texts.

Shapes: B images, K beams, S samples, V vocabulary size, n tokens after <s>. image_tokens is the
(B, H, W, C) output of the model's `image_tokens`. max_tokens includes <s> and </s>.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.models.abilities import WritesCaptions
from fiber.models.encoders.roberta import PAD_ID

#: Ids of <s> and </s>.
START_ID = 0
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


class Samples(NamedTuple):
    """Sampled captions, several per image."""

    #: (B, S, n) int64 without <s>; <pad> after the first </s> or <pad>.
    token_ids: Tensor
    #: (B, S, n) float32 log probability of each sampled token, 0 after the end.
    log_probs: Tensor


class CaptionDecoder:
    """Incremental language model over several texts per image."""

    def __init__(self, model: WritesCaptions, image_tokens: Tensor) -> None:
        self.num_images, self.device = len(image_tokens), image_tokens.device
        self._model = model
        self._decoding = model.start_decoding(image_tokens)

    def log_probs(self, token_ids: Tensor) -> Tensor:
        """Append a token to each text; return next-token log probabilities: (B, n) -> (B, n, V)."""
        hidden = self._model.decode_next(self._decoding, token_ids)
        return next_token_log_probs(self._model, self._model.caption_logits(hidden))

    def select(self, sources: Tensor) -> None:
        """Select the texts to continue for each image, by (B, m) int64 indices."""
        self._decoding.select(sources)


@torch.no_grad()
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
    _check_max_tokens(model, max_tokens)
    return search_beams(CaptionDecoder(model, image_tokens), num_beams, max_tokens)


def search_beams(decoder: CaptionDecoder, num_beams: int, max_tokens: int) -> Captions:
    """Run `beam_search` on a decoder."""
    log_probs = decoder.log_probs(_start(decoder))[:, 0]
    vocab_size = log_probs.shape[-1]
    totals, token = log_probs.topk(num_beams)
    decoder.select(torch.zeros_like(token))
    # beams (B, K, t) without <s>; lengths and ended (B, K)
    beams, lengths, ended = token[..., None], torch.ones_like(totals), _ends(token)
    for _ in range(2, max_tokens):
        if ended.all():
            break
        log_probs = decoder.log_probs(token).masked_fill(ended[..., None], 0.0)
        new_lengths = lengths + (~ended).to(lengths.dtype)
        # (B, K, V): log probability of each continuation of each beam
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
        decoder.select(source)
    return Captions(beams[:, 0], totals[:, 0] / lengths[:, 0])


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
    _check_max_tokens(model, max_tokens)
    _check_sampling(samples_per_image, temperature, top_k, top_p)
    if isinstance(generator, Sequence) and len(generator) != len(image_tokens):
        expected = f"one generator per image ({len(image_tokens)})"
        raise ValueError(f"generator: expected {expected}, got {len(generator)}")
    decoder = CaptionDecoder(model, image_tokens)
    log_probs = decoder.log_probs(_start(decoder)).expand(-1, samples_per_image, -1)
    decoder.select(torch.zeros(log_probs.shape[:2], dtype=torch.int64, device=decoder.device))
    ended = torch.zeros(log_probs.shape[:2], dtype=torch.bool, device=decoder.device)
    tokens: list[Tensor] = []
    values: list[Tensor] = []
    for step in range(1, max_tokens):
        if step > 1:
            log_probs = decoder.log_probs(tokens[-1])
        weights = _truncate((log_probs / temperature).softmax(-1), top_k, top_p)
        token = _sample(weights, generator)
        values.append(log_probs.gather(2, token[..., None])[..., 0].masked_fill(ended, 0.0))
        tokens.append(token.masked_fill(ended, PAD_ID))
        ended = ended | _ends(tokens[-1])
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
    ends = _ends(token_ids)
    return (ends.cumsum(-1) - ends.long()) == 0


def written_tokens(token_ids: Sequence[int]) -> list[int]:
    """Truncate a caption before its first </s> or <pad>."""
    ends = (index for index, token in enumerate(token_ids) if token in (END_ID, PAD_ID))
    return list(token_ids[: next(ends, len(token_ids))])


def next_token_log_probs(model: WritesCaptions, logits: Tensor) -> Tensor:
    """Compute log probabilities with <mask> excluded: (..., V) -> (..., V), at least float32."""
    forbidden = torch.tensor([model.mask_id], device=logits.device)
    logits = logits.index_fill(-1, forbidden, _FORBIDDEN_LOGIT)
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _start(decoder: CaptionDecoder) -> Tensor:
    """Return <s> for each image as a (B, 1) tensor."""
    return torch.full((decoder.num_images, 1), START_ID, device=decoder.device)


def _ends(token_ids: Tensor) -> Tensor:
    return (token_ids == END_ID) | (token_ids == PAD_ID)


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


def _check_max_tokens(model: WritesCaptions, max_tokens: int) -> None:
    longest = model.longest_caption
    if not 2 <= max_tokens <= longest:
        raise ValueError(f"max_tokens must be from 2 to {longest}, got {max_tokens}")


def _check_sampling(samples: int, temperature: float, top_k: int | None, top_p: float) -> None:
    if samples < 1:
        raise ValueError(f"samples_per_image must be >= 1, got {samples}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be >= 1 or None, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be > 0 and <= 1, got {top_p}")
