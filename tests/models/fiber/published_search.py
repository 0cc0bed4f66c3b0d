"""Beam search as in the published code, for one image, with Python loops."""

from __future__ import annotations

from collections.abc import Callable

PAD, END = 1, 2


def published_search(
    next_log_probs: Callable[[tuple[int, ...]], list[float]], num_beams: int, max_tokens: int
) -> tuple[list[int], float]:
    """Return the best beam's tokens without <s>, and its mean log probability.

    `next_log_probs` returns the log probabilities of the next token, given a text without <s>.
    """
    first = sorted(enumerate(next_log_probs(())), key=lambda pair: -pair[1])[:num_beams]
    beams = [((token,), total, 1) for token, total in first]
    while not all(text[-1] in (PAD, END) for text, _, _ in beams) and len(beams[0][0]) < (
        max_tokens - 1
    ):
        candidates = []
        for text, total, length in beams:
            if text[-1] in (PAD, END):
                # Log probability 0 for every vocabulary entry.
                every = len(next_log_probs(()))
                candidates += [((*text, PAD), total, length)] * every
            else:
                candidates += [
                    ((*text, token), total + value, length + 1)
                    for token, value in enumerate(next_log_probs(text))
                ]
        candidates.sort(key=lambda beam: -beam[1] / (beam[2] + 1e-9))
        beams = candidates[:num_beams]
    text, total, length = beams[0]
    return list(text), total / length
