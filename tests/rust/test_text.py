"""Surrogates in Python strings: a ValueError that names the text and the place."""

import pytest

from fiber import _core
from fiber._core import Tokenizer
from tests.rust.test_error import run

BAD = "a \udcff"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], 261)


def test_texts_with_surrogates_are_named(tokenizer):
    place = "has a surrogate, U\\+DCFF, as character 2"
    for name, call in {
        "text": tokenizer.encode,
        "json": Tokenizer.from_json,
        r"texts\[1\]": lambda text: tokenizer.encode_batch(["\U0001f600", text]),
        r"texts\[0\]": lambda text: Tokenizer.train([text], 300),
    }.items():
        with pytest.raises(ValueError, match=f"{name} {place}"):
            call(BAD)
    for call in (tokenizer.positive_map, _core.mirror_words):
        with pytest.raises(ValueError, match=f"text {place}"):
            call(BAD, [])


@pytest.mark.parametrize("field", ["key", "text", "image_id"])
def test_records_with_surrogates_are_named(tokenizer, field):
    record = "a .udcff" if field == "key" else "coco/391895"
    record = ".*" if field == "key" else record
    with pytest.raises(ValueError, match=rf"record '{record}': {field} has a surrogate, U\+DCFF"):
        run(tokenizer, **{field: BAD})


def test_what_is_no_text_is_a_type_error(tokenizer):
    with pytest.raises(TypeError, match="text is of type bytes; expected str"):
        tokenizer.encode(b"a")
    with pytest.raises(TypeError, match=r"texts\[1\] is not a str; expected a sequence of str"):
        tokenizer.encode_batch(["a", 3])
    with pytest.raises(TypeError, match="texts is of type str; expected a sequence of str"):
        tokenizer.encode_batch("a")
