"""Compare all files of a packed folder with their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fiber.data.storage.pack_description import (
    DESCRIPTION,
    file_of,
    files_of,
    is_pack,
    read_description,
)
from fiber.data.storage.remote_pack import fetch_missing
from fiber.messages import printable


def verify_files(folder: Path, splits: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Compare the SHA-256 checksums of the files of a packed folder with those in `pack.json`.

    Files of a folder at a URL that are not in the cache are downloaded, and checked in doing so.

    Args:
        folder: packed folder.
        splits: splits whose files are read; default: all.

    Returns:
        Number of files that were read, and a sentence for each that has changed or is missing.

    Raises:
        RemoteError: if the folder is at a URL, and a file cannot be downloaded.
        ValueError: if `folder` is not a packed folder, or pack.json itself has changed.
    """
    if not is_pack(folder):
        raise ValueError(
            f"{folder} is not a packed folder (`fiber data pack`); only these have checksums"
        )
    description = read_description(folder)
    entries = [
        entry
        for entry in files_of(description)
        if not splits or entry.get("split") in (None, *splits)
    ]
    with ThreadPoolExecutor() as pool:
        # Hashing releases the GIL.
        problems = pool.map(lambda entry: _changed(folder, entry), entries)
        changed = [problem for problem in problems if problem]
    return len(entries), changed


def _changed(folder: Path, entry: dict[str, Any]) -> str | None:
    path = file_of(folder, entry)
    if fetch_missing(folder, entry):
        return None
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if digest == entry["sha256"]:
        return None
    expected = printable(entry["sha256"], len(digest))
    return f"{path} has the SHA-256 checksum {digest}, but {DESCRIPTION} lists {expected}"
