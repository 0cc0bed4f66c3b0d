"""Where a reader's characters begin and end, and spans that do not keep to that."""

import pytest

from fiber.data.char_spans import check_span, splits_character, whole_characters

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
WAVE = "\U0001f44b\U0001f3fd"
FLAGS = "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7"
SCOTLAND = "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbsct") + ("\U000e007f")
HEART = "\u2764\ufe0f"
ACCENTS = "e\u0301\u0323"
SYLLABLE = "\u1112\u1161\u11ab"


def test_no_text():
    assert not splits_character("", 0)
    assert whole_characters("", (0, 0)) == (0, 0)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("a b", set()),
        ("a\r\nb", {2}),
        (ACCENTS, {1, 2}),
        # A letter with its accent as one code point is whole.
        ("\u00e9a", set()),
        (FAMILY, {1, 2, 3, 4}),
        (f"a{WAVE}b", {2}),
        ("\U0001f44b\U0001f3fb\U0001f44b\U0001f3ff", {1, 3}),
        (FLAGS, {1, 3}),
        (f"x{FLAGS}", {2, 4}),
        (SCOTLAND, set(range(1, 7))),
        (HEART, {1}),
        ("\U0001f436\U0001f431", set()),
        (SYLLABLE, {1, 2}),
        # A whole syllable takes a third part only where it has none.
        ("\uac00\u11a8\uac01\u1161", {1}),
        ("\u0928\u093e", {1}),
        # A joiner between letters joins no emoji.
        ("a\u200db", {1}),
    ],
    ids=ascii,
)
def test_places_inside_a_character(text, inside):
    assert {place for place in range(len(text) + 1) if splits_character(text, place)} == inside


def test_spans_are_widened_to_whole_characters():
    text = f"{FAMILY} dog {ACCENTS}"
    assert whole_characters(text, (2, 8)) == (0, 8)
    assert whole_characters(text, (6, len(text) - 1)) == (6, len(text))
    assert whole_characters(text, (6, 9)) == (6, 9)
    # What lies outside is for others to find.
    assert whole_characters(text, (-3, 99)) == (-3, 99)


def test_good_spans():
    caption = f"a {WAVE} dog"
    assert check_span(caption, (2, 4), 0) == (2, 4)
    assert check_span(caption, [5, 8], 0) == (5, 8)
    assert check_span(caption, (0, len(caption)), 0) == (0, 8)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 9), r"span 4.*\[0.*9\).*caption 'a .* dog'.*0.*8"),
        ((-1, 2), r"span 4.*\[-1.*2\).*0"),
        ((5, 2), r"span 4.*\[5.*2\).*0"),
        ((3, 3), r"span 4.*\[3.*3\).*0"),
        ((3, 4), r"span 4.*\[3.*4\).*\[2.*4\)"),
        ((0, 3), r"span 4.*\[0.*3\).*\[0.*4\)"),
        ((1, 2), r"span 4.*\[1.*2\)"),
    ],
)
def test_bad_spans_are_named_with_their_caption(span, message):
    with pytest.raises(ValueError, match=message):
        check_span(f"a {WAVE} dog", span, 4)


@pytest.mark.parametrize("span", [5, "ab", (1,), (1, 2, 3), (1.0, 2), (True, 2), None])
def test_what_is_no_span(span):
    with pytest.raises(TypeError, match="span 0"):
        check_span("a dog", span, 0)
