"""Find texts that have no words or are truncated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.record import Record, RecordSet, record_in_epoch
from fiber.data.storage.shard_order import ShardMap, shard_map_of


def has_words(token_ids: Sequence[int], special_ids: Collection[int]) -> bool:
    """Return True if a text has any token that is not special."""
    return any(token not in special_ids for token in token_ids)


class LengthTracker:
    """Record set that tracks, as records are read, which texts are longer than `max_tokens`.

    A batch alone does not show which texts were truncated, since a text of exactly `max_tokens`
    tokens looks the same.

    Attributes:
        longer: keys of the records read so far whose texts are too long.
    """

    def __init__(self, records: RecordSet, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.records, self.tokenizer, self.max_tokens = records, tokenizer, max_tokens
        self.longer: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self._note(self.records[index])

    def in_epoch(self, epoch: int, index: int) -> Record:
        """See `EpochRecords`."""
        return self._note(record_in_epoch(self.records, epoch, index))

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if the records have no shards."""
        return shard_map_of(self.records)

    def _note(self, record: Record) -> Record:
        if is_longer(record.text, self.tokenizer, self.max_tokens):
            self.longer.add(record.key)
        return record


def is_longer(text: str, tokenizer: Tokenizer, max_tokens: int) -> bool:
    """Return True if a text has more than `max_tokens` tokens, including <s> and </s>."""
    # A token has at least one byte, so most texts need not be tokenized.
    if len(text.encode()) + 2 <= max_tokens:
        return False
    return len(tokenizer.encode(text, max_tokens=max_tokens + 1)[0]) > max_tokens


class TextCounts:
    """Count texts without words and truncated texts in the batches of a task."""

    def __init__(self, records: LengthTracker) -> None:
        self.records = records
        self._special_ids = torch.tensor(records.tokenizer.special_ids)
        self.read = self.wordless = self.truncated = 0

    def add(self, keys: Sequence[str], token_ids: Tensor, text_mask: Tensor) -> None:
        """Count a batch of B keys, (B, L) int64 ids, and a (B, L) bool mask (True = real token)."""
        words = text_mask & ~torch.isin(token_ids, self._special_ids.to(token_ids.device))
        self.read += len(token_ids)
        self.wordless += int((~words.any(1)).sum())
        self.truncated += sum(key in self.records.longer for key in keys)

    def lines(self) -> list[str]:
        """Return a line for each nonzero count."""
        longer = f"were longer than the {self.records.max_tokens} tokens of model.max_tokens"
        kinds = {
            "had no words; they were used as is": self.wordless,
            f"{longer} and were truncated": self.truncated,
        }
        return [f"{count} of {self.read} texts {what}" for what, count in kinds.items() if count]


def text_warnings(records: RecordSet, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Tokenize all texts; return warnings about texts without words and truncated texts."""
    wordless = longer = 0
    special_ids = set(tokenizer.special_ids) if len(records) else set()
    for index in range(len(records)):
        ids, _ = tokenizer.encode(records[index].text, max_tokens=max_tokens + 1)
        longer += len(ids) > max_tokens
        wordless += not has_words(ids, special_ids)
    kinds = {
        "have no words; they are used as is": wordless,
        f"are longer than the model's {max_tokens} tokens; they are truncated": longer,
    }
    return [f"{count} of {len(records)} texts {what}" for what, count in kinds.items() if count]
