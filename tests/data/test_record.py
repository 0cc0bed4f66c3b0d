"""Records that somebody writes in Python, and what is said of broken ones."""

from __future__ import annotations

import math
import re

import pytest

from fiber.data.record import Record

BOX = (1.0, 2.0, 3.0, 4.0)


def record(**values: object) -> Record:
    return Record(key="r/1", images=("a.png",), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("a.jpg", r"record 'a': images.*(picture|image)s"),
        (b"\xff", r"record 'a': images.*bytes"),
        (("a.jpg", 5), "record 'a': (picture|image) 1"),
    ],
)
def test_pictures_of_other_types_are_named(images, said):
    with pytest.raises(TypeError, match=f"^{said}"):
        Record(key="a", images=images, text="x")


def test_texts_that_are_none_or_half_a_character():
    with pytest.raises(TypeError, match=r"^record 'a': text is None, of type NoneType; expected s"):
        Record(key="a", images=("a.jpg",), text=None)
    with pytest.raises(TypeError, match=r"^record 'a': image_id.*7.*int.*str"):
        Record(key="a", images=("a.jpg",), text="x", image_id=7)
    with pytest.raises(TypeError, match=r"^record 7: key.*7.*int.*str"):
        Record(key=7, images=("a.jpg",), text="x")
    for size in ((3,), 3):
        said = re.escape(f"record 'a': image_size is {size}; expected (height, width) in pixels")
        with pytest.raises(ValueError, match=said):
            Record(key="a", images=("a.jpg",), text="x", image_size=size)
    with pytest.raises(ValueError, match=r"^record 'a': .* '\\ud800' at index 1; expected text"):
        Record(key="a", images=("a.jpg",), text="c\ud800d")
    assert Record(key="a", images=("a.jpg",), text="c\U0001f436d").text == "c\U0001f436d"


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((1, 2, 3), r"box 0 is \(1, 2, 3\); expected four finite numbers"),
        ((1, 2, math.nan, 4), r"box 0 is \(1, 2, nan, 4\); expected four finite numbers"),
        ((1, 2, math.inf, 4), r"box 0 is \(1, 2, inf, 4\); expected four finite numbers"),
        ((3, 2, 1, 4), r"box 0 is \(3, 2, 1, 4\); expected x0 <= x1 and y0 <= y1"),
    ],
)
def test_broken_boxes_are_named(box, said):
    with pytest.raises(ValueError, match=rf"record 'r/1': {said}"):
        record(text="a dog", boxes_xyxy=(box,), char_spans=(((2, 5),),))


@pytest.mark.parametrize(
    ("text", "span", "whole"),
    [
        ("a \U0001f469\u200d\U0001f467 dog", (2, 3), (2, 5)),
        ("a cafe\u0301 table", (2, 6), (2, 7)),
        ("a \U0001f1eb\U0001f1f7 flag", (3, 4), (2, 4)),
    ],
    ids=["joined emoji", "accent", "flag"],
)
@pytest.mark.parametrize("field", ["char_spans", "label_spans"])
def test_spans_that_split_a_character_are_refused(field, text, span, whole):
    boxes = {"boxes_xyxy": (BOX,)} if field == "char_spans" else {"labels": ("x",)}
    said = rf"span \[{span[0]}, {span[1]}\) splits .* \[{whole[0]}, {whole[1]}\)"
    with pytest.raises(ValueError, match=said):
        record(text=text, **boxes, **{field: ((span,),)})
    made = record(text=text, **boxes, **{field: ((whole,),)})
    assert getattr(made, field) == ((whole,),)
