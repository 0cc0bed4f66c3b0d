"""Captions and referring expressions: true, unique, minimal."""

import collections

from fiber.synthetic.scene_graph import SHAPES, SPLITS, relation
from tests.synthetic.scene_reader import RELATION, matches, meant


def test_captions_are_true_and_their_phrases_name_all_that_fits(described):
    for split in SPLITS:
        for picture, scene in described[split]:
            for caption in picture.captions:
                named = []
                for (start, end), indices in zip(caption.spans, caption.things, strict=True):
                    phrase = caption.text[start:end]
                    fitting = tuple(i for i, t in enumerate(scene.things) if matches(t, phrase))
                    assert fitting == indices, (caption, scene)
                    named += indices
                if caption.group == "list":
                    assert sorted(named) == list(range(len(scene.things)))
                    continue
                first, found, second = RELATION.split(caption.text.rpartition(", and ")[2])
                (one,) = [t for t in scene.things if matches(t, first)]
                (two,) = [t for t in scene.things if matches(t, second)]
                assert relation(one, two) == found


def test_referring_expressions_are_unique_and_minimal(described):
    groups = collections.Counter()
    for split in SPLITS:
        for picture, scene in described[split]:
            for expression in picture.expressions:
                groups[expression.group] += 1
                target = scene.things[expression.things[0][0]]
                assert meant(scene.things, expression.text) == [target]
                head, *rest = RELATION.split(expression.text)
                assert expression.text[slice(*expression.spans[0])] == head
                if rest:
                    assert len([t for t in scene.things if matches(t, head)]) > 1
                tail = f" {rest[0]} {rest[1]}" if rest else ""
                words = [word for word in head.split()[1:] if word not in ("object", *SHAPES)]
                noun = head.split()[-1]
                for word in words:
                    left = [w for w in words if w != word]
                    shorter = " ".join(["the", *left, noun]) + tail
                    assert len(meant(scene.things, shorter)) > 1, (expression, scene)
                if not rest and expression.group != "composed":
                    sufficient = getattr(target, expression.group)
                    rivals = [getattr(thing, expression.group) for thing in scene.things]
                    assert rivals.count(sufficient) == 1
                    assert sufficient in head or expression.group == "noun"
    assert min(groups[group] for group in ("composed", "relation")) > 300
    assert min(groups[group] for group in ("color", "noun", "size", "material")) > 30, groups
