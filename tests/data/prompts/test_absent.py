"""Phrases of other images that an image does not show, judged by the annotations alone."""

import dataclasses

import pytest

from fiber.data import ConcatRecords, Record
from fiber.data.prompts.absent import (
    AbsentPhrases,
    LonePhrase,
    ObjectWords,
    absent_phrase,
    phrases_of,
)
from fiber.data.record import record_in_epoch
from fiber.data.rng import Rng
from fiber.data.skip_report import classes_of
from fiber.synthetic.scenes import SceneRecipe
from fiber.training.data import fingerprint

IMAGES = 400
RECIPE = SceneRecipe(seed=0, image_size=96, max_objects=3)


def named(index, text, spans, things):
    """A record of an image of the recipe; the box of an object is its number."""
    spans = tuple((span,) for span in spans)
    boxes = [(thing, span) for span, own in zip(spans, things, strict=True) for thing in own]
    return Record(
        key=f"{index}/{text}",
        images=(f"{index}.jpg",),
        text=text,
        boxes_xyxy=tuple((float(thing), 0.0, thing + 5.0, 5.0) for thing, _ in boxes),
        char_spans=tuple(span for _, span in boxes),
        labels=tuple(text[start:end] for ((start, end),) in spans),
        label_spans=spans,
    )


@pytest.fixture(scope="module")
def scenes():
    """Expressions and captions of generated images, and the words of their objects."""
    images = [RECIPE.describe("train", index) for index in range(IMAGES)]
    captions = [
        named(image.image_id, each.text, each.spans, each.things)
        for image in images
        for each in image.captions
    ]
    expressions = [
        named(image.image_id, each.text, each.spans[:1], each.things[:1])
        for image in images
        for each in image.expressions
    ]
    return expressions, captions, ObjectWords([expressions, captions])


def shows(index, text):
    """Whether an image shows what a phrase without a relation names, by its scene."""
    words = {*text.split()} - {"a", "an", "the", "object"}
    return any(
        words <= {thing.size, thing.material, thing.color, thing.noun}
        for thing in RECIPE.scene("train", index).things
    )


def test_no_record_no_object_and_no_word():
    words = ObjectWords([])
    record = named(0, "a star", [], [])
    assert not words.is_absent(record, LonePhrase("a star", (0, 6)))
    assert len(AbsentPhrases([], words, chance=0.5)) == 0
    # Two objects are too few to say that anything excludes anything.
    few = [named(0, "a star", [(0, 6)], [[0]]), named(1, "a ring", [(0, 6)], [[0]])]
    drawn = AbsentPhrases(few, ObjectWords([few]), chance=1.0)
    assert [drawn[0], drawn[1]] == few
    assert phrases_of(record) == []


def test_what_excludes_an_object(scenes):
    star, ring = (
        dataclasses.replace(named(0, text, [(0, len(text))], [[box]]), images=("new.jpg",))
        for box, text in enumerate(("a red star", "a blue ring"))
    )
    words = ObjectWords([*scenes[:2], [star, ring]])
    for text, head, absent in (
        ("a ring", "a ring", False),
        ("a red star", "a red star", False),
        ("the small star", "the small star", False),  # nobody said how large it is
        ("a heart", "a heart", True),
        ("a green star", "a green star", True),
        ("a blue star", "a blue star", True),  # both words are there, on two objects
        ("the star left of the ring", "the star", False),
        ("the star left of the heart", "the star", True),
        ("the heart left of the ring", "the heart", True),
        ("a dragon", "a dragon", False),  # a word that no object has
    ):
        assert words.is_absent(star, LonePhrase(text, (0, len(head)))) is absent, text
    other = dataclasses.replace(star, images=("other.jpg",))
    assert not words.is_absent(other, LonePhrase("a heart", (0, 7)))


def test_absent_phrases_are_absent(scenes):
    expressions, captions, words = scenes
    for records in (expressions, captions):
        drawn = AbsentPhrases(records, words, chance=1.0)
        found = [(record, drawn[i]) for i, record in enumerate(records[::3])]
        found = [(records[3 * i], drawn[3 * i]) for i in range(len(found))]
        asked = [(old, new) for old, new in found if new is not old]
        assert len(asked) > 0.9 * len(found)
        judged = 0
        for old, new in asked:
            assert new.images == old.images and new.boxes_xyxy == () == new.char_spans
            (((start, end),),) = new.label_spans
            assert new.labels == (new.text[start:end],)
            if " of " not in new.text and "above" not in new.text and "below" not in new.text:
                judged += 1
                assert not shows(int(new.images[0][:-4]), new.text), new.text
        assert judged > 50


def test_draws_depend_on_seed_epoch_record_and_number_alone(scenes):
    expressions, _, words = scenes

    def texts(epoch=0, **options):
        drawn = AbsentPhrases(expressions, words, chance=0.5, **options)
        return [record_in_epoch(drawn, epoch, index).text for index in range(200)]

    assert texts() == texts()
    given = [record.text for record in expressions[:200]]
    changed = sum(a != b for a, b in zip(texts(), given, strict=True)) / 200
    assert 0.35 < changed < 0.65
    others = [texts(epoch=1), texts(seed=1), texts(number=1)]
    assert all(other != texts() for other in others)
    assert len({tuple(other) for other in others}) == 3
    everywhere = AbsentPhrases(expressions, words, chance=0.0)
    assert [everywhere[i] for i in range(50)] == expressions[:50]


def test_the_phrase_with_most_words_of_the_image_is_taken(scenes):
    expressions, captions, words = scenes
    records = [*expressions, *captions]
    taken = [absent_phrase(records, r, words, Rng(0, 1, i)) for i, r in enumerate(captions[:150])]
    shared = [
        words.shared_words(record, phrase)
        for record, phrase in zip(captions, taken, strict=False)
        if phrase is not None
    ]
    assert sum(count > 0 for count in shared) > 0.8 * len(shared)


def test_the_data_stays_the_same_data(scenes):
    expressions, captions, words = scenes
    drawn = AbsentPhrases(expressions, words, chance=0.5)
    assert fingerprint(drawn) == fingerprint(expressions)
    assert classes_of(ConcatRecords([drawn, captions])) == ()
