"""Class prompts of training images, sampled as in the published code.

Two rules: `simple_prompt` (COCO, ODinW) and `optimized_prompt` (Objects365, LVIS), with quirks that
`sampling` does not have. They take Python's and NumPy's generators, in the published order of
calls, so that the same seeds give the same prompts.

Source: FIBER, fine_grained/maskrcnn_benchmark/data/datasets/od_to_grounding.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fiber.data.char_spans import CharSpan
from fiber.data.prompts.classes import SEPARATOR, ClassName, clean_class_name

#: Name of class id 0 in files that have one.
BACKGROUND = "__background__"

#: Returns the number of tokens of a text without <s> and </s>.
CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class ClassCaption:
    """A caption with the span of each class."""

    text: str
    #: By class id, in order of the caption.
    spans: dict[int, CharSpan]


def simple_prompt(
    names: Mapping[int, str],
    *,
    generator: random.Random | None = None,
    wording: Sequence[ClassName] | None = None,
) -> ClassCaption:
    """Name every class, regardless of length.

    Args:
        names: by id, without the background.
        generator: shuffles the classes; None: in order of their ids.
        wording: names with surrounding words, in order of the ids; not with a generator.

    Raises:
        ValueError: if both `generator` and `wording` are given.
    """
    order = sorted(names)
    if generator is not None:
        if wording is not None:
            raise ValueError("wording is in order of class ids; expected no generator with it")
        generator.shuffle(order)
    if wording is None:
        return _caption(order, [ClassName(names[label]) for label in order])
    return _caption(order, wording)


def keep_positives(
    present: Iterable[int],
    names: Mapping[int, str],
    *,
    count_tokens: CountTokens,
    budget: int,
    generator: random.Random,
) -> tuple[list[int], int]:
    """Keep as many of an image's classes as fit the budget, in random order.

    Args:
        present: class ids of its boxes.
        names: by id.
        count_tokens: of the model's tokenizer; it counts each class alone, which is more than the
            class adds to a text.
        budget: maximum text length in tokens, without <s> and </s>.
        generator: shuffles the classes.

    Returns:
        The ids kept, and the tokens counted, including those of the first class dropped.
    """
    order = list(set(present))
    generator.shuffle(order)
    kept, length = [], 0
    for label in order:
        length += count_tokens(_alone(names[label]))
        if length > budget:
            break
        kept.append(label)
    return kept, length


def optimized_prompt(
    names: Mapping[int, str],
    present: Iterable[int],
    *,
    chances: Sequence[float],
    max_negatives: int,
    count_tokens: CountTokens,
    budget: int,
    positive_tokens: int,
    generator: random.Random,
    numpy_generator: np.random.RandomState,
) -> ClassCaption:
    """Name an image's classes and a random number of others.

    Classes of the image are removed from the others after sampling. The background may be sampled.

    Args:
        names: by id, with the background as 0.
        present: class ids of the image's boxes that `keep_positives` kept.
        chances: probabilities of one other class, of none, and of `max_negatives`; the remainder to
            1 is that of any number from 1 to the maximum. The fourth must be 0.
        max_negatives: maximum number of other classes (published: 85).
        count_tokens: as in `keep_positives`.
        budget: as in `keep_positives`.
        positive_tokens: tokens counted by `keep_positives`.
        generator: Python's.
        numpy_generator: NumPy's legacy generator.

    Raises:
        ValueError: if the fourth chance is not 0, as in the published code.
    """
    candidates = list(names)
    # A new set, since its iteration order is part of the result.
    positives = set(present)
    full = min(max_negatives, len(candidates))
    count = min(_count_negatives(chances, full, generator, numpy_generator), len(candidates))
    sampled = numpy_generator.choice(candidates, size=count, replace=False).tolist()
    negatives = list({label for label in sampled if label not in positives})
    kept = list(positives)
    generator.shuffle(kept)
    generator.shuffle(negatives)
    left, affordable = budget - positive_tokens, []
    for label in negatives:
        left -= count_tokens(_alone(names[label]))
        if left <= 0:
            break
        affordable.append(label)
    order = affordable + kept
    generator.shuffle(order)
    return _caption(order, [ClassName(names[label]) for label in order])


def optimized_prompt_in_order(names: Mapping[int, str]) -> ClassCaption:
    """Name every class but the first by id, which is taken as the background; no sampling."""
    order = sorted(names)[1:]
    return _caption(order, [ClassName(names[label]) for label in order])


def _count_negatives(
    chances: Sequence[float],
    full: int,
    generator: random.Random,
    numpy_generator: np.random.RandomState,
) -> int:
    outer = generator.random()
    one, none, every, drop = chances
    if drop != 0:
        raise ValueError(f"chances: the fourth is {drop}; expected 0, as in the published code")
    if outer < one:
        return 1
    if outer < one + none:
        return 0
    if outer < one + none + every:
        return full
    # The published code makes two unused calls.
    generator.random()
    count = int(numpy_generator.choice(max(1, full))) + 1
    generator.random()
    return count


def _alone(name: str) -> str:
    return clean_class_name(name) + SEPARATOR


def _caption(order: Sequence[int], classes: Sequence[ClassName]) -> ClassCaption:
    text, spans = "", {}
    for place, (label, named) in enumerate(zip(order, classes, strict=True)):
        text += named.prefix
        name = clean_class_name(named.name)
        spans[label] = (len(text), len(text) + len(name))
        text += name + named.suffix
        if place < len(order) - 1:
            text += SEPARATOR
    return ClassCaption(text, spans)
