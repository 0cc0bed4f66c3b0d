"""CIDEr-D: how well a caption agrees with those that people wrote, rare words counting more.

Words are what white space separates; whoever calls decides how a text becomes words. A score is 10
for a caption that is its only reference. Papers report a hundred times the tenth of it.

The computation is our own. Source: CIDEr (Vedantam et al. 2015), the -D form: n-grams of 1 to 4
words, counts clipped to the reference's, a Gaussian penalty on differing length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fiber.metrics.matching import mean

#: Words of the longest n-gram.
LONGEST = 4
#: Standard deviation of the length penalty, in words.
SIGMA = 6.0
#: Factor on the mean similarity.
SCALE = 10.0
#: What the published code puts at the end of every caption before it is scored as a reward.
END_WORD = "<eos>"

Ngram = tuple[str, ...]


class DocumentFrequencies(NamedTuple):
    """In how many pictures' references each n-gram occurs."""

    #: n-gram -> number of pictures; one that is missing counts as 1.
    counts: Mapping[Ngram, float]
    #: Number of pictures.
    pictures: float

    @classmethod
    def of(cls, references: Sequence[Sequence[str]]) -> DocumentFrequencies:
        """Count over a corpus.

        Args:
            references: of each picture, the captions that people wrote.
        """
        counts: Counter[Ngram] = Counter()
        for captions in references:
            counts.update({gram for caption in captions for gram in ngrams(caption)})
        return cls(counts, float(len(references)))

    def weight(self, gram: Ngram) -> float:
        """How much an n-gram counts: log(pictures / pictures that have it)."""
        return math.log(self.pictures) - math.log(max(1.0, self.counts.get(gram, 0.0)))


def cider_d(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> dict[str, float]:
    """Mean CIDEr-D over pictures.

    Args:
        captions: one for each of n pictures.
        references: for each picture at least one caption that people wrote.
        frequencies: of a reference corpus; None: of `references` themselves.

    Returns:
        `cider_d`, from 0 to 10.

    Raises:
        ValueError: if the lengths differ, or a picture has no reference.
    """
    return {"cider_d": mean(cider_d_scores(captions, references, frequencies))}


def cider_d_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> NDArray[np.float64]:
    """CIDEr-D of each caption, (n,), from 0 to 10; arguments and errors as for `cider_d`."""
    if len(captions) != len(references):
        raise ValueError(
            f"got {len(captions)} captions and references of {len(references)} pictures;"
            " expected as many of each"
        )
    empty = [number for number, own in enumerate(references) if not own]
    if empty:
        raise ValueError(f"picture {empty[0]} has no reference caption; expected at least one")
    frequencies = DocumentFrequencies.of(references) if frequencies is None else frequencies
    scores = [_score(c, own, frequencies) for c, own in zip(captions, references, strict=True)]
    return np.array(scores, dtype=np.float64)


def reward_text(caption: str) -> str:
    """Bring a caption to the form in which the published code scores rewards.

    One full stop at the end is dropped and the end becomes a word, so that ending is learned.
    """
    return f"{caption.strip().removesuffix('.')} {END_WORD}"


def ngrams(caption: str) -> Counter[Ngram]:
    """Count the n-grams of 1 to 4 words."""
    words = caption.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )


class _Vector(NamedTuple):
    """A caption's weighted n-grams."""

    weights: dict[Ngram, float]
    #: Norm for each n, from 1 on.
    norms: tuple[float, ...]
    #: Number of 2-grams, which the published code takes for the length.
    length: int


def _vector(caption: str, frequencies: DocumentFrequencies) -> _Vector:
    counts = ngrams(caption)
    weights = {gram: count * frequencies.weight(gram) for gram, count in counts.items()}
    squares = [0.0] * LONGEST
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    length = sum(count for gram, count in counts.items() if len(gram) == 2)
    return _Vector(weights, tuple(map(math.sqrt, squares)), length)


def _score(caption: str, references: Sequence[str], frequencies: DocumentFrequencies) -> float:
    own = _vector(caption, frequencies)
    total = sum(_similarity(own, _vector(text, frequencies)) for text in references)
    return SCALE * total / len(references)


def _similarity(caption: _Vector, reference: _Vector) -> float:
    """Mean over n of the clipped cosine, times the length penalty."""
    products = [0.0] * LONGEST
    for gram, weight in caption.weights.items():
        other = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, other) * other
    cosines = [
        product / (a * b) if a * b else 0.0
        for product, a, b in zip(products, caption.norms, reference.norms, strict=True)
    ]
    difference = caption.length - reference.length
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * sum(cosines) / LONGEST
