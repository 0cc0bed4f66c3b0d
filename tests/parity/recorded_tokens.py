"""Recorded tokens of RoBERTa's vocabulary, for the texts that the recordings are compared with.

The vocabulary is not part of the repository. `tests/golden/fine/roberta_tokens.json` has the ids
and character spans of every text that a comparison encodes, so nothing waits for the vocabulary.
Where it is at hand, `test_recorded_tokens_are_those_of_the_vocabulary` encodes the texts again.
"""

from __future__ import annotations

import functools
import json

from tests.golden import FINE

RECORDED = FINE / "roberta_tokens.json"


class RecordedTokens:
    """A tokenizer that knows the recorded texts alone."""

    def __init__(self) -> None:
        content = json.loads(RECORDED.read_text())
        #: Text -> ids and spans, <s> and </s> included.
        self.texts: dict[str, tuple[list[int], list[tuple[int, int]]]] = {
            text: (ids, [(start, end) for start, end in spans])
            for text, (ids, spans) in content["texts"].items()
        }
        #: Token as the vocabulary writes it -> id.
        self.token_ids: dict[str, int] = content["token_ids"]

    def encode(
        self, text: str, *, max_tokens: int | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Look up ids and spans; of a longer text the first ones and </s>.

        Raises:
            KeyError: if the text is not recorded.
        """
        ids, spans = self.texts[text]
        if max_tokens is not None and len(ids) > max_tokens:
            return [*ids[: max_tokens - 1], ids[-1]], [*spans[: max_tokens - 1], spans[-1]]
        return list(ids), list(spans)


@functools.cache
def recorded_tokens() -> RecordedTokens:
    """Read the recorded tokens once."""
    return RecordedTokens()
