"""CIDEr-D: TF-IDF-weighted n-gram similarity between a caption and its references.

Words are separated by whitespace; the caller tokenizes. A caption of four or more words that equals
its only reference scores 10. Papers report 100 times the score, so 144.4 in a paper is 1.444 here
and in COCO's evaluation.

Source: CIDEr (Vedantam et al. 2015), variant D, with n-grams of 1 to 4 words, counts clipped to
those of the reference, and a Gaussian penalty on the length difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fiber.inert_pickle import PICKLE_ERRORS, HostileFileError, read_pickle
from fiber.messages import printable, shown, shown_names

#: Length of the longest n-gram, in words.
LONGEST = 4
#: Standard deviation of the length penalty, in words.
SIGMA = 6.0
#: Factor on the mean similarity.
SCALE = 10.0
#: Word that the published code appends to every caption before scoring it as a reward.
END_WORD = "<eos>"

#: Maximum number of words of an n-gram in a file.
_MAX_WORDS = 16

Ngram = tuple[str, ...]


class DocumentFrequencies(NamedTuple):
    """Number of images whose references contain each n-gram."""

    #: Number of images by n-gram; a missing n-gram counts as 1.
    counts: Mapping[Ngram, float]
    #: Number of images.
    images: float

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Count n-grams in the reference captions of each image.

        Raises:
            ValueError: if `references` is empty.
        """
        counts: Counter[Ngram] = Counter()
        images = 0
        for captions in references:
            images += 1
            counts.update({gram for caption in captions for gram in ngrams(caption)})
        if not images:
            raise ValueError("document frequencies need captions of at least one image, got none")
        # Omit n-grams of one image (most of a large corpus), since missing entries count as 1.
        several = {gram: float(count) for gram, count in counts.items() if count > 1}
        return cls(several, float(images))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> DocumentFrequencies:
        """Read the pickle commonly used in self-critical training (coco-train-words.p).

        It contains {"document_frequency": {(word, ...): count}, "ref_len": count}, where counts are
        numbers of images. It is read without `pickle`: nothing that it names is imported or called.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the file contains anything else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"document frequency file {path} does not exist")
        expected = "{'document_frequency': {(word, ...): count}, 'ref_len': count}"
        try:
            with path.open("rb") as file:
                content, _ = read_pickle(
                    file, max_words=_MAX_WORDS, max_operations=path.stat().st_size + 1
                )
        except HostileFileError as error:
            raise ValueError(
                f"{path} tries to run code when loaded: it calls {error}, which was not run;"
                f" expected {expected}"
            ) from error
        except PICKLE_ERRORS as error:
            raise ValueError(
                f"{path} is not a pickle of plain document frequencies:"
                f" {printable(str(error), 200)}; expected {expected}"
            ) from error
        wanted = ("document_frequency", "ref_len")
        if not isinstance(content, dict) or not all(name in content for name in wanted):
            found = f"an object of type {type(content).__name__}"
            if isinstance(content, dict):
                found = f"a dict with the keys {shown_names(content)}"
            raise ValueError(
                f"{path} contains {found}; expected a dict with the keys {list(wanted)}"
            )
        return cls(*_checked_frequencies(path, *(content[name] for name in wanted)))

    def weight(self, gram: Ngram) -> float:
        """Compute the inverse document frequency, log(images / images with the n-gram)."""
        return math.log(self.images) - math.log(max(1.0, self.counts.get(gram, 0.0)))


def cider_d_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> NDArray[np.float64]:
    """Compute the (n,) CIDEr-D scores, in [0, 10], of n captions with one or more references each.

    By default, document frequencies are computed from the references, as in COCO's evaluation. With
    a single image, the score is then 0, because each n-gram occurs in all images.

    Raises:
        ValueError: if the lengths differ, or an image has no reference.
    """
    if len(captions) != len(references):
        raise ValueError(
            f"captions and references must be for the same images; got {len(captions)} captions and"
            f" references for {len(references)} images"
        )
    if not len(captions):
        return np.zeros(0)
    empty = [number for number, own in enumerate(references) if not own]
    if empty:
        raise ValueError(f"image {empty[0]} has no reference caption; expected at least one")
    if frequencies is None:
        frequencies = DocumentFrequencies.of(references)
    scores = []
    for caption, own in zip(captions, references, strict=True):
        vector = _vector(caption, frequencies)
        total = sum(_similarity(vector, _vector(text, frequencies)) for text in own)
        scores.append(SCALE * total / len(own))
    return np.array(scores, dtype=np.float64)


def reward_text(caption: str) -> str:
    """Preprocess a caption for rewards, as in the published code.

    A final period is dropped and an end word appended, so that ending a caption is rewarded.
    """
    return f"{caption.strip().removesuffix('.')} {END_WORD}"


def ngrams(caption: str) -> Counter[Ngram]:
    """Count n-grams of 1 to 4 words."""
    words = caption.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )


def _checked_frequencies(path: Path, counts: Any, images: Any) -> tuple[dict[Ngram, float], float]:
    if not isinstance(counts, dict) or not counts:
        raise ValueError(
            f"{path}: document_frequency is {shown(counts)}; expected a non-empty dict"
        )
    for gram, count in counts.items():
        # Of tuples, only those of strings are kept as keys.
        if not isinstance(gram, tuple) or not _is_count(count):
            raise ValueError(
                f"{path}: document_frequency maps {shown(gram)} to {shown(count)}; expected a tuple"
                " of words and a number of images"
            )
    most = max(counts.values())
    if not _is_count(images) or images < most:
        raise ValueError(
            f"{path}: ref_len is {shown(images)}; expected the number of images, at least the"
            f" largest document frequency {most:g}"
        )
    return {gram: float(count) for gram, count in counts.items() if count > 1}, float(images)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 2**53


class _Vector(NamedTuple):
    """TF-IDF vector of a caption."""

    weights: dict[Ngram, float]
    #: Norm of the n-grams of each length, starting from 1.
    norms: tuple[float, ...]
    #: Number of 2-grams, which the published code uses as the length.
    length: int


def _vector(caption: str, frequencies: DocumentFrequencies) -> _Vector:
    counts = ngrams(caption)
    weights = {gram: count * frequencies.weight(gram) for gram, count in counts.items()}
    squares = [0.0] * LONGEST
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    length = sum(count for gram, count in counts.items() if len(gram) == 2)
    return _Vector(weights, tuple(map(math.sqrt, squares)), length)


def _similarity(caption: _Vector, reference: _Vector) -> float:
    """Compute the clipped cosine similarity, averaged over n-gram lengths, with length penalty."""
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
