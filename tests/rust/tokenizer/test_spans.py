"""Spans of characters: positive maps and words that change sides."""

import json

import numpy as np
import pytest

from fiber import _core
from tests.golden import FINE
from tests.parity.recorded_tokens import recorded_tokens


def test_nothing():
    assert _core.positive_map([], []).shape == (0, 0)
    assert _core.positive_map([(0, 0), (0, 0)], []).shape == (0, 2)
    assert np.asarray(_core.positive_map([(0, 0), (0, 3)], [[]])).tolist() == [[False, False]]
    assert _core.mirror_words("") == ("", [])


def test_tokens_that_overlap_are_positive():
    offsets = [(0, 0), (0, 3), (4, 7), (7, 9), (0, 0)]
    rows = np.asarray(_core.positive_map(offsets, [[(4, 8)], [(3, 4)], [(0, 1), (8, 9)]]))
    assert rows.dtype == bool
    assert [np.nonzero(row)[0].tolist() for row in rows] == [[2, 3], [], [1, 3]]


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left of the RIGHT cup", "Right of the LEFT cup"),
        ("the leftmost, right-hand one", "the rightmost, left-hand one"),
        ("leftover on the copyright page, bright", "leftover on the copyright page, bright"),
        ("é left ☕ right", "é right ☕ left"),
    ],
)
def test_words_change_sides(text, mirrored):
    assert _core.mirror_words(text) == (mirrored, [])
    assert _core.mirror_words(mirrored)[0] == text


def test_spans_move_with_their_words():
    text = "the left dog ☕ left of the right cat"
    spans = [(0, 12), (9, 12), (13, 14), (23, 36), (4, 8), (0, len(text))]
    mirrored, moved = _core.mirror_words(text, spans)
    assert mirrored == "the right dog ☕ right of the left cat"
    assert [mirrored[start:end] for start, end in moved] == [
        "the right dog",
        "dog",
        "☕",
        "the left cat",
        "right",
        mirrored,
    ]


def test_positive_maps_of_the_published_detector():
    tokenizer = recorded_tokens()
    # It gives one character's first token only, and nothing to a span that starts with three
    # spaces; here every token that shares a character with the span is positive.
    other_rule = {("☕", (7, 8)), ("    gaps", (11,))}
    compared = 0
    for case in json.loads((FINE / "data_text.json").read_text())["positive_map"]["cases"]:
        if "input_ids" not in case:
            continue
        ids, offsets = tokenizer.encode(case["caption"], max_tokens=256)
        assert ids == case["input_ids"]
        spans = [[tuple(span) for span in spans] for spans in case["spans"]]
        rows = np.asarray(_core.positive_map(offsets, spans))
        for row, (first, *_), expected in zip(rows, spans, case["positive_tokens"], strict=True):
            tokens = np.nonzero(row)[0].tolist()
            if (case["caption"][slice(*first)], tuple(tokens)) not in other_rule:
                assert tokens == expected
                compared += 1
    assert compared > 25
