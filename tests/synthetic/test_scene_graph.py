"""Scene graphs: places, frequencies, and what is held out of training, in pictures and texts."""

import collections
import math
import re

from fiber.synthetic.scene_graph import (
    COLORS,
    MATERIALS,
    SHAPES,
    SIZES,
    SPLITS,
    shapes_world,
    shows_held_out_fact,
)
from tests.synthetic.scene_reader import WORDS, matches, texts_of


def test_things_do_not_overlap_and_stay_inside(described):
    for split in SPLITS:
        for _, scene in described[split]:
            for index, thing in enumerate(scene.things):
                assert thing.radius < thing.x < 96 - thing.radius
                assert thing.radius < thing.y < 96 - thing.radius
                for other in scene.things[:index]:
                    apart = math.hypot(thing.x - other.x, thing.y - other.y)
                    assert apart > thing.radius + other.radius


def test_all_words_are_as_frequent(described):
    things = [thing for _, scene in described["train"] for thing in scene.things]
    for kind, values in WORDS.items():
        counts = collections.Counter(getattr(thing, kind) for thing in things)
        assert set(counts) == set(values)
        for count in counts.values():
            # Things of one picture are not independent, hence not 4 but 6 standard deviations.
            share, expected = count / len(things), 1 / len(values)
            assert abs(share - expected) < 6 * math.sqrt(expected / len(things))


def test_training_and_val_show_and_say_nothing_that_is_held_out(described):
    world = shapes_world(0)
    pairs = [f"{color} {noun}" for color, noun in world.held_out_pairs]
    bad_pair = re.compile("|".join(f"\\b{pair}" for pair in pairs))
    noun = "|".join(SHAPES)
    words = "|".join((*SIZES, *MATERIALS, *COLORS))
    related = re.compile(
        rf"({noun}) (left of|right of|above|below) (?:the|a) (?:(?:{words}) )*({noun})"
    )
    num_related = 0
    for split in ("train", "val"):
        for picture, scene in described[split]:
            assert not any(world.is_held_out(thing) for thing in scene.things)
            assert not shows_held_out_fact(world, scene.things)
            for text in texts_of(picture):
                assert not bad_pair.search(text), text
                for fact in related.findall(text):
                    num_related += 1
                    assert not world.is_held_out_fact(*fact), text
    assert num_related > 1000


def test_val_and_train_have_no_picture_in_common(described):
    assert not {repr(s) for _, s in described["train"]} & {repr(s) for _, s in described["val"]}


def test_novel_pictures_show_what_is_held_out_and_texts_ask_about_it(described):
    world = shapes_world(0)
    pairs = [f"{color} {noun}" for color, noun in world.held_out_pairs]
    facts = collections.Counter()
    for picture, scene in described["novel"]:
        held_out = [i for i, thing in enumerate(scene.things) if world.is_held_out(thing)]
        assert held_out
        assert all(any(pair in caption.text for pair in pairs) for caption in picture.captions[:1])
        assert all(expression.things[0][0] in held_out for expression in picture.expressions)
        for question in picture.questions:
            if question.group in ("color", "shape", "size", "material"):
                phrase = re.search(r"is (the .*)\?", question.text).group(1)
                (target,) = [i for i, t in enumerate(scene.things) if matches(t, phrase)]
                assert target in held_out
            elif question.group == "exists":
                assert question.text.removeprefix("is there a ").removesuffix("?") in pairs
            elif scene.asked_fact is not None:
                facts[question.answer] += 1
        assert all(any(p in s.text for p in pairs) for s in picture.statements)
    # Held-out facts are asked about, and are as often true as not.
    assert facts["yes"] > 100 and facts["no"] > 100
    both = facts["yes"] + facts["no"]
    assert abs(facts["yes"] - both / 2) < 4 * math.sqrt(both) / 2
