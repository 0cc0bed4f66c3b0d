"""Caption search on a model whose next-token probabilities are written by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fiber.models.captioner import END_ID, beam_search, greedy_search
from fiber.models.roberta import PAD_ID
from tests.models.test_image_text import IMAGES, build

A, B, C, MASK_ID = 3, 4, 5, 6
VOCABULARY = 7


class Scripted:
    """Stands in for a coarse model: probabilities of the next token after each written text."""

    def __init__(self, script: dict[tuple[int, ...], dict[int, float]]) -> None:
        self.script = script
        self.config = SimpleNamespace(
            roberta=SimpleNamespace(vocab_size=VOCABULARY, mask_id=MASK_ID, max_tokens=20)
        )
        self.calls = 0

    def decode_text(self, image_tokens: Tensor, ids: Tensor, text_mask: Tensor) -> Tensor:
        self.calls += 1
        assert text_mask.all()
        assert image_tokens.shape[0] == ids.shape[0]
        logits = torch.full((*ids.shape, VOCABULARY), -30.0)
        for row, text in enumerate(ids.tolist()):
            for token, probability in self.script.get(tuple(text[1:]), {END_ID: 1.0}).items():
                logits[row, -1, token] = math.log(probability)
        return logits

    def caption_logits(self, hidden: Tensor) -> Tensor:
        return hidden


IMAGE = torch.zeros(1, 1, 1, 1)
GARDEN_PATH = {
    (): {A: 0.6, B: 0.4},
    (A,): {A: 0.4, B: 0.3, END_ID: 0.3},
    (B,): {C: 0.9, A: 0.1},
    (B, C): {END_ID: 1.0},
    (A, A): {END_ID: 0.5, B: 0.5},
}


def search(script, num_beams: int, max_tokens: int = 8):
    model = Scripted(script)
    found = beam_search(model, IMAGE, num_beams=num_beams, max_tokens=max_tokens)  # type: ignore[arg-type]
    return found.token_ids[0].tolist(), found.scores.item(), model.calls


def test_greedy_takes_the_likeliest_token():
    found = greedy_search(Scripted(GARDEN_PATH), IMAGE, max_tokens=8)  # type: ignore[arg-type]
    # After "A A" the two continuations are equally likely; the first one is </s>.
    assert found.token_ids[0].tolist()[:2] == [A, A]


def test_two_beams_find_the_better_caption():
    ids, score, _ = search(GARDEN_PATH, 2)
    assert ids == [B, C, END_ID]
    assert score == pytest.approx((math.log(0.4) + math.log(0.9)) / 3, abs=1e-5)


def test_a_beam_that_ends_early_keeps_its_score_and_is_padded():
    """[A </s>] has mean log 0.9 / 2; the other beams go on to worse means and longer texts."""
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


def test_the_search_stops_when_every_beam_has_ended():
    script = {(): {A: 0.9, B: 0.1}, (A,): {END_ID: 1.0}, (B,): {END_ID: 1.0}}
    ids, _, calls = search(script, 2, max_tokens=20)
    assert ids == [A, END_ID]
    # One pass for the first token, one that ends "A"; its copies then fill both places.
    assert calls <= 3


def test_an_ended_beam_may_fill_several_places():
    """As published: [A </s>] competes once a vocabulary entry, and crowds the other beam out."""
    script = {
        (): {A: 0.6, B: 0.4},
        (A,): {END_ID: 1.0},
        (B,): {C: 0.7, A: 0.3},
        (B, C): {C: 1.0},
        (B, C, C): {C: 1.0},
    }
    ids, score, _ = search(script, 2, max_tokens=6)
    # With a place of its own, [B C C C C] would reach a mean of log(0.28) / 5 = -0.255.
    assert ids[:2] == [A, END_ID]
    assert score == pytest.approx(math.log(0.6) / 2, abs=1e-6)


def test_mask_is_never_written():
    ids, _, _ = search({(): {MASK_ID: 0.9, A: 0.1}}, 1)
    assert ids == [A, END_ID]


def test_longest_caption():
    ids, _, _ = search({(A,) * n: {A: 1.0} for n in range(20)}, 1, max_tokens=6)
    assert ids == [A] * 5
    ids, _, _ = search(GARDEN_PATH, 2, max_tokens=2)
    assert ids == [A]


@pytest.mark.parametrize(("num_beams", "max_tokens"), [(0, 8), (8, 8), (2, 1), (2, 21)])
def test_nothing_to_search(num_beams, max_tokens):
    with pytest.raises(ValueError, match="num_beams"):
        search({}, num_beams, max_tokens)


def test_pictures_of_a_batch_do_not_mix():
    model = build("caption")
    tokens = model.backbone.encode_image(IMAGES).stages[-1]
    together = beam_search(model, tokens, num_beams=3, max_tokens=6)
    for row in range(2):
        alone = beam_search(model, tokens[row : row + 1], num_beams=3, max_tokens=6)
        length = alone.token_ids.shape[1]
        assert torch.equal(together.token_ids[row, :length], alone.token_ids[0])
        assert together.scores[row].item() == pytest.approx(alone.scores.item(), abs=1e-5)


def test_no_pictures():
    model = build("caption")
    tokens = model.backbone.encode_image(IMAGES).stages[-1][:0]
    assert beam_search(model, tokens, num_beams=2, max_tokens=4).token_ids.shape[0] == 0
