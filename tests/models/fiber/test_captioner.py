"""Caption search and sampling: by hand, and against uncached and published search."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from benches.uncached_decoder import UncachedDecoder
from fiber.models.fiber.beam_search import (
    END_ID,
    PAD_ID,
    CaptionDecoder,
    beam_search,
    search_beams,
    start_ids,
    written_tokens,
)
from fiber.models.fiber.captioner import caption_log_probs, is_written, sample_captions
from fiber.models.fiber.image_text import FiberImageText
from tests.models.fiber.published_search import published_search
from tests.models.fiber.test_image_text import IMAGES, build, config

pytestmark = pytest.mark.oldest

A, B, C = 3, 4, 5
VOCABULARY = 7


class Scripted:
    """Decoder stub: next-token probabilities after each text."""

    def __init__(self, script: dict[tuple[int, ...], dict[int, float]]) -> None:
        self.script = script
        self.start = start_ids(torch.zeros(1))
        self.texts: list[tuple[int, ...]] = [()]
        self.calls = 0

    def log_probs(self, token_ids: Tensor) -> Tensor:
        self.calls += 1
        pairs = zip(self.texts, token_ids[0].tolist(), strict=True)
        self.texts = [(*text, token) for text, token in pairs]
        logits = torch.full((1, len(self.texts), VOCABULARY), -30.0)
        for row, text in enumerate(self.texts):
            assert text[0] == 0
            for token, probability in self.script.get(text[1:], {END_ID: 1.0}).items():
                logits[0, row, token] = math.log(probability)
        return logits.log_softmax(-1)

    def select(self, sources: Tensor) -> None:
        self.texts = [self.texts[source] for source in sources[0].tolist()]


GARDEN_PATH = {
    (): {A: 0.6, B: 0.4},
    (A,): {A: 0.4, B: 0.3, END_ID: 0.3},
    (B,): {C: 0.9, A: 0.1},
    (B, C): {END_ID: 1.0},
    (A, A): {END_ID: 0.6, B: 0.4},
}


def search(script, num_beams: int, max_tokens: int = 8):
    decoder = Scripted(script)
    found = search_beams(decoder, num_beams, max_tokens)
    return found.token_ids[0].tolist(), found.scores.item(), decoder.calls


def test_one_beam_is_greedy_search():
    ids, _, _ = search(GARDEN_PATH, 1)
    assert ids == [A, A, END_ID]


def test_two_beams_find_the_better_caption():
    ids, score, _ = search(GARDEN_PATH, 2)
    assert ids == [B, C, END_ID]
    assert score == pytest.approx((math.log(0.4) + math.log(0.9)) / 3, abs=1e-5)


def test_early_ending_beam_keeps_its_score_and_is_padded():
    """[A </s>] has mean log 0.9 / 2; the other beams continue with worse means and longer texts."""
    script = {
        (): {A: 0.9, B: 0.1},
        (A,): {END_ID: 1.0},
        (B,): {B: 0.5, C: 0.5},
        (B, B): {B: 0.5, C: 0.5},
        (B, B, B): {END_ID: 1.0},
    }
    ids, score, _ = search(script, 2, max_tokens=5)
    assert ids[:2] == [A, END_ID]
    assert all(token == PAD_ID for token in ids[2:])
    assert score == pytest.approx(math.log(0.9) / 2, abs=1e-6)


def test_search_stops_when_every_beam_has_ended():
    script = {(): {A: 0.9, B: 0.1}, (A,): {END_ID: 1.0}, (B,): {END_ID: 1.0}}
    ids, _, calls = search(script, 2, max_tokens=20)
    assert ids == [A, END_ID]
    # One pass for the first token, one that ends "A"; its copies then fill both slots.
    assert calls <= 3


def test_ended_beam_may_fill_several_slots():
    """[A </s>] competes once per vocabulary entry, as published, and displaces the other beam."""
    script = {
        (): {A: 0.6, B: 0.4},
        (A,): {END_ID: 1.0},
        (B,): {C: 0.7, A: 0.3},
        (B, C): {C: 1.0},
        (B, C, C): {C: 1.0},
    }
    ids, score, _ = search(script, 2, max_tokens=6)
    # With its own slot, [B C C C C] would reach a mean of log(0.28) / 5 = -0.255.
    assert ids[:2] == [A, END_ID]
    assert score == pytest.approx(math.log(0.6) / 2, abs=1e-6)


def test_maximum_caption_length():
    ids, _, _ = search({(A,) * n: {A: 1.0} for n in range(20)}, 1, max_tokens=6)
    assert ids == [A] * 5
    ids, _, _ = search(GARDEN_PATH, 2, max_tokens=2)
    assert ids == [A]


#: Added to the bias of </s>: gives captions of full length, and some that end early.
ENDS = (0.0, 3.5, 4.0, 8.0)


def caption_model(**biases: float):
    """A float64 model with the vocabulary bias raised at </s>, <pad> or <mask>."""
    torch.manual_seed(0)
    model = FiberImageText(dataclasses.replace(config("caption"), weight_start="fan_in"))
    model = model.double().eval()
    # Spread out, so that the search has distinct candidates.
    torch.nn.init.normal_(model.language_head.decoder.weight, std=0.4)
    places = {"end": END_ID, "pad": PAD_ID, "mask": model.config.roberta.mask_id}
    for name, value in biases.items():
        model.language_head.decoder.bias.data[places[name]] += value
    return model


def pictures(model) -> Tensor:
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        return model.backbone.encode_image(IMAGES.to(dtype)).stages[-1]


def constant_model(probabilities: dict[int, float]):
    """A model whose next token has these probabilities regardless of the text."""
    model = build("caption").double()
    decoder = model.language_head.decoder
    decoder.weight.data.zero_()
    decoder.bias.data.fill_(-60.0)
    for token, probability in probabilities.items():
        decoder.bias.data[token] = math.log(probability)
    return model


@pytest.mark.parametrize(
    ("probabilities", "expected", "score"),
    [
        # </s> at once: its mean, log 0.5, beats every mean of longer texts, and its copies, one for
        # each vocabulary entry, take both slots.
        ({END_ID: 0.5, A: 0.3, B: 0.2}, [END_ID, PAD_ID], math.log(0.5)),
        # [A A ... A] has mean log 0.5 at any length, and every ended text a lower one.
        ({A: 0.5, END_ID: 0.3, B: 0.2}, [A] * 5, math.log(0.5)),
        # A <pad> ends a caption as </s> does.
        ({PAD_ID: 0.6, A: 0.4}, [PAD_ID, PAD_ID], math.log(0.6)),
    ],
    ids=["ends at once", "never ends", "ends with a pad"],
)
def test_raised_end_probability_by_hand(probabilities, expected, score):
    model = constant_model(probabilities)
    found = beam_search(model, pictures(model), num_beams=2, max_tokens=6)
    assert found.token_ids.tolist() == [expected] * len(IMAGES)
    assert found.scores.tolist() == pytest.approx([score] * len(IMAGES))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_search_matches_the_published_one(num_beams, end):
    model = caption_model(end=end)
    tokens = pictures(model)
    found = beam_search(model, tokens, num_beams=num_beams, max_tokens=7)
    for row in range(len(tokens)):

        def next_log_probs(text, row=row):
            decoder = UncachedDecoder(model, tokens[row : row + 1])
            for token in (0, *text):
                value = decoder.log_probs(torch.tensor([[token]]))
            return value[0, 0].tolist()

        with torch.no_grad():
            ids, score = published_search(next_log_probs, num_beams, 7)
        # A search over several images continues until the last one has ended.
        own = found.token_ids[row].tolist()
        assert own[: len(ids)] == ids
        assert set(own[len(ids) :]) <= {PAD_ID}
        assert found.scores[row].item() == pytest.approx(score, abs=1e-12)


def test_published_search_cases_end_early_and_late():
    """Shows that the test above covers both kinds."""
    lengths = set()
    for end in ENDS:
        model = caption_model(end=end)
        found = beam_search(model, pictures(model), num_beams=3, max_tokens=7)
        lengths |= set((found.token_ids != PAD_ID).sum(1).tolist())
    assert min(lengths) < 6 == max(lengths)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_cached_search_matches_uncached_search(num_beams):
    model = caption_model(end=3.0)
    tokens = pictures(model)
    cached = beam_search(model, tokens, num_beams=num_beams, max_tokens=12)
    with torch.no_grad():
        plain = search_beams(UncachedDecoder(model, tokens), num_beams, 12)
    assert torch.equal(cached.token_ids, plain.token_ids)
    assert torch.allclose(cached.scores, plain.scores, atol=1e-12)


def texts_of(decoder, ids: Tensor) -> Tensor:
    """Next-token log probabilities for several texts per image: (B, n, L) -> (B, n, L, V)."""
    found = []
    with torch.no_grad():
        for step in range(ids.shape[2]):
            if step:
                found.append(decoder.log_probs(ids[..., step]))
            else:
                found.append(decoder.log_probs(ids[:, :1, 0]).expand(-1, ids.shape[1], -1))
                decoder.select(torch.zeros_like(ids[..., 0]))
    return torch.stack(found, 2)


def test_cache_is_as_accurate_as_recomputation():
    """In float32, the two differ only by rounding.

    Measured: the cached path is 3.0e-6 off float64, the uncached one 3.1e-6, of values up to 16.
    """
    exact_model, model = caption_model(), caption_model().float()
    ids = torch.randint(3, model.config.roberta.vocab_size - 1, (len(IMAGES), 2, 12))
    ids[..., 0] = 0
    exact = texts_of(UncachedDecoder(exact_model, pictures(exact_model)), ids)
    plain = texts_of(UncachedDecoder(model, pictures(model)), ids)
    cached = texts_of(CaptionDecoder(model, pictures(model)), ids)
    # <mask> is at -10000, where float32 steps are wide.
    seen = slice(0, model.config.roberta.mask_id)
    error = (plain.double() - exact)[..., seen].abs().max().item()
    assert (cached.double() - exact)[..., seen].abs().max().item() <= 2 * error + 1e-6


def test_captions_are_cut_at_the_end_token():
    assert written_tokens([5, 6, 2, 1, 1]) == [5, 6]
    assert written_tokens([5, 1, 1]) == [5]
    assert written_tokens([5, 6]) == [5, 6]
    assert written_tokens([2]) == []


def test_mask_token_is_never_generated():
    model = caption_model(mask=50.0)
    mask_id = model.config.roberta.mask_id
    tokens = pictures(model)
    assert (beam_search(model, tokens, num_beams=3, max_tokens=6).token_ids != mask_id).all()
    drawn = sample_captions(model, tokens, samples_per_image=20, max_tokens=6)
    assert (drawn.token_ids != mask_id).all()


@pytest.mark.parametrize(("num_beams", "max_tokens"), [(0, 8), (321, 8), (2, 1), (2, 65)])
def test_invalid_search_arguments_are_rejected(num_beams, max_tokens):
    model = build("caption")
    named = "max_tokens" if num_beams == 2 else "num_beams"
    value = max_tokens if num_beams == 2 else num_beams
    with pytest.raises(ValueError, match=rf"{named}.*{value}"):
        beam_search(model, pictures(model), num_beams=num_beams, max_tokens=max_tokens)


def test_images_in_a_batch_do_not_mix():
    model = caption_model()
    tokens = pictures(model)
    together = beam_search(model, tokens, num_beams=3, max_tokens=6)
    for row in range(2):
        alone = beam_search(model, tokens[row : row + 1], num_beams=3, max_tokens=6)
        length = alone.token_ids.shape[1]
        assert torch.equal(together.token_ids[row, :length], alone.token_ids[0])
        assert together.scores[row].item() == pytest.approx(alone.scores.item(), abs=1e-12)


def test_empty_image_batch():
    model = build("caption")
    tokens = pictures(model)[:0]
    assert beam_search(model, tokens, num_beams=2, max_tokens=4).token_ids.shape[0] == 0
    drawn = sample_captions(model, tokens, samples_per_image=2, max_tokens=4)
    assert drawn.token_ids.shape[:2] == drawn.log_probs.shape[:2] == (0, 2)
    assert caption_log_probs(model, tokens, drawn.token_ids).shape == drawn.token_ids.shape


def sample(model, seed: int = 0, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"samples_per_image": 4, "max_tokens": 9, "generator": generator} | options
    return sample_captions(model, pictures(model), **options)


def test_samples_are_determined_by_the_seed():
    model = caption_model(end=3.0)
    first, again, other = sample(model), sample(model), sample(model, seed=1)
    assert first.token_ids.shape[:2] == (len(IMAGES), 4)
    assert torch.equal(first.token_ids, again.token_ids)
    assert not torch.equal(first.token_ids, other.token_ids[..., : first.token_ids.shape[2]])


def test_per_image_generators_are_independent_of_the_batch():
    model = caption_model(end=3.0)
    tokens = pictures(model)

    def drawn(rows, seeds):
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sample_captions(
            model, tokens[rows], samples_per_image=4, max_tokens=9, generator=sources
        ).token_ids

    together = drawn([0, 1], [5, 6])
    for rows, seeds in (([0], [5]), ([1], [6])):
        alone = drawn(rows, seeds)
        own = together[rows]
        length = min(alone.shape[2], own.shape[2])
        assert torch.equal(alone[..., :length], own[..., :length])
        assert (own[..., length:] == PAD_ID).all()
    assert not torch.equal(together[0], drawn([0, 1], [7, 6])[0][:, : together.shape[2]])
    with pytest.raises(ValueError, match=r"generator: .*\(2\), got 1"):
        drawn([0, 1], [5])
    assert drawn([], []).shape[:2] == (0, 4)


def test_written_token_mask():
    ids = torch.tensor([[5, 6, 2, 1], [5, 1, 7, 2], [5, 6, 7, 8], [2, 5, 2, 1]])
    expected = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert is_written(ids).int().tolist() == expected


def test_samples_end_with_an_end_token_and_are_padded():
    found = sample(caption_model(end=4.0), samples_per_image=20)
    for text, values in zip(
        found.token_ids.flatten(0, 1).tolist(), found.log_probs.flatten(0, 1).tolist(), strict=True
    ):
        written = next((n + 1 for n, token in enumerate(text) if token in (1, 2)), len(text))
        assert all(token == PAD_ID for token in text[written:])
        assert all(value < 0 for value in values[:written])
        assert all(value == 0 for value in values[written:])


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_k": 50, "top_p": 0.9}], ids=str)
def test_recomputed_log_probs_are_differentiable(options):
    model = caption_model(end=3.0)
    found = sample(model, **options)
    again = caption_log_probs(model, pictures(model), found.token_ids)
    assert torch.allclose(again, found.log_probs, atol=1e-11)
    weights = torch.linspace(-1, 1, again.numel(), dtype=again.dtype).view_as(again)
    (again * weights).sum().backward()
    for part in (model.language_head.decoder.weight, model.backbone.text.embeddings.word.weight):
        assert part.grad is not None and part.grad.abs().max() > 0


def test_gradients_match_finite_differences():
    model = caption_model(end=3.0)
    ids, bias = sample(model).token_ids, model.language_head.decoder.bias
    caption_log_probs(model, pictures(model), ids).sum().backward()
    assert bias.grad is not None
    token = int(ids[0, 0, 0])
    with torch.no_grad():
        sums = []
        for step in (1e-5, -2e-5):
            bias[token] += step
            sums.append(caption_log_probs(model, pictures(model), ids).sum().item())
    assert bias.grad[token].item() == pytest.approx((sums[0] - sums[1]) / 2e-5, rel=1e-5)


def frequencies(probabilities: dict[int, float], **options) -> dict[int, float]:
    """How often each token comes first in 4,000 samples."""
    model = constant_model(probabilities)
    ids = sample(model, samples_per_image=2000, max_tokens=2, **options).token_ids.flatten()
    return {token: (ids == token).double().mean().item() for token in set(ids.tolist())}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {A: 0.5, B: 0.3, C: 0.2}),
        # The square roots of the probabilities, made to sum to 1.
        ({"temperature": 2.0}, {A: 0.415, B: 0.322, C: 0.263}),
        ({"top_k": 1}, {A: 1.0}),
        ({"top_k": 2}, {A: 0.625, B: 0.375}),
        ({"top_p": 0.5}, {A: 1.0}),
        ({"top_p": 0.51}, {A: 0.625, B: 0.375}),
        # Half of the remaining mass is less than 0.9 of the mass of both.
        ({"top_k": 2, "top_p": 0.9}, {A: 0.625, B: 0.375}),
        ({"top_k": 2, "top_p": 0.6}, {A: 1.0}),
    ],
    ids=str,
)
def test_sampling_frequencies(options, expected):
    found = frequencies({A: 0.5, B: 0.3, C: 0.2}, **options)
    assert found.keys() == expected.keys()
    for token, chance in expected.items():
        # Four standard deviations of the mean of 4,000 coin flips.
        assert found[token] == pytest.approx(chance, abs=0.032)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_image": 0}, r"samples_per_image.*1, got 0"),
        ({"max_tokens": 1}, r"max_tokens.*2 to 64, got 1"),
        ({"temperature": 0.0}, r"temperature.*0, got 0.0"),
        ({"top_k": 0}, r"top_k.*1.*got 0"),
        ({"top_p": 0.0}, r"top_p.*0.*got 0.0"),
        ({"top_p": 1.5}, r"top_p.*0.*1, got 1.5"),
    ],
)
def test_invalid_sampling_arguments_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        sample(build("caption"), **options)


@pytest.mark.parametrize("shape", [(2, 3), (3, 1, 4), (2, 1, 0)], ids=str)
def test_captions_of_the_wrong_shape_are_rejected(shape):
    model = build("caption")
    ids = torch.full(shape, A)
    with pytest.raises(ValueError, match=r"token_ids.*shape.*\(2, samples, tokens\).*got"):
        caption_log_probs(model, pictures(model), ids)
