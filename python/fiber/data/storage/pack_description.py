"""`pack.json`, the description of a packed folder: its files, their checksums and its records.

Version 2 lists every file with its size, its SHA-256 checksum and the CRC-32 of each block of
`block_bytes` bytes, so that a part of a file can be checked without the rest. Version 1 lists the
sizes of shards only; its first folders have no checksums of the index of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS

DESCRIPTION = "pack.json"
FORMAT, VERSION = "fiber pack", 2
#: Bytes of a file that share a CRC-32 in version 2.
BLOCK_BYTES = 16 << 20
MAX_BLOCK_BYTES = 1 << 30
#: End of a message about a file that is not the one that was packed.
NOT_PACKED = "has changed since the folder was packed; pack the data again"
#: `source` of the entry in `indexes` that describes the images of a split.
IMAGES = "images"
#: Lists of files in the description.
FILE_LISTS = ("shards", "indexes", "parts", "files")
#: Fields of the description that are read, with their types.
_FIELDS = {"fingerprint": str, "shards": list, "parts": list}
_SHARD_FIELDS = {"file": str, "split": str, "bytes": int}
_PART_FIELDS = {
    **dict.fromkeys(("source", "split", "file", "sha256"), str),
    **dict.fromkeys(("counts", "counts_of_objects"), dict),
    **dict.fromkeys(("notes", "classes", "shared"), list),
    "records": int,
}
_ENTRY_FIELDS = {
    "shards": _SHARD_FIELDS,
    "indexes": dict.fromkeys(("split", "file", "sha256"), str),
    "parts": _PART_FIELDS,
    "files": {"file": str, "sha256": str},
}
#: Additional fields of version 2.
_BLOCK_FIELDS = {"bytes": int, "sha256": str, "crc32s": list}
_VERSION_2_FIELDS = {
    **dict.fromkeys(FILE_LISTS, _BLOCK_FIELDS),
    "shards": {**_BLOCK_FIELDS, "pictures": int},
    "indexes": {**_BLOCK_FIELDS, "source": str},
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
    return _read_description(path, path.stat().st_mtime_ns)


@cache
def _read_description(path: Path, changed: int) -> dict[str, Any]:
    return parse_description(path.read_bytes(), str(path))


def parse_description(content: bytes, name: str) -> dict[str, Any]:
    """Parse the content of `pack.json`; `name` is its path or URL in messages.

    Raises:
        ValueError: see `read_description`.
    """
    try:
        found = json.loads(content.decode())
        is_known = type(found["version"]) is int and 1 <= found["version"] <= VERSION
        if found["format"] != FORMAT or not is_known:
            raise ValueError(
                f"unsupported format {found['format']!r}, version {found['version']!r}"
            )
        _check_description(found)
        stored = found["fingerprint"]
    except (*JSON_ERRORS, KeyError, TypeError) as problem:
        raise ValueError(
            f"{name} does not describe a packed folder ({problem}); expected format {FORMAT!r},"
            f" version 1 to {VERSION}"
        ) from None
    if stored != fingerprint_of_content(found):
        raise ValueError(f"{name} does not have the hash {stored!r:.80} and {NOT_PACKED}")
    return found


def _check_description(found: dict[str, Any]) -> None:
    """Check the types of the fields that are read, and that splits are parts of file names."""
    _check_fields(DESCRIPTION, found, _FIELDS)
    is_first = found["version"] == 1
    lists = {"indexes": list, "files": list}
    _check_fields(DESCRIPTION, {"indexes": [], "files": [], **found} if is_first else found, lists)
    if not is_first:
        _check_fields(DESCRIPTION, found, {"block_bytes": int})
        # A block is held in memory when it is downloaded.
        if not 1 <= found["block_bytes"] <= MAX_BLOCK_BYTES:
            raise ValueError(
                f"block_bytes is {found['block_bytes']}; expected 1 to {MAX_BLOCK_BYTES}"
            )
    for name, fields in _ENTRY_FIELDS.items():
        for index, entry in enumerate(found.get(name, ())):
            where = f"{name}[{index}]"
            _check_fields(where, entry, fields)
            split = entry.get("split", "")
            if "/" in split or "\0" in entry["file"] + split:
                raise ValueError(f"{where} has split {split!r:.80}")
            if not is_first:
                _check_fields(where, entry, _VERSION_2_FIELDS[name])
                _check_blocks(where, entry, found["block_bytes"])
    for index, part in enumerate(found["parts"]):
        for number, shared in enumerate(part["shared"]):
            _check_fields(f"parts[{index}].shared[{number}]", shared, {})


def _check_blocks(where: str, entry: dict[str, Any], block_bytes: int) -> None:
    """Check that there is a CRC-32 for every block of a file."""
    count = -(-entry["bytes"] // block_bytes)
    crc32s = entry["crc32s"]
    if entry["bytes"] < 0 or len(crc32s) != count or not all(type(c) is int for c in crc32s):
        raise ValueError(
            f"{where} has {entry['bytes']} bytes and {len(crc32s)} CRC-32s; expected {count}"
            f" integers, one per block of {block_bytes} bytes"
        )


def _check_fields(where: str, entry: Any, fields: dict[str, type]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is of type {type(entry).__name__}; expected an object")
    for name, kind in fields.items():
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{where}.{name} is {value!r:.40}; expected a value of type {kind.__name__}"
            )


def fingerprint_of_content(description: dict[str, Any]) -> str:
    """Return the fingerprint of a packed folder: the SHA-256 of pack.json without this field."""
    content = {name: value for name, value in description.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def files_of(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the entry of each file of a packed folder except `pack.json`."""
    for name in FILE_LISTS:
        yield from description.get(name, ())


def file_of(folder: Path, entry: dict[str, Any]) -> Path:
    """Return the path of a file in a packed folder; raise ValueError if it is outside of it."""
    name = Path(entry["file"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{folder / DESCRIPTION} names file {str(name)!r}, outside of {folder}")
    return folder / name
