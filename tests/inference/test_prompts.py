"""What is asked for, from the user's words to the prompts of every picture."""

import warnings

import numpy as np
import pytest

from fiber.data import ClassName
from fiber.inference import noun_phrases as phrases_module
from fiber.inference.prompts import detection_prompts, grounding_prompts

WAVE = "\U0001f44b\U0001f3fd"


def detection(fine, classes, count=1, per_prompt=None):
    return detection_prompts(classes, count, fine._inputs, per_prompt)[0]


def grounding(fine, phrases=None, caption=None, spans=None, count=1):
    return grounding_prompts(phrases, caption, spans, count, fine._inputs)


def same(found, other):
    assert found.labels == other.labels
    np.testing.assert_allclose(found.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
    np.testing.assert_allclose(found.scores, other.scores, atol=1e-5)


class TestClasses:
    def test_no_picture(self, fine):
        assert detection(fine, ["dog"], count=0) == []
        assert detection(fine, [], count=0) == []

    @pytest.mark.parametrize("classes", ["puffin", ["puffin"], [[" puffin "]], ("puffin",)])
    def test_one_class_in_any_form(self, fine, classes):
        ((prompt,),) = detection(fine, classes)
        assert (prompt.text, prompt.labels) == ("puffin", ("puffin",))

    def test_words_around_names(self, fine):
        classes = [{"name": "red", "prefix": "a "}, ClassName("star", suffix=" ring"), "dog"]
        for given in (classes, [classes]):
            ((prompt,),) = detection(fine, given)
            assert prompt.text == "a red. star ring. dog"
            assert prompt.labels == ("red", "star", "dog")
        ((prompt,),) = detection(fine, ClassName("star", suffix=" ring"))
        assert prompt.text == "star ring"

    def test_a_list_for_each_picture(self, fine):
        first, second = detection(fine, [["dog"], [ClassName("cat")]], count=2)
        assert (first[0].labels, second[0].labels) == (("dog",), ("cat",))

    def test_blocks(self, fine):
        (prompts,) = detection(fine, list("abcdef"), per_prompt=2)
        assert [prompt.text for prompt in prompts] == ["a. b", "c. d", "e. f"]

    def test_names_that_differ_in_capitals_or_in_what_cleaning_drops_are_different(self, fine):
        names = ["Turkey", "turkey", "bow_(weapon)", "bow_(tie)"]
        (prompts,) = detection(fine, names)
        assert [label for prompt in prompts for label in prompt.labels] == names

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ([], "expected one or more classes, got none"),
            ([[]], r"list 0.*\[\]"),
            ("", r"class 0.*empty"),
            (["dog", " "], r"class 1.*empty"),
            (
                ["dog", "cat", " dog "],
                r"duplicate class 'dog' \(classes 0 and 2\)",
            ),
            ([["dog"], ["cat"]], r"2.*1 image"),
            ([["dog", "dog"]], r"duplicate class 'dog' \(classes 0 and 1\)"),
            ([{"title": "dog"}], r"class 0.*keys 'title'"),
        ],
    )
    def test_bad_lists(self, fine, classes, message):
        with pytest.raises(ValueError, match=message):
            detection(fine, classes)

    @pytest.mark.parametrize("classes", [3, None, [[3]]])
    def test_what_is_no_list(self, fine, classes):
        with pytest.raises(TypeError, match=r"class.* str"):
            detection(fine, classes)

    def test_an_empty_list_among_others(self, fine):
        with pytest.raises(ValueError, match=r"list 1.*\[\]"):
            detection(fine, [["dog"], []], count=2)


class TestSpans:
    def test_no_picture(self, fine):
        assert grounding(fine, caption="a dog", spans=[(0, 5)], count=0) == []

    def test_spans_of_one_caption(self, fine):
        prompts = grounding(fine, caption=" a dog, a cat", spans=[(1, 6), [8, 13]], count=2)
        assert prompts[0] == prompts[1]
        ((prompt,), _) = prompts
        # The caption is not stripped, or the spans would be those of another text.
        assert prompt.text == " a dog, a cat"
        assert prompt.labels == ("a dog", "a cat")
        assert prompt.spans == (((1, 6),), ((8, 13),))

    def test_a_phrase_in_several_parts(self, fine):
        ((prompt,),) = grounding(fine, caption="red and blue dogs", spans=[[(0, 3), (13, 17)]])
        assert prompt.labels == ("red dogs",)
        assert prompt.spans == (((0, 3), (13, 17)),)

    def test_spans_for_each_caption(self, fine):
        first, second = grounding(
            fine, caption=["a dog", "the cat"], spans=[[(2, 5)], [(4, 7), (0, 7)]], count=2
        )
        assert first[0].labels == ("dog",)
        assert second[0].labels == ("cat", "the cat")

    def test_a_span_finds_what_its_phrase_finds(self, fine, pictures):
        caption = "a dog on a red circle"
        by_phrase = fine.ground(pictures[1], ["red circle"], caption=caption)
        same(fine.ground(pictures[1], caption=caption, spans=[(11, 21)]), by_phrase)

    @pytest.mark.parametrize(
        ("caption", "spans", "message"),
        [
            ("a dog", [(0, 6)], r"span 0.*\[0.*6\).*caption 'a dog'"),
            ("a dog", [(0, 5), (5, 2)], r"span 1.*\[5.*2\).*caption 'a dog'"),
            (f"{WAVE} dog", [(1, 6)], r"span 0.*inside"),
            ("a dog", [[(0, 1), (2, 9)]], r"span 0, \[2, 9\)"),
            ("a dog", [], r"spans.*caption 'a dog'"),
            ("a dog", [[]], r"span 0.*\[\]"),
            ("a dog", "0-5", r"spans.*caption 'a dog'"),
            (["a dog"], [(0, 5), (0, 1)], r"spans.*1 captions.*2"),
            (["a dog"], 5, r"spans.*1 captions"),
            (" ", [(0, 1)], r"caption 0.*empty"),
        ],
    )
    def test_bad_spans(self, fine, caption, spans, message):
        with pytest.raises(ValueError, match=message):
            grounding(fine, caption=caption, spans=spans)

    def test_what_is_no_span(self, fine):
        with pytest.raises(TypeError, match=r"span 0.*3"):
            grounding(fine, caption="a dog", spans=[3])


class TestCuts:
    def test_a_phrase_that_does_not_occur_is_named(self, fine):
        with pytest.raises(ValueError, match=r"phrase 1.*'cat'.*'a dog'"):
            grounding(fine, ["dog", "cat"], caption="a dog")

    def test_phrases_behind_the_cut_are_counted(self, fine):
        caption = "a dog, " + "a red star, " * 3 + "a cat, a ring"
        message = r"'a dog, .*16 tokens: 2 of 3 phrases .* 'a cat'"
        with pytest.warns(UserWarning, match=message) as told:
            ((prompt,),) = grounding(fine, ["a dog", "a cat", "a ring"], caption=caption)
        assert len(told) == 1 and len(prompt.labels) == 3
        ends = len(caption)
        with pytest.warns(UserWarning, match=r"1.*1 phrases"):
            grounding(fine, caption=caption, spans=[(ends - 4, ends)])

    def test_a_text_whose_phrases_are_all_read_says_so(self, fine):
        with pytest.warns(UserWarning, match=r"16 tokens: no phrase"):
            grounding(fine, ["a dog"], caption="a dog " * 20)

    def test_a_phrase_that_is_cut_in_two_says_so(self, fine):
        caption = "a dog " * 20
        with pytest.warns(UserWarning, match="16 tokens"):
            grounding(fine, caption=caption, spans=[(0, len(caption) - 1)])

    def test_a_thousand_words(self, fine, pictures):
        words = " ".join(["a dog"] * 500)
        with pytest.warns(UserWarning, match="16 tokens") as told:
            found = fine.ground(pictures[:2], words)
        assert len(told) == 1 and [each.labels for each in found] == [[words]] * 2
        assert told[0].filename == __file__
        with pytest.warns(UserWarning, match=r"4\d\d.*500 phrases"):
            found = fine.ground(pictures[0], ["a dog"] * 500, caption=words)
        assert 0 < len(found) < 20
        # The last of them stands behind the cut: it has no boxes, and the warning said so.
        with pytest.warns(UserWarning, match=r"1.*1 phrases"):
            assert len(fine.ground(pictures[0], caption=words, spans=[(2_990, 2_993)])) == 0


class TestBatches:
    def test_every_picture_of_a_batch_has_its_own_prompts(self, fine, pictures):
        captions = ["a dog on a cup", "the red circle", "a star"]
        spans = [[(2, 5), (11, 14)], [(4, 14)], [(0, 6)]]
        some = [pictures[0], pictures[4], pictures[1]]
        together = fine.ground(some, caption=captions, spans=spans)
        for picture, caption, own, found in zip(some, captions, spans, together, strict=True):
            same(found, fine.ground(picture, caption=caption, spans=own))
        classes = [["dog"], ["circle", "star", "square"], [ClassName("cup", "red ")]]
        together = fine.detect(some, classes, score_threshold=0)
        for picture, own, found in zip(some, classes, together, strict=True):
            same(found, fine.detect(picture, own, score_threshold=0))

    def test_passes_are_counted(self, fine, pictures):
        before = fine.passes.images, fine.passes.encoder_passes, fine.passes.pairs
        # Three sizes; five prompts of one class each.
        fine.detect(
            [pictures[0], pictures[4], pictures[1], pictures[2]],
            list("abcde"),
            classes_per_prompt=1,
        )
        after = fine.passes.images, fine.passes.encoder_passes, fine.passes.pairs
        sizes = {tuple(batch.images.shape) for batch in fine._inputs.images(pictures[:3])}
        assert [b - a for a, b in zip(before, after, strict=True)] == [4, len(sizes), 20]

    def test_blocks_are_found_as_if_alone(self, fine, pictures):
        names = ["dog", "cat", "star", "ring", "cup"]
        found = fine.detect(pictures[0], names, classes_per_prompt=2, score_threshold=0)
        whole = fine.detect(pictures[0], ["star", "ring"], score_threshold=0)
        block = (found.indices == 2) | (found.indices == 3)
        count = int(block.sum())
        assert count > 0
        np.testing.assert_allclose(found.scores[block], whole.scores[:count], atol=1e-5)


def test_the_rule_of_thumb_is_told_once(fine, monkeypatch):
    monkeypatch.setattr(phrases_module, "english_parser", lambda: None)
    phrases_module._warn_heuristic.cache_clear()
    with pytest.warns(UserWarning, match="found with a heuristic") as told:
        grounding(fine, caption="a dog")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grounding(fine, caption="a cat")
        grounding(fine, ["dog"], caption="a dog")
