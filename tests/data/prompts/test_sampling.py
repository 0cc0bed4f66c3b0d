"""The text that a picture with class boxes gets, drawn for an epoch."""

import collections
import dataclasses
import math

import pytest

from fiber.data import ConcatRecords, Record
from fiber.data.prompts.classes import class_prompt
from fiber.data.prompts.rules import PromptRules
from fiber.data.prompts.sampling import SampledPrompts, dropped_boxes
from fiber.data.record import TrueObjects, record_in_epoch
from tests.data.words import Words

THINGS = tuple(f"thing{number}" for number in range(300))
RELEASED = (0.05, 0.05, 0.5, 0.2)


def picture(*own, labels=THINGS):
    """A record as the reader of COCO's form makes it: one box for each class index."""
    whole = class_prompt(labels)
    return Record(
        key="a/1",
        images=("a.jpg",),
        text=whole.text,
        boxes_xyxy=tuple((float(i), 0.0, 9.0 + i, 9.0) for i in range(len(own))),
        char_spans=tuple(whole.spans[label] for label in own),
        box_labels=tuple(own),
        labels=whole.labels,
        label_spans=whole.spans,
    )


def drawn(records, *, max_tokens=64, seed=0, **rules):
    return SampledPrompts(
        records, Words(), max_tokens=max_tokens, rules=PromptRules(**rules), seed=seed
    )


def length(record):
    return len(Words().encode(record.text)[0])


def names_of_boxes(record):
    """What the spans of each box say."""
    return [record.text[slice(*spans[0])] for spans in record.char_spans]


def split(record, own):
    """How many classes of the boxes, and how many others, a text asks for."""
    positives = {THINGS[label] for label in own} & set(record.labels)
    return len(positives), len(record.labels) - len(positives)


def test_no_record_and_no_class():
    assert len(drawn([])) == 0
    (record,) = [drawn([picture(labels=())])[0]]
    assert (record.text, record.labels, record.boxes_xyxy) == ("", (), ())


def test_every_class_is_asked_for_where_all_fit():
    own = (3, 1, 3)
    record = drawn([picture(*own, labels=THINGS[:5])])[0]
    assert sorted(record.labels) == sorted(THINGS[:5])
    assert names_of_boxes(record) == ["thing3", "thing1", "thing3"]
    assert [record.labels[label] for label in record.box_labels] == ["thing3", "thing1", "thing3"]
    assert record.boxes_xyxy == picture(*own).boxes_xyxy
    records = drawn([picture(*own, labels=THINGS[:5])])
    assert len({records.in_epoch(epoch, 0).text for epoch in range(20)}) > 10
    in_order = drawn([picture(*own, labels=THINGS[:5])], shuffle_classes=False)[0]
    assert in_order == picture(*own, labels=THINGS[:5])


@pytest.mark.parametrize("max_tokens", [5, 8, 64, 256])
def test_a_text_is_filled_and_fits(max_tokens):
    records = drawn([picture(7, 290)], max_tokens=max_tokens)
    for epoch in range(20):
        record = records.in_epoch(epoch, 0)
        # Words counts a class and its point as two tokens, <s> and </s> as two, the last point as
        # none: 2 n + 1.
        assert len(record.labels) == (max_tokens - 1) // 2 <= max_tokens // 2
        assert length(record) <= max_tokens
        assert {"thing7", "thing290"} <= set(record.labels)
        assert len(set(record.labels)) == len(record.labels)
    assert records.dropped_boxes == 0


def test_draws_depend_on_seed_epoch_and_record_alone():
    records = [picture(7), picture(7)]
    first = drawn(records)
    texts = [first.in_epoch(epoch, index).text for epoch in range(3) for index in range(2)]
    assert len(set(texts)) == 6
    # Whatever was asked for before.
    again = drawn(records)
    reverse = [again.in_epoch(epoch, index).text for epoch in (2, 1, 0) for index in (1, 0)]
    assert reverse[::-1] == texts
    assert drawn(records, seed=1).in_epoch(0, 0).text not in texts
    assert first[1] == first[-1] == first.in_epoch(0, 1)
    with pytest.raises(IndexError):
        first[2]


def test_every_class_comes_up_as_a_negative_alike():
    records = drawn([picture(0)], max_tokens=43)
    epochs = 3000
    counts = collections.Counter(
        label for epoch in range(epochs) for label in records.in_epoch(epoch, 0).labels
    )
    assert counts.pop("thing0") == epochs
    expected = epochs * 20 / 299
    assert set(counts) == set(THINGS[1:])
    assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts.values())


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"max_classes": 6}, (2, 4)),
        # Classes with boxes are asked for in any case.
        ({"max_classes": 1}, (2, 0)),
        ({"max_negatives": 3}, (2, 3)),
        ({"max_negatives": 0}, (2, 0)),
        ({"max_negatives": 10_000}, (2, 29)),
        ({"max_classes": 9, "max_negatives": 3}, (2, 3)),
        ({"negative_chances": (1.0, 0.0, 0.0, 0.0)}, (2, 1)),
        ({"negative_chances": (0.0, 1.0, 0.0, 0.0)}, (2, 0)),
    ],
    ids=str,
)
def test_how_many_classes(rules, expected):
    own = (7, 290, 7)
    records = drawn([picture(*own)], **rules)
    for epoch in range(10):
        assert split(records.in_epoch(epoch, 0), own) == expected
    assert records.dropped_boxes == 0


def test_the_released_chances():
    """One negative in 5 % of the texts, none in 5 %, all in 50 %; else any number of them.

    Of this last 40 %, a fifth keeps any number of the boxes' classes.
    """
    own = tuple(range(10))
    records = drawn([picture(*own)], max_negatives=20, negative_chances=RELEASED)
    epochs = 4000
    counts = collections.Counter(split(records.in_epoch(e, 0), own) for e in range(epochs))

    def part(condition):
        return sum(n for (p, k), n in counts.items() if condition(p, k)) / epochs

    # 0.05 + 0.4 / 20, 0.05, 0.5 + 0.4 / 20: each within five standard deviations.
    assert part(lambda p, k: k == 1) == pytest.approx(0.07, abs=0.02)
    assert part(lambda p, k: k == 0) == pytest.approx(0.05, abs=0.018)
    assert part(lambda p, k: k == 20) == pytest.approx(0.52, abs=0.04)
    assert part(lambda p, k: 1 < k < 20) == pytest.approx(0.36, abs=0.04)
    # A tenth of the thinned ones keeps all ten.
    assert part(lambda p, k: p < 10) == pytest.approx(0.4 * 0.2 * 0.9, abs=0.02)
    assert min(p for p, _ in counts) == 1
    lost = sum((10 - p) * n for (p, _), n in counts.items())
    assert records.dropped_boxes == lost > 0


def test_some_prompts_name_only_absent_classes():
    own = (7, 290)
    few = {"max_negatives": 3, "negative_chances": (1.0, 0.0, 0.0, 0.0)}
    records = drawn([picture(*own)], absent_chance=0.25, **few)
    epochs = 1000
    counts = collections.Counter(split(records.in_epoch(e, 0), own) for e in range(epochs))
    assert set(counts) == {(2, 1), (0, 1)}
    # Within five standard deviations.
    assert counts[0, 1] / epochs == pytest.approx(0.25, abs=0.07)
    assert records.dropped_boxes == 2 * counts[0, 1]
    absent = next(r for e in range(50) if not (r := records.in_epoch(e, 0)).boxes_xyxy)
    assert len(absent.labels) == 1 and absent.char_spans == ()
    # Even where no negative is asked for; but not if there is none.
    alone = drawn([picture(*own)], absent_chance=1.0, max_negatives=0)
    assert split(alone[0], own) == (0, 1)
    both = drawn([picture(0, 1, labels=("cup", "dog"))], absent_chance=1.0)
    assert sorted(both[0].labels) == ["cup", "dog"]


def test_prompts_are_those_of_earlier_versions():
    """A run that is resumed goes on with the prompts that it began with."""
    records = drawn([picture(7, 290, 7)], max_negatives=3, negative_chances=RELEASED)
    assert [records.in_epoch(epoch, 0).labels for epoch in range(4)] == [
        ("thing7", "thing188", "thing290"),
        ("thing69", "thing128", "thing162", "thing290", "thing7"),
        ("thing7", "thing48", "thing290", "thing93"),
        ("thing7", "thing276", "thing65", "thing168", "thing290"),
    ]


def test_positives_beyond_a_text_are_drawn_and_their_boxes_counted():
    own = tuple(range(40))
    records = drawn([picture(*own, 0)], max_tokens=21)
    seen = set()
    for epoch in range(20):
        before = records.dropped_boxes
        record = records.in_epoch(epoch, 0)
        assert split(record, own) == (10, 0)
        assert names_of_boxes(record) == [record.labels[label] for label in record.box_labels]
        assert records.dropped_boxes - before == 41 - len(record.boxes_xyxy)
        seen |= set(record.labels)
    assert seen == {THINGS[label] for label in own}


def test_negatives_are_never_positives_nor_their_namesakes_nor_background():
    labels = ("__background__", "bow_(ribbon)", "Bow ", "bow_(weapon)", "cup", "Cup")
    records = drawn([picture(3, labels=labels)])
    for epoch in range(30):
        record = records.in_epoch(epoch, 0)
        assert sorted(record.labels) in (["bow_(weapon)", "cup"], ["Cup", "bow_(weapon)"])
        assert names_of_boxes(record) == ["bow "]
    # Two of a kind with boxes share their words.
    record = drawn([picture(1, 3, 2, labels=labels)])[0]
    assert names_of_boxes(record) == ["bow "] * 3 and len(record.labels) == 2


def test_an_image_without_boxes_is_asked_for_something():
    records = drawn([picture()], negative_chances=(0.0, 1.0, 0.0, 0.0))
    assert len(records[0].labels) == 1
    assert drawn([picture()], max_negatives=0)[0].labels != ()


def test_a_class_that_is_too_long_is_named():
    with pytest.raises(ValueError, match=r"record 'a/1': class 'a b c d'.*4"):
        drawn([picture(0, labels=("a b c d",))], max_tokens=4)[0]


def test_in_the_order_of_the_file():
    record = drawn([picture(290, 7)], max_classes=9, shuffle_classes=False)[0]
    places = [THINGS.index(label) for label in record.labels]
    assert places == sorted(places) and len(places) == 9


def test_published_rules_can_be_trained_by():
    labels = tuple(f"thing {number}" for number in range(120))
    every = drawn([picture(1, labels=labels)], class_rule="simple")
    assert sorted(every[0].labels) == sorted(labels)
    assert every[0].text != every.in_epoch(1, 0).text
    in_order = drawn([picture(1, labels=labels)], class_rule="simple", shuffle_classes=False)
    assert in_order[0] == picture(1, labels=labels)
    records = drawn(
        [picture(1, 1, 5, labels=labels)],
        class_rule="optimized",
        max_negatives=85,
        max_tokens=62,
    )
    background = 0
    for epoch in range(60):
        record = records.in_epoch(epoch, 0)
        background += "__background__" in record.labels
        assert names_of_boxes(record) == ["thing 1", "thing 1", "thing 5"]
        # Three tokens each counted alone, those of two positives first, less than 60 in all.
        assert length(record) <= 62 and len(record.labels) <= 20
    assert background > 0
    assert records.in_epoch(3, 0) == records.in_epoch(3, 0) != records.in_epoch(4, 0)


def test_what_counts_through_all_classes_is_left_out():
    whole = dataclasses.replace(
        picture(1, 3),
        label_ids=tuple(range(len(THINGS))),
        label_groups=("f",) * len(THINGS),
        objects=TrueObjects(boxes_xyxy=((0.0, 0.0, 9.0, 9.0),), labels=(3,)),
    )
    record = drawn([whole], max_classes=2)[0]
    assert len(record.labels) == 2
    assert (record.label_ids, record.label_groups, record.objects) == ((), (), None)


def test_parts_of_a_set_are_drawn_by_epoch():
    plain = picture(1, labels=("cup", "dog", "cat"))
    parts = ConcatRecords([[plain], drawn([picture(*range(40))], max_tokens=21)])
    assert record_in_epoch(parts, 5, 0) is plain
    assert record_in_epoch(parts, 5, 1) == parts.parts[1].in_epoch(5, 0) != parts[1]
    assert dropped_boxes(parts) == 60
    assert dropped_boxes([plain]) == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_classes": 0}, r"max_classes.*1.*0"),
        ({"max_negatives": -1}, r"max_negatives.*0.*-1"),
        ({"negative_chances": (0.5, 0.5, 0.5, 0.0)}, "negative_chances must be in .* got"),
        ({"negative_chances": (0.0, 0.0, float("nan"), 0.0)}, "negative_chances must be in"),
        ({"absent_chance": 1.5}, r"absent_chance must be in \[0, 1\], got 1.5"),
        ({"absent_chance": float("nan")}, "absent_chance must be in"),
        (
            {"absent_chance": 0.5, "class_rule": "simple"},
            "absent_chance must be 0 for class_rule 'simple', got 0.5",
        ),
        (
            {"negative_chances": RELEASED, "class_rule": "optimized"},
            "fourth value of negative_chances",
        ),
    ],
)
def test_rules_out_of_range(rules, message):
    with pytest.raises(ValueError, match=message):
        PromptRules(**rules)
