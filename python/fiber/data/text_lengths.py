"""Counting texts of which a model reads less than it was given: no word, or the beginning alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.record import Record, RecordSet, record_in_epoch

#: The largest id of the special tokens that a model's tokenizer begins with; <mask> has the last.
LAST_SPECIAL_ID = 3


def has_words(token_ids: Sequence[int], mask_id: int) -> bool:
    """Whether a text holds anything but special tokens, written in it or added to it."""
    return any(LAST_SPECIAL_ID < token < mask_id for token in token_ids)


class NotedLengths:
    """Records as they are; those whose text a model's length will cut are noted when they are read.

    A text that fits exactly looks like one that was cut once it is in a batch.

    Args:
        records: whose texts a model is to read.
        tokenizer: of the model.
        max_tokens: longest text of the model.

    Attributes:
        longer: keys of the records read so far whose text, as it is written, is longer.
    """

    def __init__(self, records: RecordSet, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.records, self.tokenizer, self.max_tokens = records, tokenizer, max_tokens
        self.longer: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self._noted(self.records[index])

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Give a record as an epoch has it."""
        return self._noted(record_in_epoch(self.records, epoch, index))

    def _noted(self, record: Record) -> Record:
        if is_longer(record.text, self.tokenizer, self.max_tokens):
            self.longer.add(record.key)
        return record


def is_longer(text: str, tokenizer: Tokenizer, max_tokens: int) -> bool:
    """Whether a text has more tokens than a model reads, <s> and </s> included."""
    # A token is a byte or more, so most texts need not be split to be known to fit.
    if len(text.encode()) + 2 <= max_tokens:
        return False
    return len(tokenizer.encode(text, max_tokens=max_tokens + 1)[0]) > max_tokens


class TextCounts:
    """Counts over the batches of a task.

    Args:
        mask_id: id of <mask>.
        records: those that the batches are made of.
    """

    def __init__(self, mask_id: int, records: NotedLengths) -> None:
        self.mask_id, self.records = mask_id, records
        self.read = self.wordless = self.cut = 0

    def add(self, keys: Sequence[str], token_ids: Tensor, text_mask: Tensor) -> None:
        """Count a batch: B keys, (B, L) int64 ids and (B, L) bool, True = real token."""
        words = text_mask & (token_ids > LAST_SPECIAL_ID) & (token_ids < self.mask_id)
        self.read += len(token_ids)
        self.wordless += int((~words.any(1)).sum())
        self.cut += sum(key in self.records.longer for key in keys)

    def lines(self) -> list[str]:
        """Say what was met, one line for each kind."""
        lines = []
        if self.wordless:
            lines.append(
                f"{self.wordless} of {self.read} texts had no words; they were taken as they are"
            )
        if self.cut:
            lines.append(
                f"{self.cut} of {self.read} texts were longer than the"
                f" {self.records.max_tokens} tokens of model.max_tokens and were cut"
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
        wordless += not has_words(ids, tokenizer.vocab_size - 1)
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
