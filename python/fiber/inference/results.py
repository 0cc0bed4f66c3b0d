"""What a model gives that is neither text nor boxes: an answer, a picture that was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Answer(NamedTuple):
    """An answer to a question and its score in [0, 1]; scores of answers need not sum to 1."""

    answer: str
    score: float


@dataclass(frozen=True)
class Hit:
    """A picture that a search found."""

    #: Its place in the list that was searched.
    index: int
    #: How well it fits: a matching probability, or a cosine where there was no re-ranking.
    score: float
