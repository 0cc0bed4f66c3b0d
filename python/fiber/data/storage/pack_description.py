"""`pack.json`, the description of a packed folder: its files, their checksums and its records.

It lists every file with its size, its SHA-256 checksum and the CRC-32 of each block of
`block_bytes` bytes, so that a part of a file can be checked without the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS, check_regular_file
from fiber.data.formats.json_values import find_surrogate, is_integer, may_have_surrogates
from fiber.messages import shown

DESCRIPTION = "pack.json"
#: Maximum size of the description. Per shard of 256 MB it has about 500 bytes, so that this is
#: enough for a hundred terabytes.
MAX_DESCRIPTION_BYTES = 1 << 28
#: Maximum number of characters of the name of a file.
_MAX_NAME = 1000
FORMAT, VERSION = "fiber pack", 2
#: Bytes of a file that share a CRC-32.
BLOCK_BYTES = 16 << 20
MAX_BLOCK_BYTES = 1 << 30
#: End of a message about a file that is not the one that was packed.
NOT_PACKED = "has changed since the folder was packed; pack the data again"
#: `source` of the entry in `indexes` that describes the images of a split.
IMAGES = "images"
#: Lists of files in the description.
FILE_LISTS = ("shards", "indexes", "parts", "files")
#: Fields of the description that are read, with their types.
_FIELDS = {"fingerprint": str, "block_bytes": int, **dict.fromkeys(FILE_LISTS, list)}
_FILE_FIELDS = {"file": str, "bytes": int, "sha256": str, "crc32s": list}
_ENTRY_FIELDS = {
    "shards": {**_FILE_FIELDS, "split": str, "pictures": int},
    "indexes": {**_FILE_FIELDS, "split": str, "source": str},
    "parts": {
        **_FILE_FIELDS,
        **dict.fromkeys(("source", "split"), str),
        **dict.fromkeys(("counts", "counts_of_objects"), dict),
        **dict.fromkeys(("notes", "classes", "shared"), list),
        "records": int,
    },
    "files": _FILE_FIELDS,
}


def is_pack(path: Path) -> bool:
    """Return whether a folder was written by `fiber data pack`."""
    return (path / DESCRIPTION).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """Read `pack.json`.

    Raises:
        ValueError: if it does not describe a packed folder, or not the one that was packed.
    """
    path = folder / DESCRIPTION
    check_regular_file(path, MAX_DESCRIPTION_BYTES)
    return _read_description(path, path.stat().st_mtime_ns)


@cache
def _read_description(path: Path, changed: int) -> dict[str, Any]:
    return parse_description(path.read_bytes(), str(path))


def parse_description(content: bytes, name: str) -> dict[str, Any]:
    """Parse the content of `pack.json`; `name` is its path or URL in messages.

    Raises:
        ValueError: see `read_description`.
    """
    if len(content) > MAX_DESCRIPTION_BYTES:
        raise ValueError(
            f"{name} has {len(content)} bytes; expected at most {MAX_DESCRIPTION_BYTES}"
        )
    try:
        text = content.decode()
        description = json.loads(text)
        if not isinstance(description, dict):
            raise ValueError(f"it contains {shown(description)}; expected an object")
        if may_have_surrogates(text) and (text := find_surrogate(description)) is not None:
            raise ValueError(f"it has a lone surrogate in {shown(text)}")
        form, version = description.get("format"), description.get("version")
        if form != FORMAT or not is_integer(version, VERSION, VERSION):
            raise ValueError(f"unsupported format {shown(form)}, version {shown(version)}")
        _check_description(description)
        stored, computed = description["fingerprint"], fingerprint_of_content(description)
    except JSON_ERRORS as problem:
        raise ValueError(
            f"{name} does not describe a packed folder ({problem}); expected format {FORMAT!r},"
            f" version {VERSION}"
        ) from None
    if stored != computed:
        raise ValueError(f"{name} does not have the hash {shown(stored)} and {NOT_PACKED}")
    return description


def _check_description(description: dict[str, Any]) -> None:
    """Check the types of the fields that are read, and that splits are parts of file names."""
    _check_fields(DESCRIPTION, description, _FIELDS)
    # A block is held in memory when it is downloaded.
    if not 1 <= description["block_bytes"] <= MAX_BLOCK_BYTES:
        raise ValueError(
            f"block_bytes is {description['block_bytes']}; expected 1 to {MAX_BLOCK_BYTES}"
        )
    # Each file is read or hashed for each entry that names it.
    listed: dict[Path, str] = {}
    for name, fields in _ENTRY_FIELDS.items():
        for index, entry in enumerate(description[name]):
            where = f"{name}[{index}]"
            _check_fields(where, entry, fields)
            _check_name(where, entry["file"], entry.get("split", ""))
            if (other := listed.setdefault(Path(entry["file"]), where)) != where:
                raise ValueError(
                    f"{where} has file {shown(entry['file'])}, as has {other}; expected each once"
                )
            _check_blocks(where, entry, description["block_bytes"])
    for index, part in enumerate(description["parts"]):
        _check_part(f"parts[{index}]", part)


def _check_name(where: str, file: str, split: str) -> None:
    """Check that a file can have a name, and that a split can be a part of one."""
    if not 0 < len(file) <= _MAX_NAME or not file.isprintable():
        raise ValueError(f"{where} has file {shown(file)}; expected the name of a file")
    if len(split) > _MAX_NAME or "/" in split or not split.isprintable():
        raise ValueError(f"{where} has split {shown(split)}; expected a part of the name of a file")


def _check_part(where: str, part: dict[str, Any]) -> None:
    """Check the types of what is in the lists and objects of a part."""
    for name in ("counts", "counts_of_objects"):
        for what, count in part[name].items():
            if not is_integer(count):
                raise ValueError(
                    f"{where}.{name} has {shown(count)} for {shown(what)}; expected an integer"
                )
    for name in ("notes", "classes"):
        for index, text in enumerate(part[name]):
            if not isinstance(text, str):
                raise ValueError(f"{where}.{name}[{index}] is {shown(text)}; expected a string")
    for index, shared in enumerate(part["shared"]):
        _check_fields(f"{where}.shared[{index}]", shared, {})


def _check_blocks(where: str, entry: dict[str, Any], block_bytes: int) -> None:
    """Check that there is a CRC-32 for every block of a file."""
    count = -(-entry["bytes"] // block_bytes)
    crc32s = entry["crc32s"]
    if len(crc32s) != count or not all(is_integer(c) for c in crc32s):
        raise ValueError(
            f"{where} has {entry['bytes']} bytes and {len(crc32s)} CRC-32s; expected {count}"
            f" integers, one per block of {block_bytes} bytes"
        )


def _check_fields(where: str, entry: Any, fields: dict[str, type]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is of type {type(entry).__name__}; expected an object")
    for name, kind in fields.items():
        value = entry.get(name)
        if not (is_integer(value) if kind is int else isinstance(value, kind)):
            expected = "an integer from 0 to 2**63 - 1" if kind is int else f"a {kind.__name__}"
            raise ValueError(f"{where}.{name} is {shown(value)}; expected {expected}")


def fingerprint_of_content(description: dict[str, Any]) -> str:
    """Return the fingerprint of a packed folder: the SHA-256 of pack.json without this field."""
    content = {name: value for name, value in description.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def files_of(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the entry of each file of a packed folder except `pack.json`."""
    for name in FILE_LISTS:
        yield from description[name]


def file_of(folder: Path, entry: dict[str, Any]) -> Path:
    """Return the path of a file in a packed folder; raise ValueError if it is outside of it."""
    name = Path(entry["file"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"{folder / DESCRIPTION} names file {shown(entry['file'])}, outside of {folder}"
        )
    return folder / name
