"""Results of question answering and image search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Answer(NamedTuple):
    """Answer and its score in [0, 1]; scores need not sum to 1."""

    answer: str
    score: float


@dataclass(frozen=True)
class Hit:
    """Image search result."""

    #: Index into the searched images.
    index: int
    #: ITM probability, or ITC cosine similarity without re-ranking.
    score: float
