"""The published rules for class prompts, beyond what is recorded (tests/parity)."""

import random

import numpy as np
import pytest

from fiber.data.prompts.classes import ClassName
from fiber.data.prompts.published import (
    BACKGROUND,
    ClassCaption,
    keep_positives,
    optimized_prompt,
    optimized_prompt_in_order,
    simple_prompt,
)

NAMES = {0: BACKGROUND, 1: "cup", 2: "hot_dog", 3: "cat"}


def optimized(present=(1,), *, seed=0, chances=(0, 0, 1, 0), budget=254, count=len, **changes):
    return optimized_prompt(
        NAMES,
        present,
        chances=chances,
        max_negatives=changes.get("max_negatives", 85),
        count_tokens=count,
        budget=budget,
        positive_tokens=changes.get("positive_tokens", 0),
        generator=random.Random(seed),
        numpy_generator=np.random.RandomState(seed),
    )


def test_no_class():
    assert simple_prompt({}) == ClassCaption("", {})
    assert optimized_prompt_in_order({0: BACKGROUND}) == ClassCaption("", {})
    nothing = keep_positives([], {}, count_tokens=len, budget=9, generator=random.Random(0))
    assert nothing == ([], 0)


def test_words_around_names():
    wording = [ClassName("hot_dog", " ", " which is big"), ClassName("cat")]
    caption = simple_prompt({2: "a", 1: "b"}, wording=wording)
    assert caption == ClassCaption(" hot dog which is big. cat", {1: (1, 8), 2: (23, 26)})
    with pytest.raises(ValueError, match="expected no generator"):
        simple_prompt({1: "a"}, wording=wording, generator=random.Random(0))


def test_all_classes_and_the_background():
    caption = optimized()
    assert set(caption.spans) == {0, 1, 2, 3}
    start, end = caption.spans[0]
    assert caption.text[start:end] == " background "


def test_classes_of_the_picture_are_struck_out_after_the_draw():
    # Four are drawn of four, two of them have boxes.
    assert set(optimized((1, 2)).spans) == {0, 1, 2, 3}
    counts = {len(optimized((1, 2), max_negatives=2, seed=seed).spans) for seed in range(40)}
    assert counts == {2, 3, 4}


@pytest.mark.parametrize(
    ("chances", "counts"),
    [
        ((1, 0, 0, 0), {1, 2}),
        ((0, 1, 0, 0), {1}),
        ((0, 0, 0, 0), {1, 2, 3, 4}),
        ((0.5, 0.5, 0, 0), {1, 2}),
    ],
)
def test_the_chances(chances, counts):
    assert {len(optimized(chances=chances, seed=seed).spans) for seed in range(60)} == counts


def test_the_budget_counts_each_class_alone():
    # Five tokens each, and none is left for the next: 16 hold three, 15 hold two.
    def five(text):
        assert text.endswith(". ")
        return 5

    assert len(optimized((), budget=16, count=five).spans) == 3
    assert len(optimized((), budget=15, count=five).spans) == 2
    assert len(optimized((1,), budget=16, positive_tokens=5, count=five).spans) == 3
    # The positives are not counted again.
    assert len(optimized((1,), budget=16, positive_tokens=16, count=five).spans) == 1


def test_positives_beyond_the_budget():
    kept, length = keep_positives(
        [1, 2, 3, 1], NAMES, count_tokens=lambda text: 5, budget=10, generator=random.Random(0)
    )
    assert len(kept) == 2 and set(kept) < {1, 2, 3} and length == 15


def test_the_released_chances_are_refused():
    with pytest.raises(ValueError, match=r"the fourth is 0\.2; expected 0"):
        optimized(chances=(0.05, 0.05, 0.5, 0.2))
