"""Caption metrics of the COCO evaluation: BLEU-4, ROUGE-L and CIDEr-D.

All metrics compare tokens from `caption_tokens`, which reimplements the COCO evaluation's Penn
Treebank tokenizer (Stanford's PTBTokenizer with -lowerCase) without Java:

- text is lowercased;
- a token is a run of letters and digits, with inner hyphens, slashes, ampersands and apostrophes,
  and periods, commas or colons between digits;
- n't, 's, 're, 've, 'll, 'd and 'm are separate tokens ("don't": "do", "n't"), as are the halves of
  cannot, gonna, gotta, wanna, gimme and lemme;
- the marks ' ` " . ? ! , : ; and dashes outside words are dropped, as in COCO;
- brackets become tokens such as "-lrb-"; COCO's list of dropped marks contains them only in upper
  case, so it never matches lowercased text;
- every other symbol is a token.

Unlike in the original tokenizer, abbreviations lose their period: "st." becomes "st".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fiber.messages import shown
from fiber.metrics.cider import cider_d_scores
from fiber.metrics.matching import mean

#: Weight of recall relative to precision in COCO's ROUGE-L.
ROUGE_BETA = 1.2

# As in COCO's BLEU, keep precisions above 0 if there is no match or no n-gram.
_TINY, _SMALL = 1e-15, 1e-9

_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u00b4": "'"})
_TOKEN = re.compile(r"[^\W_]+(?:(?:[-/&']|(?<=\d)[.,:](?=\d))[^\W_]+)*|[^\w\s]|_")
_CONTRACTION = re.compile(r"(.+)(n't|'(?:s|re|ve|ll|d|m))")
_JOINED = re.compile(r"(can)(not)|(gon|got|wan)(na|ta)|(gim|lem)(me)")
_DROPPED = frozenset("'`\".?!,:;-\u2013\u2014\u2026\u201c\u201d")
_BRACKETS = dict(zip("()[]{}", ["-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"], strict=True))


def caption_tokens(caption: str) -> list[str]:
    """Tokenize a caption by the rules in the module docstring.

    Source: coco-caption's ptbtokenizer.py (Chen et al. 2015).
    """
    found: list[str] = _TOKEN.findall(caption.lower().translate(_APOSTROPHES))
    tokens: list[str] = []
    for token in found:
        if token not in _DROPPED:
            tokens += _parts(_BRACKETS.get(token, token))
    return tokens


def caption_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compute BLEU-4, ROUGE-L and CIDEr-D of captions tokenized by `caption_tokens`.

    Args:
        candidates: predicted captions of n images.
        references: one or more reference captions per image.

    Returns:
        `bleu_4` and `rouge_l` in [0, 1]; `cider_d` in [0, 10] (papers report 100 times this). As in
        COCO's evaluation, document frequencies come from the references, so `cider_d` depends on
        the set of images and is 0 for a single image.

    Raises:
        ValueError: if the lengths differ, or an image has no reference.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"expected one caption per image, got {len(candidates)} captions for"
            f" {len(references)} images"
        )
    for number, people in enumerate(references):
        if isinstance(people, str) or not len(people):
            raise ValueError(
                f"references of image {number} are {shown(people)}; expected one or more captions"
            )
    predicted = [caption_tokens(candidate) for candidate in candidates]
    truths = [[caption_tokens(reference) for reference in people] for people in references]
    cider = cider_d_scores(
        list(map(" ".join, predicted)), [list(map(" ".join, people)) for people in truths]
    )
    return {
        "bleu_4": bleu(predicted, truths),
        "rouge_l": mean(np.array([rouge_l(*p) for p in zip(predicted, truths, strict=True)])),
        "cider_d": mean(cider),
    }


def bleu(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    order: int = 4,
) -> float:
    """Compute corpus BLEU, or NaN if there are no captions.

    Captions and references are lists of tokens; `order` is the length of the longest n-gram. The
    brevity penalty uses the reference length closest to each caption's (the shorter one on a tie).

    Source: Papineni et al. 2002; constants and reference length as in coco-caption.
    """
    if not len(candidates):
        return math.nan
    matched, possible = [0] * order, [0] * order
    length = reference_length = 0
    for words, people in zip(candidates, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(p) - len(words)), len(p)) for p in people)[1]
        for n in range(1, order + 1):
            most: Counter = Counter()
            for reference in people:
                most |= _ngrams(reference, n)
            matched[n - 1] += (_ngrams(words, n) & most).total()
            possible[n - 1] += max(0, len(words) - n + 1)
    if not length:
        return 0.0
    precisions = [(m + _TINY) / (p + _SMALL) for m, p in zip(matched, possible, strict=True)]
    brevity = min(0.0, 1.0 - reference_length / length)
    return math.prod(precisions) ** (1 / order) * math.exp(brevity)


def rouge_l(words: Sequence[str], people: Sequence[Sequence[str]]) -> float:
    """Compute ROUGE-L of a caption against its references, all as lists of tokens.

    This is the F-measure of the longest common subsequence, computed from the best precision and
    the best recall, possibly from different references.

    Source: Lin 2004; weight of recall and the two maxima as in coco-caption.
    """
    common = [(_common_length(words, reference), len(reference)) for reference in people]
    precision = max(length for length, _ in common) / max(1, len(words))
    recall = max(length / max(1, total) for length, total in common)
    if not precision:
        return 0.0
    weight = ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def _parts(token: str) -> list[str]:
    """Split contractions: "shouldn't've" -> ["should", "n't", "'ve"]."""
    joined = _JOINED.fullmatch(token)
    if joined:
        return [part for part in joined.groups() if part is not None]
    endings: list[str] = []
    while match := _CONTRACTION.fullmatch(token):
        token = match[1]
        endings.insert(0, match[2])
    return [token, *endings]


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Compute the length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for at, compared in enumerate(other, 1):
            above = row[at]
            row[at] = diagonal + 1 if word == compared else max(above, row[at - 1])
            diagonal = above
    return row[-1]
