"""BLEU-4, ROUGE-L and CIDEr-D on captions whose n-grams are counted by hand."""

import math

import pytest

from fiber.metrics.captions import bleu, caption_scores, caption_tokens, rouge_l


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", []),
        ("...", []),
        ("A Man's dog isn't here.", ["a", "man", "'s", "dog", "is", "n't", "here"]),
        ("two dogs' bowls", ["two", "dogs", "bowls"]),
        (
            "they\u2019re 3.5 m, 1,000 ft - or 5:30",
            ["they", "'re", "3.5", "m", "1,000", "ft", "or", "5:30"],
        ),
        ('a "well-known" man/woman; yes!', ["a", "well-known", "man/woman", "yes"]),
        ("you shouldn't've", ["you", "should", "n't", "'ve"]),
        ("one cannot, they're gonna", ["one", "can", "not", "they", "'re", "gon", "na"]),
        (
            "a cat (black) & dog_house",
            ["a", "cat", "-lrb-", "black", "-rrb-", "&", "dog", "_", "house"],
        ),
        ("at 7 o'clock\nsharp -- now", ["at", "7", "o'clock", "sharp", "now"]),
    ],
)
def test_tokens(caption, tokens):
    assert caption_tokens(caption) == tokens


def test_same_words_score_one():
    scores = caption_scores(["A red circle is here."], [["a red circle is here", "nothing"]])
    # Of one image alone no word is rare.
    expected = {"bleu_4": 1.0, "rouge_l": 1.0, "cider_d": 0.0}
    assert scores == pytest.approx(expected, abs=1e-8)
    both = caption_scores(["A red circle", "two dogs"], [["a red circle"], ["two dogs."]])
    # "a red circle": n-grams of 1 to 3 words agree, of 4 there is none; "two dogs": of 1 and 2.
    assert both["cider_d"] == pytest.approx(10 * (3 / 4 + 2 / 4) / 2)


def test_cider_compares_tokens_and_counts_them_in_the_references():
    """A word of all three images weighs log 1 = 0, one of two log 1.5, one of one log 3."""
    references = [["A dog's ball."], ["a dog", "a hat"], ["a cat"]]
    found = caption_scores(["a DOG's ball!", "a dog", "a dog"], references)["cider_d"]
    # Four tokens, "a dog 's ball", as in the reference.
    first = 10.0
    # "a dog" is one of two references: 1- and 2-grams agree; with "a hat" only "a", weighing 0.
    second = 10 * 2 / 4 / 2
    assert found == pytest.approx((first + second + 0.0) / 3)


def test_bleu_by_hand():
    """Precisions 4/5, 3/4, 2/3 and 1/2: the last word differs. Lengths are equal."""
    found = caption_scores(["a b c d x"], [["a b c d e"]])["bleu_4"]
    assert found == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-8)


def test_bleu_counts_over_all_captions_before_dividing():
    """8 of 9 words, 6 of 7 pairs, 4 of 5 triples, 2 of 3 fours; 9 words against 9."""
    found = bleu([list("abcd"), list("abcdx")], [[list("abcd")], [list("abcde")]])
    assert found == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25, abs=1e-8)


def test_bleu_clips_by_the_reference_with_the_most():
    """Of five times "the", two stand in one reference at most."""
    found = bleu([["the"] * 5], [[["the", "cat", "the"], ["the", "mat", "x"]]], order=1)
    assert found == pytest.approx(2 / 5, abs=1e-8)


@pytest.mark.parametrize(
    ("length", "references", "compared"),
    # Four words against two and seven: two is closer. Against three and five: the shorter one.
    [(4, (2, 7), 2), (4, (3, 5), 3), (4, (5, 9), 5), (2, (8, 7), 7)],
)
def test_short_captions_are_punished_by_the_closest_length(length, references, compared):
    found = bleu([["a"] * length], [[["a"] * n for n in references]], order=1)
    precision = min(length, max(references)) / length
    assert found == pytest.approx(precision * math.exp(min(0, 1 - compared / length)), abs=1e-8)


def test_bleu_without_a_match_of_four_words_is_nearly_nothing():
    assert 0 < caption_scores(["a b c x"], [["a b c d"]])["bleu_4"] < 1e-3


def test_rouge_by_hand():
    """The longest common subsequence of "a b c d" and "a x c e" is "a c"."""
    precision = recall = 2 / 4
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(list("abcd"), [list("axce")]) == pytest.approx(expected)


def test_rouge_takes_the_best_precision_and_the_best_recall():
    """Precision 2 / 3 comes from the first reference, recall 1 / 1 from the second."""
    found = rouge_l(list("abc"), [list("abxyz"), list("c")])
    assert found == pytest.approx(2.44 * (2 / 3) / (1 + 1.44 * 2 / 3))


def test_nothing_said_scores_nothing():
    scores = caption_scores(["", "!"], [["a dog"], ["a cat"]])
    assert scores == {"bleu_4": 0.0, "rouge_l": 0.0, "cider_d": 0.0}


def test_no_images_is_nan():
    assert all(math.isnan(value) for value in caption_scores([], []).values())


def test_a_reference_of_no_words():
    assert caption_scores(["a dog"], [["..."]])["rouge_l"] == 0.0


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [], "got 1 captions for 0 images"),
        (["a", "b"], [["a"], []], r"references of image 1 are \[\]; expected one or more"),
        (["a"], ["a dog"], "references of image 0 are 'a dog'"),
    ],
)
def test_what_does_not_fit(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(candidates, references)
