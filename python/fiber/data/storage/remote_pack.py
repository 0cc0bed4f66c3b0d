"""Packed folders at URLs, used through local folders in a cache.

    CACHE/NAME-FINGERPRINT/               a packed folder; its index is whole, shards come and go
    CACHE/NAME-FINGERPRINT.remote.json    its URL and the size of the cache

Whatever reads a packed folder reads such a folder; its missing shards are downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fiber.atomic_io import read_json, write_file
from fiber.data.formats.json_values import is_integer
from fiber.data.record import AnyPath
from fiber.data.storage.pack_description import DESCRIPTION, files_of, is_pack, read_description
from fiber.data.storage.remote import RemoteFolder, is_url
from fiber.data.storage.shard_cache import (
    NOTE_SUFFIX,
    SHARD_SUFFIX,
    CachedPack,
    CachedShard,
    ShardCache,
    explained_as_remote,
)
from fiber.data.storage.shard_order import ShardFile
from fiber.messages import shown

#: Maximum size of the note next to the folder of a pack.
_MAX_NOTE_BYTES = 1 << 16
#: Default size of the cache in GB (10 ** 9 bytes).
CACHE_GB = 100.0


def default_cache() -> Path:
    """Return $FIBER_CACHE, or fiber/packs in $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("FIBER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fiber" / "packs"


def remote_pack(url: str, cache: AnyPath | None = None, cache_gb: float | None = None) -> Path:
    """Open a packed folder at a URL; return its local folder, which can be used as any other data.

    The index and the tokenizer are downloaded now, shards when they are needed.

    Args:
        url: URL of a folder that `fiber data pack` wrote.
        cache: folder on a local disk. Default: `default_cache`.
        cache_gb: maximum size of the cache in GB. Default: `CACHE_GB`.

    Raises:
        FileNotFoundError: if there is no `pack.json` at the URL.
        RemoteError: if a file cannot be downloaded or stored.
        ValueError: if `url` is not a URL, its `pack.json` does not describe a packed folder, or
            `cache_gb` is not positive.
    """
    if not is_url(url):
        raise ValueError(f"url is {shown(url)}; expected a URL such as 's3://bucket/packed'")
    limit_bytes = int((CACHE_GB if cache_gb is None else cache_gb) * 1e9)
    if limit_bytes < 1:
        raise ValueError(f"cache_gb is {cache_gb}; expected a positive number")
    folder = Path(default_cache() if cache is None else cache).absolute()
    remote = RemoteFolder(url)
    content, description = remote.description()
    name = remote.url.rpartition("/")[2] or "pack"
    mirror = folder / f"{name}-{description['fingerprint'][:16]}"
    pack = CachedPack(mirror, remote, ShardCache(folder, limit_bytes), description["block_bytes"])
    with explained_as_remote(mirror):
        (mirror / "index").mkdir(parents=True, exist_ok=True)
        stored = {"url": remote.url, "limit_bytes": limit_bytes}
        _write_shared(_remote_file(mirror), json.dumps(stored).encode())
        if not is_pack(mirror):
            _write_shared(mirror / DESCRIPTION, content)
    for kind in ("indexes", "parts", "files"):
        for entry in description[kind]:
            pack.fetch(entry)
    return mirror


def local_path(data: AnyPath) -> Path:
    """Return the path of data; for a URL, that of its local folder (see `remote_pack`)."""
    return remote_pack(data) if isinstance(data, str) and is_url(data) else Path(data)


def url_of(folder: Path) -> str | None:
    """Return the URL of a folder that `remote_pack` returned, or None for other folders."""
    stored = _stored_remote(folder)
    return None if stored is None else stored["url"]


def shards_of(folder: Path, shards: Sequence[dict[str, Any]]) -> list[ShardFile] | None:
    """Return the shards of a folder that `remote_pack` returned, or None for other folders.

    Raises:
        ValueError: if a path in the description is outside of the folder.
    """
    pack = _cached_pack(folder)
    return None if pack is None else [CachedShard(pack, shard) for shard in shards]


def fetch_missing(folder: Path, entry: dict[str, Any]) -> bool:
    """Download a file that a folder of `remote_pack` lacks, which checks it; return True if so.

    Raises:
        RemoteError: if it cannot be downloaded or stored.
    """
    pack = _cached_pack(folder)
    if pack is None or pack.is_whole(entry):
        return False
    pack.fetch(entry)
    return True


def _cached_pack(folder: Path) -> CachedPack | None:
    stored = _stored_remote(folder)
    if stored is None:
        return None
    cache = ShardCache(folder.parent, stored["limit_bytes"])
    block_bytes = read_description(folder)["block_bytes"]
    return CachedPack(folder, RemoteFolder(stored["url"]), cache, block_bytes)


def missing_bytes(shards: Sequence[ShardFile], at_a_time: int) -> int:
    """Return how many bytes the cache is too small for `at_a_time` of the shards, or 0."""
    cached = [shard for shard in shards if isinstance(shard, CachedShard)]
    sizes = sorted((shard.bytes for shard in cached), reverse=True)
    packs = {shard.pack.folder: shard.pack for shard in cached}
    index_bytes = sum(
        entry["bytes"]
        for folder in packs
        for entry in files_of(read_description(folder))
        if not entry["file"].endswith(SHARD_SUFFIX)
    )
    limit = min((pack.cache.limit_bytes for pack in packs.values()), default=0)
    return max(0, sum(sizes[:at_a_time]) + index_bytes - limit)


def check_room(shards: Sequence[ShardFile], order: str, at_a_time: int) -> None:
    """Check that the cache has room for the shards that an order reads at a time.

    Raises:
        ValueError: if it has not.
    """
    if not (missing := missing_bytes(shards, at_a_time)):
        return
    pack = next(shard.pack for shard in shards if isinstance(shard, CachedShard))
    advice = "" if order == "shards" else " or order 'shards' (--set data.order=shards)"
    raise ValueError(
        f"order {order!r} needs {at_a_time} shards of {pack.remote.url} at a time, but the cache"
        f" {pack.cache.folder} is limited to {pack.cache.limit_bytes} bytes; expected {missing}"
        f" bytes more (--cache-gb){advice}"
    )


def _remote_file(mirror: Path) -> Path:
    # Not in the folder: one that came from elsewhere must not choose a URL.
    return mirror.with_name(mirror.name + NOTE_SUFFIX)


def _stored_remote(folder: Path) -> dict[str, Any] | None:
    path = _remote_file(folder.absolute())
    try:
        note = read_json(path, _MAX_NOTE_BYTES)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; delete it") from None
    if not isinstance(note, dict) or not is_url(note.get("url")):
        raise ValueError(f"{path} has no URL; delete it")
    if not is_integer(note.get("limit_bytes"), 1):
        raise ValueError(f"{path} has no integer limit_bytes; delete it")
    return note


def _write_shared(path: Path, content: bytes) -> None:
    """Write a small file that other processes may write at the same time."""
    write_file(path, lambda part: part.write_bytes(content), shared=True)
