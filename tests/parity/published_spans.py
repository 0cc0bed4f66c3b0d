"""Tokens of a box's words by the published rule, to compare with it.

`fiber._core.positive_map` marks every token that shares a character with a span. The published rule
looks up a span's first and last characters and marks what lies between. The two differ where a
character is several tokens (an emoji), of which it takes the first, and where a span starts or ends
with characters of no token (runs of spaces), of which it passes over two at most.

Source: FIBER, fine_grained/maskrcnn_benchmark/data/datasets/modulated_coco.py, after MDETR.
"""

from __future__ import annotations

from collections.abc import Sequence

from fiber.data.char_spans import CharSpan

#: Characters that the rule goes on by where a span's first or last one belongs to no token.
STEPS = 2


def published_positive_tokens(offsets: Sequence[CharSpan], spans: Sequence[CharSpan]) -> list[int]:
    """Find the tokens that name a box as the published code does.

    Args:
        offsets: for each token of the text its half-open span of code points; empty for special
            tokens.
        spans: half-open spans of code points that name the box.

    Returns:
        Indices of tokens, ascending; none for a span of which either end is not found.
    """
    # Of a character that is several tokens, the first one counts.
    token_of: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        for character in range(start, end):
            token_of.setdefault(character, token)
    found: set[int] = set()
    for start, end in spans:
        first = _first_known(token_of, range(start, start + STEPS + 1))
        last = _first_known(token_of, range(end - 1, end - STEPS - 2, -1))
        if first is not None and last is not None:
            found.update(range(first, last + 1))
    return sorted(found)


def _first_known(token_of: dict[int, int], characters: range) -> int | None:
    return next((token_of[place] for place in characters if place in token_of), None)
