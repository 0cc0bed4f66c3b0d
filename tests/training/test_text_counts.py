import torch

from fiber.data.records import Record
from fiber.training.text_counts import TextCounts, has_words, odd_texts


def test_no_text():
    counts = TextCounts(mask_id=9, max_tokens=4)
    counts.add(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.bool))
    assert counts.lines() == []
    assert odd_texts([], None, 4) == []  # type: ignore[arg-type]


def test_words_are_what_is_no_special_token():
    assert not has_words([], 9)
    assert not has_words([0, 0, 1, 3, 9, 2], 9)
    assert has_words([0, 4, 2], 9) and has_words([0, 8, 2], 9)


def test_counts_by_hand():
    counts = TextCounts(mask_id=9, max_tokens=4)
    ids = torch.tensor([[0, 2, 1, 1], [0, 4, 5, 2], [0, 9, 2, 1], [0, 7, 2, 1]])
    counts.add(ids, torch.arange(4) < torch.tensor([[2], [4], [3], [3]]))
    # What stands behind the end of a text is none of its words.
    counts.add(torch.tensor([[0, 2, 6]]), torch.tensor([[True, True, False]]))
    assert counts.lines() == [
        "3 of 5 texts had no words; they were taken as they are",
        "1 of 5 texts filled all 4 tokens of model.max_tokens; what was longer was cut",
    ]


class Letters:
    """A tokenizer with a token for each letter; a dot is special."""

    mask_id = 99

    def encode(self, text, *, max_tokens):
        ids = [0, *(1 if letter == "." else 10 for letter in text), 2]
        return ids[:max_tokens], []


def test_a_text_that_just_fits_is_not_too_long():
    texts = ["", "..", "ab", "abc", "..a."]
    records = [Record(key=text, images=(b"",), text=text) for text in texts]
    tokenizer: object = Letters()
    assert odd_texts(records, tokenizer, 4) == [  # type: ignore[arg-type]
        "2 of 5 texts have no words; they are taken as they are",
        "2 of 5 texts are longer than the model's 4 tokens; their beginning is read",
    ]
