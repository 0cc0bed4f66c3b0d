"""Counting texts of which a model reads less than it was given: no word, or the beginning alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.records import RecordSet

#: The largest id of the special tokens that every tokenizer begins with; <mask> has the last id.
LAST_SPECIAL_ID = 3


def has_words(token_ids: Sequence[int], mask_id: int) -> bool:
    """Whether a text holds anything but special tokens, written in it or added to it."""
    return any(LAST_SPECIAL_ID < token < mask_id for token in token_ids)


class TextCounts:
    """Counts over the batches of a task.

    Args:
        mask_id: id of <mask>.
        max_tokens: longest text of the model.
    """

    def __init__(self, mask_id: int, max_tokens: int) -> None:
        self.mask_id, self.max_tokens = mask_id, max_tokens
        self.read = self.wordless = self.full = 0

    def add(self, token_ids: Tensor, text_mask: Tensor) -> None:
        """Count a batch: (B, L) int64 ids and (B, L) bool, True = real token."""
        words = text_mask & (token_ids > LAST_SPECIAL_ID) & (token_ids < self.mask_id)
        self.read += len(token_ids)
        self.wordless += int((~words.any(1)).sum())
        self.full += int((text_mask.sum(1) == self.max_tokens).sum())

    def lines(self) -> list[str]:
        """Say what was met, one line for each kind."""
        lines = []
        if self.wordless:
            lines.append(
                f"{self.wordless} of {self.read} texts had no words; they were taken as they are"
            )
        if self.full:
            lines.append(
                f"{self.full} of {self.read} texts filled all {self.max_tokens} tokens of"
                " model.max_tokens; what was longer was cut"
            )
        return lines


def odd_texts(records: RecordSet, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Look at every text of a set once.

    Args:
        records: whose texts a model is to read.
        tokenizer: of the model.
        max_tokens: longest text of the model.

    Returns:
        In words, one line for each kind: how many have no words, how many are too long.
    """
    wordless = longer = 0
    for index in range(len(records)):
        ids, _ = tokenizer.encode(records[index].text, max_tokens=max_tokens + 1)
        longer += len(ids) > max_tokens
        wordless += not has_words(ids, tokenizer.mask_id)
    lines = []
    if wordless:
        lines.append(
            f"{wordless} of {len(records)} texts have no words; they are taken as they are"
        )
    if longer:
        lines.append(
            f"{longer} of {len(records)} texts are longer than the model's {max_tokens} tokens;"
            " their beginning is read"
        )
    return lines
