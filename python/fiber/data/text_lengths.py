"""Find texts that have no words or are truncated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from fiber.data import Tokenizer
from fiber.data.record import RecordSet

if TYPE_CHECKING:
    from fiber.data.loader import DataLoader


def has_words(token_ids: Sequence[int], special_ids: Collection[int]) -> bool:
    """Return True if a text has any token that is not special."""
    return any(token not in special_ids for token in token_ids)


def is_longer(text: str, tokenizer: Tokenizer, max_tokens: int) -> bool:
    """Return True if a text has more than `max_tokens` tokens, including <s> and </s>."""
    # A token has at least one byte, so most texts need not be tokenized.
    if len(text.encode()) + 2 <= max_tokens:
        return False
    return len(tokenizer.encode(text, max_tokens=max_tokens + 1)[0]) > max_tokens


def text_counts(loader: DataLoader) -> list[str]:
    """Return a line for each nonzero count of texts that a loader used.

    Prompts of boxes are left out: of them, the loader counts the boxes that truncation drops.
    """
    if loader.config.batch_type == "grounding":
        return []
    read = loader.statuses["ok"] + loader.statuses["truncated"]
    longer = f"were longer than the {loader.config.max_tokens} tokens of model.max_tokens"
    if loader.config.batch_type == "segmentation":
        # Its texts are phrases, of which a record may have none.
        count = loader.truncated_texts
        return [f"{count} phrases {longer} and were truncated"] if count else []
    kinds = {
        "had no words; they were used as is": loader.wordless_texts,
        f"{longer} and were truncated": loader.truncated_texts,
    }
    return [f"{count} of {read} texts {what}" for what, count in kinds.items() if count]


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
