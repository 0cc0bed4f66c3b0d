"""Sampling of classes for training prompts, as in the published code (Objects365, LVIS).

The functions draw from Python's and NumPy's random generators in the same order as the published
code, so the same seed gives the same prompts.

Source: FIBER, fine_grained/maskrcnn_benchmark/data/datasets/od_to_grounding.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fiber.data.prompts.classes import SEPARATOR, clean_class_name

#: Name of class id 0 in files that have one.
BACKGROUND = "__background__"


def keep_positives(
    present: Iterable[int],
    names: Sequence[str],
    *,
    count_tokens: Callable[[str], int],
    budget: int,
    generator: random.Random,
) -> tuple[list[int], int]:
    """Keep as many of the class ids in `present` as fit the budget, in random order.

    `count_tokens` counts the tokens of each class alone, which may be more than the class adds to a
    prompt. Counts and `budget` exclude <s> and </s>.

    Returns:
        The ids kept, and the number of tokens counted, including the first class that is dropped.
    """
    order = list(set(present))
    generator.shuffle(order)
    kept, length = [], 0
    for label in order:
        length += count_tokens(clean_class_name(names[label]) + SEPARATOR)
        if length > budget:
            break
        kept.append(label)
    return kept, length


def optimized_order(
    present: Iterable[int],
    names: Sequence[str],
    *,
    chances: Sequence[float],
    max_negatives: int,
    count_tokens: Callable[[str], int],
    budget: int,
    positive_tokens: int,
    generator: random.Random,
    numpy_generator: np.random.RandomState,
) -> list[int]:
    """Return the class ids of a prompt: those in `present` and a random number of negatives.

    Classes in `present` are removed from the negatives only after sampling. The background, class
    0, may be sampled. `present` and `positive_tokens` come from `keep_positives`; `chances` is
    `PromptRules.negative_chances`, and `max_negatives` (85 in the published code) is as in
    `PromptRules`.
    """
    # A new set, since its iteration order is part of the result.
    positives = set(present)
    one, none, every, _ = chances
    full = min(max_negatives, len(names))
    outer = generator.random()
    if outer < one:
        count = 1
    elif outer < one + none:
        count = 0
    elif outer < one + none + every:
        count = full
    else:
        # The published code makes two unused calls.
        generator.random()
        count = int(numpy_generator.choice(max(1, full))) + 1
        generator.random()
    sampled = numpy_generator.choice(len(names), size=min(count, len(names)), replace=False)
    negatives = list({label for label in map(int, sampled) if label not in positives})
    kept = list(positives)
    generator.shuffle(kept)
    generator.shuffle(negatives)
    left, affordable = budget - positive_tokens, []
    for label in negatives:
        left -= count_tokens(clean_class_name(names[label]) + SEPARATOR)
        if left <= 0:
            break
        affordable.append(label)
    order = affordable + kept
    generator.shuffle(order)
    return order
