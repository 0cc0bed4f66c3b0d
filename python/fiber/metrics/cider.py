"""CIDEr-D: how well a caption agrees with those that people wrote, rare words counting more.

Words are what white space separates; whoever calls decides how a text becomes words. A score is 10
for a caption of four words or more that is its only reference. Papers print a hundred times the
score: their 144.4 is 1.444 here, as in COCO's evaluation.

The computation is our own. Source: CIDEr (Vedantam et al. 2015), the -D form: n-grams of 1 to 4
words, counts clipped to the reference's, a Gaussian penalty on differing length.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

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
    def of(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Count over a corpus.

        Args:
            references: of each picture, the captions that people wrote.

        Raises:
            ValueError: if there is no picture.
        """
        counts: Counter[Ngram] = Counter()
        pictures = 0
        for captions in references:
            pictures += 1
            counts.update({gram for caption in captions for gram in ngrams(caption)})
        if not pictures:
            raise ValueError("document frequencies of no picture; expected captions of 1 or more")
        # Most n-grams of a large corpus are of one picture, which a missing one counts as too.
        several = {gram: float(count) for gram, count in counts.items() if count > 1}
        return cls(several, float(pictures))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> DocumentFrequencies:
        """Read the file that self-critical training is often run with (coco-train-words.p).

        Args:
            path: of a pickle of {"document_frequency": {(word, ...): pictures}, "ref_len":
                pictures}. Nothing in it is executed: it may name float, int and defaultdict alone.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is anything else, with what was found.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"document frequencies {path} do not exist")
        with path.open("rb") as file:
            try:
                held = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
            except Exception as error:
                # A broken pickle may fail in any way.
                raise ValueError(
                    f"{path} is no pickle of plain document frequencies: {error}"
                ) from error
        wanted = ("document_frequency", "ref_len")
        if not isinstance(held, dict) or not all(name in held for name in wanted):
            found = sorted(map(str, held)) if isinstance(held, dict) else type(held).__name__
            raise ValueError(f"{path} holds {found}; expected a dict with {' and '.join(wanted)}")
        return cls(*_checked_frequencies(path, *(held[name] for name in wanted)))

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
        frequencies: of a reference corpus; None: of `references` themselves, as COCO's evaluation
            has it. Every n-gram of a single picture is in all pictures, so that it scores 0.

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
    if not len(captions):
        return np.zeros(0)
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


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values: all that a pickle may name are types that can neither run nor keep code.

    Builtin types refuse the attributes that a pickle may try to set, and calling these three with
    plain values gives plain values.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "defaultdict"):
            return defaultdict
        # "__builtin__" is what Python 2 wrote.
        if module in ("builtins", "__builtin__") and name in ("float", "int"):
            return {"float": float, "int": int}[name]
        raise pickle.UnpicklingError(
            f"it names {module}.{name}; expected float, int and collections.defaultdict alone"
        )


def _checked_frequencies(
    path: Path, counts: Any, pictures: Any
) -> tuple[dict[Ngram, float], float]:
    """Check what a file holds."""
    if not isinstance(counts, dict) or not counts:
        raise ValueError(
            f"{path}: document_frequency is {str(counts)[:40]!r}; expected a dict of n-grams"
        )
    for gram, count in counts.items():
        words = isinstance(gram, tuple) and all(isinstance(word, str) for word in gram)
        if not words or not _is_count(count):
            raise ValueError(
                f"{path}: document_frequency has {gram!r}: {count!r}; expected a tuple of words and"
                " a number of pictures"
            )
    most = max(counts.values())
    if not _is_count(pictures) or pictures < most:
        raise ValueError(
            f"{path}: ref_len is {pictures!r}; expected the number of pictures, which is at least"
            f" {most:g}, as many as one n-gram has"
        )
    return {gram: float(count) for gram, count in counts.items() if count > 1}, float(pictures)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


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
