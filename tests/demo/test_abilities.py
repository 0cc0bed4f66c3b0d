"""What counts as learned, and the sentences about it."""

import pytest

from fiber.demo import abilities
from fiber.demo.abilities import (
    EXPRESSIONS,
    LEARNED,
    NOT_LEARNED,
    PAIRS,
    PARTLY,
    QUESTIONS,
    Ability,
    describe,
    kind_name,
    percent,
    sorted_groups,
    with_verdict,
)


def ability(**changes):
    values = {
        "task": QUESTIONS,
        "group": "color",
        "name": "color",
        "split": "val",
        "count": 100,
        "model": 0.9,
        "chance": 0.1,
        "blind": 0.5,
    }
    return Ability(**{**values, **changes})


class TestVerdict:
    def test_nothing_was_asked(self):
        assert ability(count=0, model=0.5).verdict == NOT_LEARNED

    def test_the_margin_is_three_standard_errors(self):
        # Of 100 questions at 50%, the standard error is 5%.
        assert ability(model=0.6).margin == pytest.approx(0.15)
        assert ability(model=0.65).verdict == NOT_LEARNED
        assert ability(model=0.66).verdict == PARTLY
        assert ability(model=0.66, count=50).verdict == NOT_LEARNED

    def test_the_better_baseline_counts(self):
        assert ability(model=0.6, chance=0.55, blind=0.1).guess == 0.55
        assert ability(model=0.6, chance=0.1, blind=0.55).verdict == NOT_LEARNED

    def test_half_of_the_way_is_learned(self):
        assert ability(model=0.74).verdict == PARTLY
        assert ability(model=0.75).verdict == LEARNED
        # By the percents that the page shows: 74% and 75%, for a guess of 49% or 50%.
        assert ability(model=0.7449, blind=0.49, count=1000).verdict == PARTLY
        assert ability(model=0.7451, blind=0.4949, count=1000).verdict == LEARNED
        assert ability(model=0.7451, blind=0.4951, count=1000).verdict == LEARNED

    @pytest.mark.parametrize(("model", "guess"), [(1.0, 0.5), (0.01, 0.0)])
    def test_few_records_prove_nothing(self, model, guess):
        """The larger standard error counts, since that of 0% and 100% is 0."""
        assert ability(model=model, chance=guess, blind=guess, count=5).verdict == NOT_LEARNED

    def test_below_the_guess(self):
        assert ability(model=0.0, blind=1.0).verdict == NOT_LEARNED


class TestSentences:
    def test_nothing(self):
        assert describe([]) == []

    def test_every_number_is_in_it(self):
        found = [
            [ability(), ability(split="novel", model=0.8, blind=0.1)],
            [ability(group="size", name="size", model=0.934, blind=0.514)],
            [ability(task=EXPRESSIONS, group="relation", name="relation")],
            [ability(task=PAIRS, group="matching", name="tell whether a caption fits")],
        ]
        assert describe(found) == [
            "find the object that a phrase names by its relation (90%; guess 50%)",
            "answer questions about color (90%, 80%; guess 50%, 10%) and size (93%; guess 51%)",
            "tell whether a caption fits (90%; guess 50%)",
        ]

    @pytest.mark.parametrize(("count", "few"), [(29, "; only 29 asked"), (30, "")])
    def test_few_predictions_are_named(self, count, few):
        found = [[ability(), ability(split="novel", count=count)]]
        assert describe(found) == [f"answer questions about color (90%, 90%; guess 50%, 50%{few})"]

    def test_three_names_are_joined_with_commas(self):
        assert describe([[ability(name=name)] for name in "abc"]) == [
            "answer questions about a (90%; guess 50%), b (90%; guess 50%) and c (90%; guess 50%)"
        ]

    def test_the_worse_split_counts(self):
        weak, novel = ability(split="novel", model=0.5), ability(split="novel")
        partly = ability(split="novel", model=0.7)
        size = ability(group="size", model=0.5)
        assert with_verdict([ability(), novel], LEARNED) == [[ability(), novel]]
        assert with_verdict([ability(), weak, size], NOT_LEARNED) == [[ability(), weak], [size]]
        assert with_verdict([ability(), partly], PARTLY) == [[ability(), partly]]
        assert with_verdict([ability(), weak, size], LEARNED) == []

    def test_what_is_learned_on_known_combinations_only(self):
        novel = ability(split="novel", model=0.5)
        assert abilities.is_seen_only([ability(), novel])
        assert abilities.is_seen_only([ability(model=0.7), novel])
        assert not abilities.is_seen_only([ability(), ability(split="novel")])
        assert not abilities.is_seen_only([ability(model=0.5), novel])
        assert not abilities.is_seen_only([ability()])
        assert not abilities.is_seen_only([novel])

    def test_percent(self):
        assert [percent(value) for value in (0, 0.0049, 0.005, 0.999, 1)] == [
            *("0%", "0%", "1%", "99%", "100%")
        ]


class TestNames:
    def test_material_is_shown_as_pattern(self):
        assert kind_name(EXPRESSIONS, "material", "scenes") == "pattern"
        assert kind_name(QUESTIONS, "material", "scenes") == "pattern"

    def test_a_noun_is_a_shape_in_scenes_only(self):
        assert kind_name(EXPRESSIONS, "noun", "scenes") == "shape"
        assert kind_name(EXPRESSIONS, "noun", "stamps") == "name"
        assert kind_name(QUESTIONS, "shape", "stamps") == "name"

    def test_an_unknown_group_keeps_its_name(self):
        assert kind_name(QUESTIONS, "weight", "scenes") == "weight"

    def test_order(self):
        assert sorted_groups(QUESTIONS, []) == []
        given = ["weight", "count", "", "age", "color"]
        assert sorted_groups(QUESTIONS, given) == ["color", "count", "age", "weight"]

    def test_every_task_has_a_start_of_its_sentence(self):
        assert set(abilities.KINDS) == set(abilities._STARTS)
