from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.data.text_lengths import has_words, is_longer, text_counts, text_warnings


class Letters:
    """A tokenizer with a token for each letter; a dot is special."""

    vocab_size = 100
    special_ids = (0, 1, 2, 9)

    def encode(self, text, *, max_tokens):
        ids = [0, *(1 if letter == "." else 10 for letter in text), 2]
        return ids[:max_tokens], []


LETTERS: Any = Letters()


def counted(truncated=0, wordless=0, /, batch_type="image_text", **statuses):
    loader: Any = SimpleNamespace(
        config=SimpleNamespace(max_tokens=4, batch_type=batch_type),
        statuses=Counter(statuses),
        truncated_texts=truncated,
        wordless_texts=wordless,
    )
    return text_counts(loader)


def test_no_text():
    assert counted() == []
    assert text_warnings([], None, 4) == []  # type: ignore[arg-type]


def test_words_are_what_is_no_special_token():
    special = {0, 1, 2, 9}
    assert not has_words([], special)
    assert not has_words([0, 0, 1, 9, 2], special)
    assert has_words([0, 4, 2], special) and has_words([0, 10, 2], special)


def test_counts_are_of_the_texts_that_were_used():
    # An image may be truncated, too; skipped records have no text.
    statuses = {"ok": 5, "truncated": 1, "missing": 7, "invalid": 2}
    assert counted(2, 3, **statuses) == [
        "3 of 6 texts had no words; they were used as is",
        "2 of 6 texts were longer than the 4 tokens of model.max_tokens and were truncated",
    ]
    assert counted(0, 1, ok=2) == ["1 of 2 texts had no words; they were used as is"]
    # Of prompts of boxes, the boxes that truncation drops are counted.
    assert counted(2, 3, batch_type="grounding", **statuses) == []
    # Of records with masks, the phrases.
    assert counted(2, 3, batch_type="segmentation", **statuses) == [
        "2 phrases were longer than the 4 tokens of model.max_tokens and were truncated"
    ]
    assert counted(0, 3, batch_type="segmentation", **statuses) == []


def test_longer_texts():
    assert is_longer("abc", LETTERS, 4) and not is_longer("abc", LETTERS, 5)


@pytest.mark.parametrize("text", ["a cup", "ça va", "🙂" * 3, "", "<mask>", "   "])
def test_no_text_has_more_tokens_than_bytes(text):
    """What lets short texts go without being split."""
    tokenizer = Tokenizer.train([], 261)
    length = len(tokenizer.encode(text)[0])
    assert length <= len(text.encode()) + 2
    for limit in range(2, length + 3):
        assert is_longer(text, tokenizer, limit) == (length > limit)


def test_a_text_that_just_fits_is_not_too_long():
    texts = ["", "..", "ab", "abc", "..a."]
    records = [Record(key=text, images=(b"",), text=text) for text in texts]
    assert text_warnings(records, LETTERS, 4) == [
        "2 of 5 texts have no words; they are used as is",
        "2 of 5 texts are longer than the model's 4 tokens; they are truncated",
    ]
