"""Hostile values, which the generator puts at places of documents."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from tests.fuzz.generated.trees import Call, Global, Pairs, Raw
from tests.hostile_cases import probing_keys

#: Levels of sharing: as a tree such a value has 2^60 leaves.
_LEVELS = 60


@cache
def probing_integers(count: int) -> list[int]:
    """Distinct integers, the last ones of which probe slots of a dict that others have taken."""
    return probing_keys(max((3 * count // 2).bit_length(), 8))[-count:]


class HostileValue(NamedTuple):
    """A kind of value."""

    name: str
    #: Makes a value, given a size of 1 or more; its encoding is at most linear in the size.
    make: Callable[[int], Any]
    #: Whether the value grows with the size.
    grows: bool = False


def string(text: str) -> Raw:
    """A string that a pickle stores once; lone surrogates are encoded as pickle does."""
    data = text.encode("utf-8", "surrogatepass")
    return Raw(b"X" + struct.pack("<I", len(data)) + data, json.dumps(text))


def _integer(value: int) -> Raw:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return Raw(b"\x8b" + struct.pack("<i", len(data)) + data, "9" * len(str(value)))


def _long_integer(size: int) -> Raw:
    # JSON with more than 4,300 digits is refused by `json` itself.
    digits = min(16 * size, 4000)
    data = b"\xff" * (16 * size) + b"\0"
    return Raw(b"\x8b" + struct.pack("<i", len(data)) + data, "9" * digits)


def _keys(size: int) -> Raw:
    names = [f"key{number}" for number in range(4 * size)]
    pairs = b"".join(string(name).opcodes + b"K\1" for name in names)
    return Raw(b"}(" + pairs + b"u", json.dumps(dict.fromkeys(names, 1)))


def _pickled(opcodes: bytes) -> Raw:
    return Raw(opcodes, None)


def _long_bytes(size: int) -> Raw:
    return _pickled(b"B" + struct.pack("<I", 64 * size) + b"a" * 64 * size)


def _sparse_memo(size: int) -> Raw:
    """A value with an index in the memo that grows with the square of the size."""
    return _pickled(b"Nr" + struct.pack("<I", min(20 * size * size, 2**27)))


#: Values that grow. Strings are longer than what a reader does for each reference to them.
GROWING = (
    HostileValue("long string", lambda n: string("A" * (256 * n)), True),
    HostileValue("long tuple", lambda n: _pickled(b"(" + b"K\1" * 4 * n + b"t"), True),
    HostileValue("long control characters", lambda n: string("\x1b]0;a\x07\n" * (32 * n)), True),
    HostileValue("long integer", _long_integer, True),
    HostileValue("long bytes", _long_bytes, True),
    HostileValue(
        "long list", lambda n: Raw(b"](" + b"K\1" * 4 * n + b"e", json.dumps([1] * 4 * n)), True
    ),
    HostileValue("many keys", _keys, True),
    HostileValue("deep list", lambda n: Raw(b"]" * n + b"a" * (n - 1), "[" * n + "]" * n), True),
    HostileValue("deep tuple", lambda n: _pickled(b"N" + b"\x85" * n), True),
    HostileValue("sparse memo", _sparse_memo, True),
)
#: Those to which many opcodes refer.
REFERRED = GROWING[:2]
#: Values of a few hundred bytes, some of which have 2^60 leaves.
SHARED = (
    HostileValue("shared tuple", lambda _: _pickled(b"N" + b"2\x86" * _LEVELS)),
    HostileValue("shared list", lambda _: _pickled(b"(" * _LEVELS + b"N" + b"2l" * _LEVELS)),
)
#: Small values of every type, and strings that mean something as names.
ODD = tuple(
    HostileValue(name, lambda _, value=value: value)
    for name, value in {
        "None": None,
        "true": True,
        "-1": -1,
        "0": 0,
        "2^31": 2**31,
        "2^62": 2**62,
        "2^63": 2**63,
        "2^64": 2**64,
        "10^400": _integer(10**400),
        "fraction": 0.5,
        "1e300": 1e300,
        "not a number": float("nan"),
        "infinity": float("inf"),
        "empty string": "",
        "letter": "x",
        "family": "family",
        "NUL": "a\0b",
        "path": "../../outside",
        "lone surrogate": string("\ud800"),
        "escape": "\x1b[2J\u202e",
        "empty list": [],
        "empty object": Pairs(),
        "nested list": [[[]]],
        "list of null": [None, None],
        "object in list": [Pairs([("a", None)])],
        "object": Pairs([("a", Pairs([("b", 1)]))]),
        "null key": Pairs([(None, None)]),
    }.items()
) + tuple(
    HostileValue(name, lambda _, value=value: value)
    for name, value in {
        "bytes": b"\xff\0",
        "empty tuple": (),
        "class": Global("torch", "Size"),
        "unknown class": Global("a.b", "C"),
        "object of a class": Call(Global("a.b", "C"), ()),
        "nested call": Call(Call(Global("a.b", "C"), (1,)), ("x",)),
        "tuple as key": Pairs([((1, 2), 3)]),
    }.items()
)
ALL = (*GROWING, *SHARED, *ODD)
#: Values that are put at one place only.
LARGE = (HostileValue("1 MB", lambda _: "a" * 1_000_000),)
