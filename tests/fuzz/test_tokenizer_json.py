"""Random tokenizers are read or refused with a ValueError, and so are texts; nothing is printed."""

import json
from collections.abc import Callable, Iterator

from fiber.data import Tokenizer
from tests.fuzz.tokenizer_json import Source

TOKENIZERS = 1500


def calls(source: Source) -> Iterator[Callable[[], object]]:
    """Reading a tokenizer, then everything that it does with a text."""
    content = json.dumps(source.tokenizer())
    yield lambda: Tokenizer.from_json(content)
    tokenizer = Tokenizer.from_json(content)
    text, limit = source.text(), source.one(None, 2, 8, 2**64 - 1)
    yield lambda: tokenizer.encode(text, max_tokens=limit)
    yield lambda: tokenizer.encode_batch([text, ""], max_tokens=limit, offsets=True)
    yield lambda: tokenizer.positive_map(text, [[(0, 2)]], max_tokens=limit)
    yield lambda: tokenizer.decode(tokenizer.encode(text)[0])
    yield tokenizer.to_json


def test_random_tokenizers_are_used_or_refused(capfd):
    used = refused = panicked = 0
    for seed in range(TOKENIZERS):
        for number, call in enumerate(calls(Source(seed))):
            try:
                call()
                used += 1
            except ValueError as error:
                panicked += "panicked" in str(error)
                refused += number == 0
                if number == 0:
                    break
    assert used > TOKENIZERS and refused > 300 and panicked > 30
    assert capfd.readouterr() == ("", "")
