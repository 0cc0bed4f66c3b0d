"""Parse JSON text and check its values: numbers, ids, file names, texts.

Files may come from strangers. JSON has integers of any length, NaN and infinite numbers, and lone
surrogates, which other code rejects without the name of the file, or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, TypeGuard

from fiber.atomic_io import JSON_ERRORS, describe_json_error
from fiber.messages import shown

#: Maximum magnitude of a number. float64 represents every integer up to it.
MAX_NUMBER = 2**53
#: Maximum magnitude of an integer that is an id, and maximum number of characters of other ids,
#: which are part of the keys of many records.
MAX_ID, MAX_ID_LENGTH = 2**63 - 1, 1000
#: Maximum number of characters of a file name, as in Linux, and of the name of a split.
MAX_FILE_NAME, MAX_SPLIT_NAME = 4096, 100

# Escapes of lone surrogates, and of some others: those after an escaped backslash.
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
# Number of digits of integers that surely fit in 64 bits.
_MAX_DIGITS = 18
# Integers below this bound are their own keys; see `id_key`.
_SMALL_ID = 2**14


def parse_json(text: str, where: object, expected: type = object, note: str = "") -> Any:
    """Parse JSON text and check the type of the value.

    Args:
        text: JSON text.
        where: location at the beginning of errors, such as a file and a line.
        expected: `dict` or `list`; default: any type.
        note: end of errors.

    Raises:
        ValueError: if the text is not valid JSON, is nested too deeply, has an integer of thousands
            of digits, or contains another type.
    """
    try:
        value = json.loads(text)
    except JSON_ERRORS as error:
        raise ValueError(f"{where} is not valid JSON: {describe_json_error(error)}{note}") from None
    if not isinstance(value, expected):
        names = {list: "a JSON array", dict: "a JSON object"}
        got = f"{names.get(type(value), 'the JSON value')} {shown(value)}"
        raise ValueError(f"{where} must contain {names[expected]}, got {got}{note}")
    return value


def may_have_surrogates(text: str) -> bool:
    """Return False if no string in a JSON text has a lone surrogate."""
    has_any = "\\ud" in text or "\\uD" in text
    return has_any and _LONE_SURROGATE.search(text) is not None


def find_surrogate(value: Any) -> str | None:
    """Return a string or key in a JSON value that has a lone surrogate, or None.

    UTF-8 cannot encode such strings.
    """
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            if not is_utf8(each):
                return each
        elif isinstance(each, dict):
            left += each.keys()
            left += each.values()
        elif isinstance(each, list):
            left += each
    return None


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode a string, that is, it has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def surrogate_problem(value: Any) -> str | None:
    """Describe a lone surrogate in a JSON value, for messages; return None if there is none."""
    found = find_surrogate(value)
    if found is None:
        return None
    return f"has a lone surrogate in {shown(found)}, which UTF-8 cannot encode"


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number of at most `MAX_NUMBER`, neither a bool nor NaN."""
    # Comparing a long integer does not convert it to a float, which may overflow.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -MAX_NUMBER <= value <= MAX_NUMBER
    )


def is_integer(value: Any, least: int = 0, most: int = MAX_ID) -> TypeGuard[int]:
    """Return whether a value is an integer in a range, and not a bool."""
    return type(value) is int and least <= value <= most


def type_advice(value: Any, kinds: Collection[type]) -> str:
    """Return how to write a number or a string of another type; begins with ": " unless empty."""
    if isinstance(value, bool):
        return ""
    if int in kinds and isinstance(value, float) and value.is_integer() and is_number(value):
        return f": write it as {value:.0f}"
    if str in kinds and isinstance(value, int | float):
        return f': write it in quotes, "{shown(value)}"'
    is_digits = isinstance(value, str) and value.isdecimal() and len(value) <= _MAX_DIGITS
    if int in kinds and is_digits:
        return f": write it without quotes, {value}"
    return ""


def is_id(value: Any) -> TypeGuard[str | int]:
    """Return whether a value is a nonempty short string, or an integer that fits in 64 bits."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_ID_LENGTH
    return is_integer(value, -MAX_ID)


def id_key(value: str | int) -> str | int | bytes:
    """Return the key of an id in a set or dict.

    An integer is its own hash, so that a file could choose ids that all probe the same slots of a
    dict, which takes quadratic time. The hashes of strings and bytes are seeded.
    """
    if isinstance(value, str) or 0 <= value < _SMALL_ID:
        return value
    return b"%d" % value


def file_name_problem(name: str) -> str | None:
    """Describe why no file can have a name, for messages; return None if one can."""
    if "\0" in name:
        return f"{shown(name)}, which contains NUL; expected a file name"
    if len(name) > MAX_FILE_NAME:
        return f"{shown(name)}; expected a file name of at most {MAX_FILE_NAME:,} characters"
    return None


def split_problem(name: str) -> str | None:
    """Describe why a split cannot have a name, for messages; return None if it can.

    Packing writes files whose names begin with it.
    """
    if name and len(name) <= MAX_SPLIT_NAME and "/" not in name and name.isprintable():
        return None
    return f"split {shown(name)}; expected a name such as train, without '/'"
