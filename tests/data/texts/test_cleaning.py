"""Texts as CLIP's published tokenizer cleans them."""

import pytest

from fiber.data.texts.cleaning import clean_text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        ("a plain text", "a plain text"),
        ("salt &amp; pepper", "salt & pepper"),
        ("&amp;lt;", "<"),
        # May be HTML.
        ("<b> &amp; </b>", "<b> &amp; </b>"),
        ("&lt;b&gt; &amp;\n<&amp;", "<b> &\n<&amp;"),
        ("&nosuch; &", "&nosuch; &"),
        ("the dog\u2019s \u201cball\u201d", 'the dog\'s "ball"'),
        ("\ufb01ne \uff21\u3000b", "fine A b"),
        ("\u01c6 \u0133", "d\u017e ij"),
        ("a\x00b\ufeffc\td", "abc\td"),
        ("\u0149 \ufb05 &EACUTE; &NOSUCH;", "'n \u017ft \xc9 &NOSUCH;"),
        ("a \x96 b\x1b[31;1mc", "a \u2013 bc"),
        # Left to the tokenizer, which normalizes to NFC.
        ("cafe\u0301 \u00bd", "cafe\u0301 \u00bd"),
    ],
)
def test_cleaned_texts(text, cleaned):
    assert clean_text(text).text == cleaned


def test_spans_refer_to_the_text_as_given():
    text = "\x00x &amp;amp; \ufb01\u2019"
    cleaned = clean_text(text)
    assert cleaned.text == "x & fi'"
    spans = {each: cleaned.original_span((n, n + 1)) for n, each in enumerate(cleaned.text)}
    assert text[slice(*spans["x"])] == "x"
    assert text[slice(*spans["&"])] == "&amp;amp;"
    assert text[slice(*spans["f"])] == text[slice(*spans["i"])] == "\ufb01"
    assert cleaned.original_span((2, 7)) == (3, len(text))
    assert cleaned.original_span((0, 0)) == (0, 0)
