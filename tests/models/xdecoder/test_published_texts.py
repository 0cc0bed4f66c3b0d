"""Texts through CLIP's own vocabulary, which is not part of the repository."""

import json

import pytest

from fiber.data import Tokenizer
from fiber.models.encoders.clip_tokens import encode_text, encode_texts
from fiber.models.xdecoder.captioner import caption_text
from tests.golden import XDECODER
from tests.parity.comparison import Comparison
from tests.parity.xdecoder_case import XDecoderCase
from tests.parity.xdecoder_texts import CLIP_TOKENIZER, compare_ids, compare_texts

needs_vocabulary = pytest.mark.skipif(
    not CLIP_TOKENIZER.exists(), reason="CLIP's vocabulary is absent"
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(CLIP_TOKENIZER)


@needs_vocabulary
def test_all_recorded_texts_have_equal_ids():
    comparison = compare_texts(XDECODER / "texts.json")
    assert comparison.ok, str(comparison)
    assert comparison.groups["tokens (integers)"].count == 973
    assert not comparison.set_aside


@needs_vocabulary
def test_texts_that_are_not_cleaned_are_found(tokenizer, monkeypatch):
    content = json.loads((XDECODER / "texts.json").read_text())
    monkeypatch.setattr(
        "tests.parity.xdecoder_texts.encode_text",
        lambda tokenizer, text, length: tokenizer.encode(text, max_tokens=length),
    )
    comparison = Comparison("texts")
    compare_ids(comparison, content, tokenizer)
    assert sum(len(group.failures) for group in comparison.groups.values()) == 2


@needs_vocabulary
def test_spans_of_tokens_refer_to_the_text_as_given(tokenizer):
    text = "the dog\u2019s &amp; \ufb01ne"
    ids, spans = encode_text(tokenizer, text, 77)
    assert ids[0] == 49406 and ids[-1] == 49407
    assert [text[first:end].strip() for first, end in spans[1:-1]] == [
        *("the", "dog", "\u2019s", "&amp;", "\ufb01ne")
    ]


@needs_vocabulary
def test_masks_follow_from_lengths(tokenizer):
    ids, mask = encode_texts(tokenizer, ["a dog", "", "the big red dog"], 77)
    assert mask.sum(1).tolist() == [4, 2, 6]
    assert (ids[~mask] == 49407).all() and ids.shape == (3, 6)
    assert encode_texts(tokenizer, ["dog " * 100], 77)[0].shape == (1, 77)


@needs_vocabulary
@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_recorded_captions_are_decoded(tokenizer, name):
    case = XDecoderCase(XDECODER / f"{name}.json")
    for prefix in ("caption", "caption_region"):
        for ids, text in zip(
            case.scalars[f"{prefix}.ids"], case.scalars[f"{prefix}.texts"], strict=True
        ):
            written = ids[1 : case.caption_steps + 1]
            assert caption_text(tokenizer, written, case.end_id) == text
            # Nothing after the end or the first period counts.
            assert caption_text(tokenizer, [*written, case.end_id, *written], case.end_id) == text
    ids = tokenizer.encode("A red dog. Another one")[0][1:]
    assert caption_text(tokenizer, ids, case.end_id) == "a red dog"
