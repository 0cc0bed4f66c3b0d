"""Values in messages: bounded in length and time, and printable."""

import re
from pathlib import Path

import pytest

from fiber.messages import printable, shown, shown_names


def nested(levels):
    """A tuple of 2^levels leaves."""
    value = (1,)
    for _ in range(levels):
        value = (value, value)
    return value


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", ["", "a", "it's \"", None, True, -7, 0.5, [], (1,), {"a": [1, 2]}, b"\0", {3}]
)
def test_a_short_value_is_shown_as_repr_does(value):
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        b"x" * 10_000_000,
        10**4000,
        [1] * 1_000_000,
        {str(number): number for number in range(100_000)},
        nested(60),
        deep(100_000),
        [["y" * 500] * 50] * 50,
        {nested(3): nested(60)},
        object(),
    ],
)
def test_a_long_value_is_shown_by_its_start_and_size(value):
    assert len(shown(value)) < 300


def test_what_is_not_shown_is_counted():
    assert shown("ab" * 50) == f"'{'ab' * 30}'... (100 characters)"
    assert shown(list(range(1000))) == "[0, 1, 2, 3, 4, 5, 6, 7, ... 1,000 in all]"
    assert shown(10**400) == "<int of about 401 digits>"
    assert shown([[[1, 2]]]) == "[[<list of 2>]]"
    assert shown_names([f"n{number}" for number in range(20)], 2) == "n0, n1 and 18 more"
    assert shown_names([]) == "none"


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07\x1b[2J", "\u202egpj", "\ud800", "\x9b2J"])
def test_control_characters_are_escaped(text):
    assert not text.isprintable()
    for made in (shown(text), shown([text]), shown({text: text}), shown_names([text])):
        assert made.isprintable()
    assert printable(f"é中 {text}", 99).startswith("é中 \\")
    assert printable("x" * 50, 9) == "x" * 9 + "..."


def test_a_path_is_shown_as_its_text():
    assert shown(Path("a/b")) == repr(str(Path("a/b")))


def test_no_message_cuts_a_whole_repr():
    """`{value!r:.60}` builds the text of the whole value first, which may never end."""
    package = Path(__file__).parents[1] / "python" / "fiber"
    cuts = re.compile(r"!r:\.\d|\brepr\([^()]*\)\[:")
    found = [
        f"{path.name}: {match[0]}"
        for path in sorted(package.rglob("*.py"))
        if "kernels" not in path.relative_to(package).parts
        for match in cuts.finditer(path.read_text(encoding="utf-8"))
        # The module itself says why.
        if path.name != "messages.py"
    ]
    assert not found, f"use shown of fiber.messages: {found}"
