"""Questions and statements: right, and no better answered by their words alone than by chance."""

import collections
import math

from fiber.data import sources
from fiber.synthetic.scene_graph import SPLITS
from tests.synthetic.scene_reader import answer, caption_holds, is_true


def test_answers_are_right(described):
    groups = collections.Counter()
    for split in SPLITS:
        for picture, scene in described[split]:
            for question in picture.questions:
                groups[question.group] += 1
                assert question.answer == answer(scene.things, question.text), (question, scene)
    names = {"color", "shape", "exists", "relation", "size", "material", "count"}
    assert set(groups) == names and min(groups.values()) > 200


def test_statements_are_right_and_have_both_truths(described):
    truths = collections.Counter()
    for split in SPLITS:
        for number, (picture, scene) in enumerate(described[split]):
            assert not picture.statements or number % 2 == 1
            left, right = described[split][number - 1][1].things, scene.things
            for statement in picture.statements:
                truths[statement.group, statement.truth] += 1
                assert statement.truth == is_true(statement.text, left, right), statement
    for group in ("both", "one", "side", "each", "more"):
        true, false = truths[group, True], truths[group, False]
        assert abs(true - false) < 4 * math.sqrt(true + false), group


def test_each_statement_is_as_often_true_as_false(scenes_folder):
    for split in SPLITS:
        truths = collections.defaultdict(collections.Counter)
        for record in sources.reasoning(scenes_folder, split):
            truths[record.text][record.truth] += 1
        assert truths
        assert all(counts[True] == counts[False] for counts in truths.values())


def test_the_other_pair_of_a_statement_makes_it_the_opposite(described):
    unpaired = 0
    for split in SPLITS:
        for number, (picture, scene) in enumerate(described[split]):
            own = described[split][number - 1][1].things, scene.things
            for statement in picture.statements:
                unpaired += statement.opposite is None
                if statement.opposite is None:
                    continue
                places = [int(name[-10:-4]) for name in statement.opposite]
                # Both pictures exist where the statement is written, and the pair is another one.
                assert max(places) <= number and places != [number - 1, number]
                other = [described[split][place][1].things for place in places]
                assert is_true(statement.text, *other) != is_true(statement.text, *own)
    # What is left out: words that none of the pictures before shows, or all of them.
    assert unpaired < 0.15 * sum(len(p.statements) for s in SPLITS for p, _ in described[s])


def test_swapped_captions_have_the_same_words_and_belong_to_one_picture_each(described):
    kinds = collections.Counter()
    for split in SPLITS:
        for number, (picture, scene) in enumerate(described[split]):
            if picture.swapped_captions is None:
                continue
            first, second, kind = picture.swapped_captions
            kinds[split, kind] += 1
            assert first != second and sorted(first.split()) == sorted(second.split())
            pictures = described[split][number - 1][1].things, scene.things
            for caption, own, other in zip((first, second), pictures, pictures[::-1], strict=True):
                assert caption_holds(caption, own)
                assert not caption_holds(caption, other)
    assert len(kinds) == 6 and min(kinds.values()) > 50


def test_answers_are_balanced_for_each_question(described):
    """The most frequent answer of a string is no more frequent than chance would have it."""
    counts = collections.defaultdict(collections.Counter)
    possible = {"color": 7, "shape": 7, "size": 2, "material": 2, "count": 3, "exists": 2}
    for picture, _ in described["train"]:
        for question in picture.questions:
            group = question.group
            if group == "relation":
                group = "exists" if question.answer in ("yes", "no") else "relation"
            counts[group, question.text][question.answer] += 1
    checked = collections.Counter()
    for (group, text), answers in counts.items():
        total = sum(answers.values())
        if total < 40 or group == "relation":
            continue
        # The largest of k shares: a bound that holds for all strings together.
        chance = 1 / possible[group]
        bound = chance + 4 * math.sqrt(chance * (1 - chance) / total)
        assert max(answers.values()) / total < bound, (text, answers)
        checked[group] += 1
    assert all(checked[group] >= 3 for group in ("color", "shape", "size", "material")), checked


def prior_accuracy(described, split):
    """Accuracy of each question's most frequent answer in training, per group."""
    counts = collections.defaultdict(collections.Counter)
    for picture, _ in described["train"]:
        for question in picture.questions:
            counts[question.text][question.answer] += 1
            counts[question.group][question.answer] += 1
    hits, totals = collections.Counter(), collections.Counter()
    for picture, _ in described[split]:
        for question in picture.questions:
            seen = counts.get(question.text) or counts[question.group]
            hits[question.group] += seen.most_common(1)[0][0] == question.answer
            totals[question.group] += 1
    return {group: hits[group] / total for group, total in totals.items()}


def test_questions_alone_answer_no_better_than_chance(described):
    found = prior_accuracy(described, "val")
    chance = {"color": 1 / 7, "shape": 1 / 7, "exists": 1 / 2, "size": 1 / 2, "material": 1 / 2}
    for group, expected in {**chance, "count": 1 / 3}.items():
        assert abs(found[group] - expected) < 0.06, (group, found)
    # Half are yes/no, half have about eight answers.
    assert found["relation"] < 0.40
    novel = prior_accuracy(described, "novel")
    # Training never answers with the held-out colour or shape.
    assert novel["color"] < 0.05 and novel["shape"] < 0.06
    assert abs(novel["exists"] - 0.5) < 0.06
