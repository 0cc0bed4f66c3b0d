"""Published class sampling, beyond the recorded cases of tests/parity."""

import random

import numpy as np
import pytest

from fiber.data.prompts.published import BACKGROUND, keep_positives, optimized_order
from fiber.data.prompts.rules import PromptRules
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import Record
from tests.data.words import Words

NAMES = (BACKGROUND, "cup", "hot_dog", "cat")


def optimized(present=(1,), *, seed=0, chances=(0, 0, 1, 0), budget=254, count=len, **changes):
    return optimized_order(
        present,
        NAMES,
        chances=chances,
        max_negatives=changes.get("max_negatives", 85),
        count_tokens=count,
        budget=budget,
        positive_tokens=changes.get("positive_tokens", 0),
        generator=random.Random(seed),
        numpy_generator=np.random.RandomState(seed),
    )


def sampled(labels, *, negative_chances=(0, 0, 1, 0), **rules):
    record = Record(key="a", images=("a.jpg",), text="", labels=labels)
    rules = PromptRules(negative_chances=negative_chances, **rules)
    return SampledPrompts([record], Words(), max_tokens=99, rules=rules)[0]


@pytest.mark.parametrize("rule", ["simple", "optimized"])
def test_no_class(rule):
    record = sampled((), class_rule=rule, shuffle_classes=False)
    assert (record.text, record.labels, record.label_spans) == ("", (), ())
    nothing = keep_positives([], (), count_tokens=len, budget=9, generator=random.Random(0))
    assert nothing == ([], 0)


def test_the_background_may_be_sampled():
    assert sorted(optimized()) == [0, 1, 2, 3]
    record = sampled(NAMES[1:], class_rule="optimized", max_negatives=85)
    assert sorted(record.labels) == sorted(NAMES)
    (span,) = record.label_spans[record.labels.index(BACKGROUND)]
    assert record.text[slice(*span)] == " background "


def test_classes_of_the_image_are_removed_after_sampling():
    # Four of four are sampled; two of them have boxes.
    assert sorted(optimized((1, 2))) == [0, 1, 2, 3]
    counts = {len(optimized((1, 2), max_negatives=2, seed=seed)) for seed in range(40)}
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
    assert {len(optimized(chances=chances, seed=seed)) for seed in range(60)} == counts


def test_the_budget_counts_each_class_alone():
    # Five tokens each, and one must be left: three fit into 16, two into 15.
    def five(text):
        assert text.endswith(". ")
        return 5

    assert len(optimized((), budget=16, count=five)) == 3
    assert len(optimized((), budget=15, count=five)) == 2
    assert len(optimized((1,), budget=16, positive_tokens=5, count=five)) == 3
    # The positives are not counted again.
    assert len(optimized((1,), budget=16, positive_tokens=16, count=five)) == 1


def test_positives_beyond_the_budget():
    kept, length = keep_positives(
        [1, 2, 3, 1], NAMES, count_tokens=lambda text: 5, budget=10, generator=random.Random(0)
    )
    assert len(kept) == 2 and set(kept) < {1, 2, 3} and length == 15


def test_the_released_chances_are_rejected():
    with pytest.raises(ValueError, match=r"fourth.*0\.2"):
        PromptRules(class_rule="optimized", negative_chances=(0.05, 0.05, 0.5, 0.2))
