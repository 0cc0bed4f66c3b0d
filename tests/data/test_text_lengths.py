from typing import Any

import pytest
import torch

from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.data.text_lengths import LengthTracker, TextCounts, has_words, is_longer, text_warnings


class Letters:
    """A tokenizer with a token for each letter; a dot is special."""

    vocab_size = 100
    special_ids = (0, 1, 2, 9)

    def encode(self, text, *, max_tokens):
        ids = [0, *(1 if letter == "." else 10 for letter in text), 2]
        return ids[:max_tokens], []


LETTERS: Any = Letters()


def noted(*texts, max_tokens=4):
    records = [Record(key=text, images=(b"",), text=text) for text in texts]
    return LengthTracker(records, LETTERS, max_tokens)


def test_no_text():
    counts = TextCounts(noted())
    counts.add((), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.bool))
    assert counts.lines() == []
    assert text_warnings([], None, 4) == []  # type: ignore[arg-type]


def test_words_are_what_is_no_special_token():
    special = {0, 1, 2, 9}
    assert not has_words([], special)
    assert not has_words([0, 0, 1, 9, 2], special)
    assert has_words([0, 4, 2], special) and has_words([0, 10, 2], special)


def test_counts_by_hand():
    records = noted("", "ab", ".", "abc", "x")
    counts = TextCounts(records)
    assert [records[index].text for index in range(len(records))] == ["", "ab", ".", "abc", "x"]
    # A text that just fits fills its row as one does that was cut.
    ids = torch.tensor([[0, 2, 1, 1], [0, 4, 5, 2], [0, 9, 2, 1], [0, 4, 5, 2]])
    mask = torch.arange(4) < torch.tensor([[2], [4], [3], [4]])
    counts.add(("", "ab", ".", "abc"), ids, mask)
    # What stands behind the end of a text is none of its words.
    counts.add(("x",), torch.tensor([[0, 2, 6]]), torch.tensor([[True, True, False]]))
    # A second time is counted as such.
    counts.add(("abc",), ids[3:], mask[3:])
    assert counts.lines() == [
        "3 of 6 texts had no words; they were used as is",
        "2 of 6 texts were longer than the 4 tokens of model.max_tokens and were truncated",
    ]


def test_records_that_were_read_and_are_longer_are_noted():
    records = noted("abc", "ab", "abcd")
    assert records.longer == set()
    assert records[1].key == "ab" and records.longer == set()
    assert records[2].key == "abcd" and records.longer == {"abcd"}
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
