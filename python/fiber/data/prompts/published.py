"""Class prompts of training pictures as the published code draws them, to compare with it.

Two rules, both with quirks that `drawn_prompts` does not share: `simple_prompt` (COCO, ODinW) and
`optimized_prompt` (Objects365, LVIS). They take Python's and numpy's own generators, in the
published order of calls, so that the same seeds give the same prompts.

Source: FIBER, fine_grained/maskrcnn_benchmark/data/datasets/od_to_grounding.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fiber.data.char_spans import CharSpan
from fiber.data.prompts.classes import SEPARATOR, ClassName, clean_class_name

#: What a class with the id 0 is called where a file lists one.
BACKGROUND = "__background__"

#: Counts the tokens of a text without <s> and </s>.
CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class ClassCaption:
    """A caption and where in it each class stands."""

    text: str
    #: By class id, in the order of the caption.
    spans: dict[int, CharSpan]


def simple_prompt(
    names: Mapping[int, str],
    *,
    generator: random.Random | None = None,
    wording: Sequence[ClassName] | None = None,
) -> ClassCaption:
    """Name every class, however long the text becomes.

    Args:
        names: by id, without the background.
        generator: shuffles the classes; None leaves them ordered by id.
        wording: words around each name, by place; only for classes that are not shuffled.

    Raises:
        ValueError: for words around the names of shuffled classes.
    """
    order = sorted(names)
    if generator is not None:
        if wording is not None:
            raise ValueError("words around the names go by place; expected no shuffling with them")
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
    """Keep as many of a picture's classes as the budget holds, in random order.

    Args:
        present: class ids of its boxes.
        names: by id.
        count_tokens: of the model's tokenizer; it counts each class by itself, which is more than
            what the class adds to a text.
        budget: tokens of the longest text without <s> and </s>.
        generator: draws the order.

    Returns:
        The ids kept, and the tokens counted, those of the first class left out among them.
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
    """Name a picture's classes and a drawn number of others.

    Of the others, those that the picture has are struck out after the draw, and the background may
    be among them.

    Args:
        names: by id, the background as 0.
        present: class ids of the picture's boxes, those that `keep_positives` kept.
        chances: of one other class, of none, and of `max_negatives`; what is left to 1 is the
            chance of any number from 1 to that. The fourth must be 0.
        max_negatives: other classes that are drawn at most (published: 85).
        count_tokens: as in `keep_positives`.
        budget: as in `keep_positives`.
        positive_tokens: tokens counted there.
        generator: Python's.
        numpy_generator: numpy's legacy one.

    Raises:
        ValueError: if the fourth chance is not 0, as the published code stops there.
    """
    candidates = list(names)
    # A set of its own: the order in which a set gives its items is part of the draw.
    positives = set(present)
    full = min(max_negatives, len(candidates))
    count = min(_count_negatives(chances, full, generator, numpy_generator), len(candidates))
    drawn = numpy_generator.choice(candidates, size=count, replace=False).tolist()
    negatives = list({label for label in drawn if label not in positives})
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
    """Name every class but the first by id, which is taken for the background: nothing is drawn."""
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
    # Two draws of the published code that nothing comes of.
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
