"""JSON values that readers of files must refuse or read, in the place of every value of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fiber.data.fingerprint import Fingerprint
from fiber.data.record import Record
from fiber.data.storage.record_entry import to_entry

#: Texts of JSON values: long integers, other types, no numbers, lone surrogates, deep nesting.
VALUES = (
    *("9" * 400, "-" + "9" * 400, "9" * 5000, "9" * 19, "-1", "0", "1.5", "1e308", "1e400", "NaN"),
    *("true", "null", '""', '"x"', '"(x)"', '"../../x"', '"\\ud800"', '"a\\u0000b"'),
    *('"' + "x" * 5000 + '"', '"\\u001b[2J"', "[]", '["x"]', "[[0, 1]]", "{}", "[{}]"),
    *("[" * 900 + "]" * 900, "[" * 100_000),
)
_HERE = '"the value is here"'
#: Longest message, without the path of the folder.
_MAX_MESSAGE = 2000


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a JSON value, as keys and indices."""
    yield place
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, each in items:
        yield from places(each, (*place, key))


def mutants(content: Any, values: Sequence[str] = VALUES) -> Iterator[str]:
    """Yield JSON texts with every hostile value in every place, and without every key."""
    for place in places(content):
        text = json.dumps(_replaced(content, place, json.loads(_HERE)))
        assert text.count(_HERE) == 1
        yield from (text.replace(_HERE, value) for value in values)
        if place and isinstance(place[-1], str):
            yield json.dumps(_replaced(content, place, None, drop=True))


def _replaced(content: Any, place: tuple[Any, ...], new: Any, *, drop: bool = False) -> Any:
    if not place:
        return new
    key, rest = place[0], place[1:]
    copy = content.copy()
    if drop and not rest:
        del copy[key]
    else:
        copy[key] = _replaced(content[key], rest, new, drop=drop)
    return copy


def is_refused(read: Callable[[], Any], folder: Path, *names: str) -> bool:
    """Read records; check that they are sound, or that an error names a file and is short.

    Args:
        read: returns records, or something else.
        folder: folder of the file, in the message.
        names: names of which the message has one.
    """
    try:
        records = read()
        for record in (
            records
            if isinstance(records, list | tuple)
            else [records[i] for i in range(len(records))]
        ):
            check_sound(record)
    except (ValueError, OSError) as error:
        said = str(error)
        assert any(name in said for name in names), f"the error names no file: {said[:500]}"
        said = said.replace(str(folder), "")
        assert len(said) <= _MAX_MESSAGE, f"{len(said)} characters: {said[:500]}"
        assert said.isprintable(), f"the error is not printable: {said!r:.500}"
        return True
    return False


def check_sound(record: Record) -> None:
    """Check the types of a record's fields: what the loader, packing and metrics rely on."""
    assert json.dumps(to_entry(record), ensure_ascii=False).encode()
    Fingerprint().add(record)
    images = getattr(record.images, "locations", record.images)
    assert all(isinstance(image, str | tuple | int) for image in images)
    for text in (record.key, record.text, record.image_id, record.group, *record.label_groups):
        assert isinstance(text, str)
    assert all(isinstance(label, str) for label in record.labels)
    for name, score in (record.answers or {}).items():
        assert isinstance(name, str) and 0 <= score <= 1
    size = record.image_size
    assert size is None or all(type(side) is int and 0 < side < 2**31 for side in size)
    spans = [span for each in (*record.char_spans, *record.label_spans) for span in each]
    assert all(type(side) is int for span in spans for side in span)
    assert all(type(label) is int and label < len(record.labels) for label in record.box_labels)
    assert all(-(2**63) < number < 2**63 for number in record.label_ids)
    assert all(abs(side) <= 2**53 for box in record.boxes_xyxy for side in box)
