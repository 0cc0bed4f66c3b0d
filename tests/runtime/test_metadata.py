"""Odd values in metadata.json are read, or refused by a message that names the file."""

import copy
import json
import math
from itertools import islice
from pathlib import Path

import pytest

import fiber.runtime
from fiber.runtime.metadata import FILE
from tests.runtime import unloaded

#: Values of every type, among them those that overflow, and texts that act on a terminal.
ODD = {
    "null": None,
    "true": True,
    "-1": -1,
    "0": 0,
    "1e300": 1e300,
    "infinity": math.inf,
    "not a number": math.nan,
    "10^400": 10**400,
    "2^63": 2**63,
    "empty string": "",
    "NUL": "\0",
    "escape": "\x1b[2J\x1b]0;a\x07",
    "direction marks": "\u202e\u200e\u200f\u061c",
    "lone surrogate": "\ud800",
    "path": "../../etc/passwd",
    "1 MB": "a" * 1_000_000,
    "empty list": [],
    "list": [1, 2, 3],
    "empty object": {},
    "nested": {"a": [[{"\x1b": [None]}]]},
}
#: Names of fields.
ODD_KEYS = ("", "\0", "\x1b[2J", "\u202e", "\ud800", "a" * 100_000)
#: Items of a list that are replaced.
ITEMS = 2
#: Length in characters of the longest message, besides the path of the file.
MAX_MESSAGE = 1500


def places(value, path=()):
    """Yield the place of every value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), ITEMS)):
            yield from places(value[index], (*path, index))


def put(value, path, new):
    """Return a document with a value at a place; its other parts are shared."""
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def mutants(document):
    """Yield documents with an odd value or key at each place, or without what was there."""
    for path in places(document):
        name = ".".join(map(str, path))
        for odd, value in ODD.items():
            yield f"{name} = {odd}", put(document, path, value)
        if path and isinstance(path[-1], str):
            *parents, key = path
            parent = document
            for each in parents:
                parent = parent[each]
            rest = {each: value for each, value in parent.items() if each != key}
            yield f"without {name}", put(document, tuple(parents), rest)
            for number, odd in enumerate(ODD_KEYS):
                renamed = {**rest, odd: parent[key]}
                yield f"{name} has odd name {number}", put(document, tuple(parents), renamed)


def problems(path, read, documents):
    """Write and read documents; return what is wrong with the outcomes, and their counts."""
    found, counts = [], {"read": 0, "refused": 0}
    for name, document in documents:
        # Lone surrogates are written as escapes.
        path.write_text(json.dumps(document))
        try:
            read()
        except (ValueError, OSError) as error:
            counts["refused"] += 1
            if problem := complaint(str(error), path):
                found.append(f"{name}: {problem}: {str(error)[:300]!r}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {str(error)[:300]!r}")
        else:
            counts["read"] += 1
    assert all(counts.values()), counts
    return found


def complaint(message, path):
    """Say what is wrong with a message, or return ""."""
    # Of a file whose size or checksum differs, both are named.
    if str(path.parent) not in message or path.name not in message:
        return "does not name the file"
    if len(message) > MAX_MESSAGE + len(str(path)):
        return f"{len(message)} characters"
    return "" if message.isprintable() else "control characters"


def test_a_complaint():
    path = Path("metadata.json")
    assert complaint("metadata.json: no", path) == ""
    assert "name" in complaint("no", path)
    assert "control" in complaint("metadata.json \u200e", path)
    assert "characters" in complaint("metadata.json" + "a" * 2000, path)


@pytest.fixture(scope="module", params=["fine", "coarse", "METER"])
def graphs(request, tmp_path_factory):
    return unloaded.write(request.param, tmp_path_factory.mktemp("graphs"))


#: A number that neither the number of odd values nor of odd keys divides, so that each is drawn.
SOME = 29


@pytest.mark.parametrize("every", [SOME, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_in_metadata_are_read_or_refused(graphs, every):
    path = graphs / FILE
    document = json.loads(path.read_text())
    drawn = islice(mutants(document), 0, None, every)
    found = problems(path, lambda: fiber.runtime.load(graphs, engine="torch"), drawn)
    path.write_text(json.dumps(document))
    assert not found, "\n".join(found)
