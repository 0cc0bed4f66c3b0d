"""Local cache of packed folders at URLs, shared by the processes of a node.

    CACHE/NAME-FINGERPRINT/               a packed folder; its index is whole, shards come and go
    CACHE/NAME-FINGERPRINT.remote.json    its URL and the size of the cache

A shard is downloaded as a whole, in blocks that are checked by their CRC-32s, when it is first
read or ahead of that. One process downloads it, the others wait for its lock. A download that was
cut goes on after the last whole block, in any process. If the cache is full, the shards that were
read least recently are deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fiber.atomic_io import DISK_FULL, JSON_ERRORS, PART, write_file
from fiber.data.record import AnyPath
from fiber.data.storage.pack_description import (
    DESCRIPTION,
    file_of,
    files_of,
    is_pack,
    read_description,
)
from fiber.data.storage.remote import RemoteError, RemoteFolder, is_url
from fiber.data.storage.shard_order import Shard

#: Default size of the cache in GB (10 ** 9 bytes).
CACHE_GB = 100.0
#: Number of shards that a process downloads at a time.
DOWNLOADS = 4
#: Time between two notes that a shard is in use.
TOUCH_SECONDS = 2.0
#: Number of times that a shard is fetched for one read, if others delete it meanwhile.
_FETCHES = 5
_SHARD_SUFFIX = ".tar"
_REMOTE_SUFFIX = ".remote.json"


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
        ValueError: if `url` is not a URL, the folder is of an earlier version, or `cache_gb` is not
            positive.
    """
    if not is_url(url):
        raise ValueError(f"url is {str(url)!r}; expected a URL such as 's3://bucket/packed'")
    limit_bytes = int((CACHE_GB if cache_gb is None else cache_gb) * 1e9)
    if limit_bytes < 1:
        raise ValueError(f"cache_gb is {cache_gb}; expected a positive number")
    folder = Path(default_cache() if cache is None else cache).absolute()
    remote = RemoteFolder(url)
    content, description = remote.description()
    if description["version"] < 2:
        raise ValueError(
            f"{remote.url}/{DESCRIPTION} is of version {description['version']}, without checksums"
            " of blocks; expected version 2 or later; pack the data again"
        )
    name = remote.url.rpartition("/")[2] or "pack"
    mirror = folder / f"{name}-{description['fingerprint'][:16]}"
    pack = CachedPack(mirror, remote, ShardCache(folder, limit_bytes), description["block_bytes"])
    with _explained(mirror):
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


def shards_of(folder: Path, shards: Sequence[dict[str, Any]]) -> list[Shard] | None:
    """Return the shards of a folder that `remote_pack` returned, or None for other folders.

    Raises:
        ValueError: if a path in the description is outside of the folder.
    """
    stored = _stored_remote(folder)
    if stored is None:
        return None
    cache = ShardCache(folder.parent, stored["limit_bytes"])
    block_bytes = read_description(folder)["block_bytes"]
    pack = CachedPack(folder, RemoteFolder(stored["url"]), cache, block_bytes)
    return [CachedShard(pack, shard) for shard in shards]


def missing_bytes(shards: Sequence[Shard], at_a_time: int) -> int:
    """Return how many bytes the cache is too small for `at_a_time` of the shards, or 0."""
    cached = [shard for shard in shards if isinstance(shard, CachedShard)]
    sizes = sorted((shard.bytes for shard in cached), reverse=True)
    packs = {shard.pack.folder: shard.pack for shard in cached}
    index_bytes = sum(
        entry["bytes"]
        for folder in packs
        for entry in files_of(read_description(folder))
        if not entry["file"].endswith(_SHARD_SUFFIX)
    )
    limit = min((pack.cache.limit_bytes for pack in packs.values()), default=0)
    return max(0, sum(sizes[:at_a_time]) + index_bytes - limit)


def check_room(shards: Sequence[Shard], order: str, at_a_time: int) -> None:
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


class ShardCache:
    """A folder whose files take `limit_bytes` at most."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes and threads from creating, renaming or deleting files."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def make_room(self, part: Path, name: str, size: int) -> None:
        """Delete the least recently read shards until a file fits; call it while `locked`.

        Args:
            part: path of the unfinished file.
            name: name of the file in messages.
            size: size in bytes when it is finished.

        Raises:
            RemoteError: if it does not fit into the cache without other files.
        """
        used, shards = 0, []
        for path, found in self._files():
            if path == part:
                continue
            used += _final_bytes(path, found.st_size)
            if path.suffix == _SHARD_SUFFIX:
                shards.append((found.st_mtime_ns, path, _final_bytes(path, found.st_size)))
        shards.sort(reverse=True)
        while used + size > self.limit_bytes:
            if not shards:
                raise RemoteError(
                    f"{name} of {size} bytes does not fit into the cache {self.folder}, which is"
                    f" limited to {self.limit_bytes} bytes; {used} bytes are taken by indexes of"
                    " packs and by files that are being downloaded; expected a larger cache"
                    " (--cache-gb), or folders of other packs deleted there"
                )
            _, path, found_bytes = shards.pop()
            if _delete(path):
                used -= found_bytes

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for root, _, names in os.walk(self.folder):
            for name in names:
                path = Path(root, name)
                with suppress(FileNotFoundError):
                    yield path, path.stat()


class CachedPack:
    """A packed folder in the cache."""

    def __init__(
        self, folder: Path, remote: RemoteFolder, cache: ShardCache, block_bytes: int
    ) -> None:
        self.folder, self.remote, self.cache = folder, remote, cache
        self.block_bytes = block_bytes

    def path(self, entry: dict[str, Any]) -> Path:
        """Return the path of a file; see `file_of`."""
        return file_of(self.folder, entry)

    def is_whole(self, entry: dict[str, Any]) -> bool:
        """Return whether a file is in the cache."""
        try:
            return self.path(entry).stat().st_size == entry["bytes"]
        except FileNotFoundError:
            return False

    def fetch(self, entry: dict[str, Any], *, wait: bool = True) -> None:
        """Download a file unless it is in the cache.

        If another process or thread downloads it, wait for that, or return at once if `wait` is
        False.

        Raises:
            RemoteError: if it cannot be downloaded or stored.
        """
        path = self.path(entry)
        part = path.with_name(f"{PART}{entry['bytes']}-{path.name}")
        with _explained(path):
            while not self.is_whole(entry):
                descriptor = self._open_part(part, entry)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    # Otherwise another process finished or deleted it meanwhile.
                    if _is_at(descriptor, part):
                        self._finish(descriptor, part, entry)
                except BlockingIOError:
                    return
                finally:
                    os.close(descriptor)

    def _finish(self, descriptor: int, part: Path, entry: dict[str, Any]) -> None:
        """Complete an unfinished file and give it its name."""
        if self.is_whole(entry):
            part.unlink()
            return
        try:
            self._fill(descriptor, entry)
        except OSError as error:
            if error.errno in DISK_FULL:
                part.unlink()
            raise
        with self.cache.locked():
            os.utime(descriptor)
            part.replace(self.path(entry))

    def _open_part(self, part: Path, entry: dict[str, Any]) -> int:
        """Open an unfinished file, for which there is room in the cache from now on."""
        with self.cache.locked():
            self.cache.make_room(part, entry["file"], entry["bytes"])
            return os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _fill(self, descriptor: int, entry: dict[str, Any]) -> None:
        """Download what an unfinished file lacks; raise RemoteError if it is then wrong."""
        digest, size, block = hashlib.sha256(), entry["bytes"], self.block_bytes
        present = os.fstat(descriptor).st_size
        for number, crc32 in enumerate(entry["crc32s"]):
            start, end = number * block, min((number + 1) * block, size)
            data = os.pread(descriptor, end - start, start) if end <= present else b""
            if len(data) != end - start or zlib.crc32(data) != crc32:
                data = self.remote.read(entry["file"], start, end, crc32, size)
                _write(descriptor, data, start)
            digest.update(data)
        os.ftruncate(descriptor, size)
        if (found := digest.hexdigest()) != entry["sha256"]:
            os.ftruncate(descriptor, 0)
            raise RemoteError(
                f"{self.remote.url}/{entry['file']} has the SHA-256 checksum {found}; expected"
                f" {entry['sha256']} ({DESCRIPTION})"
            )


class CachedShard:
    """A shard of a `CachedPack`, fetched when it is read.

    Attributes:
        path: path in the cache; the file may not exist.
        bytes: size in bytes.
    """

    def __init__(self, pack: CachedPack, entry: dict[str, Any]) -> None:
        self.pack, self._entry = pack, entry
        self.path, self.bytes = pack.path(entry), int(entry["bytes"])
        self._touched = 0.0

    def read(self, start: int, size: int) -> bytes:
        """Read `size` bytes from offset `start`.

        Raises:
            ValueError: if the shard has no such bytes.
            RemoteError: if it cannot be fetched.
        """
        if start < 0 or size < 0 or start + size > self.bytes:
            raise ValueError(
                f"{self.path} has {self.bytes} bytes; expected {size} bytes from byte {start}"
            )
        for _ in range(_FETCHES):
            if (data := self._read_cached(start, size)) is not None:
                return data
            self.pack.fetch(self._entry)
        raise RemoteError(
            f"{self.path} was deleted from the cache {_FETCHES} times while it was read; expected a"
            f" larger cache than {self.pack.cache.limit_bytes} bytes (--cache-gb)"
        )

    def fetch_ahead(self) -> None:
        """Let a thread fetch the shard, if it is not in the cache."""
        _DOWNLOADS.add(self)

    def fetch_unless_busy(self) -> None:
        """Fetch the shard unless it is in the cache, or being fetched by others."""
        self.pack.fetch(self._entry, wait=False)

    def discard(self) -> None:
        """Delete the file from the cache, since its content is wrong."""
        self.path.unlink(missing_ok=True)

    def _read_cached(self, start: int, size: int) -> bytes | None:
        """Read from the cache; return None if the file is not there."""
        # Opened for every read: an open file that others delete would still take space.
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            now = time.monotonic()
            if now - self._touched > TOUCH_SECONDS:
                self._touched = now
                with suppress(PermissionError):
                    os.utime(descriptor)
            data = os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)
        if len(data) < size:
            # Truncated by someone; a file in the cache is whole when it gets its name.
            self.discard()
            return None
        return data


class _Downloads:
    """Threads that fetch shards ahead."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget threads and shards, as in a child process, which has no threads of its parent."""
        self._queue = SimpleQueue[CachedShard]()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._queued: set[Path] = set()

    def add(self, shard: CachedShard) -> None:
        with self._lock:
            if shard.path in self._queued or shard.path.exists():
                return
            self._queued.add(shard.path)
            if len(self._threads) < DOWNLOADS:
                # Daemons, so that the interpreter does not wait for a download at its end.
                name = f"fiber-download-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(shard)

    def _run(self) -> None:
        while True:
            shard = self._queue.get()
            try:
                # The read that needs the shard tries again, and reports what is wrong.
                with suppress(RemoteError):
                    shard.fetch_unless_busy()
            finally:
                with self._lock:
                    self._queued.discard(shard.path)


_DOWNLOADS = _Downloads()
os.register_at_fork(after_in_child=_DOWNLOADS.reset)


def _remote_file(mirror: Path) -> Path:
    # Not in the folder: one that came from elsewhere must not choose a URL.
    return mirror.with_name(mirror.name + _REMOTE_SUFFIX)


def _stored_remote(folder: Path) -> dict[str, Any] | None:
    path = _remote_file(folder.absolute())
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except JSON_ERRORS as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it") from None
    if not isinstance(found, dict) or not is_url(found.get("url")):
        raise ValueError(f"{path} has no URL; delete it")
    if type(found.get("limit_bytes")) is not int:
        raise ValueError(f"{path} has no integer limit_bytes; delete it")
    return found


def _final_bytes(path: Path, size: int) -> int:
    """Return the size of a file when it is finished; the name of an unfinished one has it."""
    if not path.name.startswith(PART):
        return size
    stated = path.name.removeprefix(PART).partition("-")[0]
    return max(size, int(stated)) if stated.isdecimal() else size


def _delete(path: Path) -> bool:
    """Delete a file unless it is being downloaded; return whether it was deleted."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if path.name.startswith(PART):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write(descriptor: int, data: bytes, start: int) -> None:
    """Write data from an offset of an open file."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], start + done)


def _write_shared(path: Path, content: bytes) -> None:
    """Write a small file that other processes may write at the same time."""
    write_file(path, lambda part: part.write_bytes(content), shared=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the cache's disk into a `RemoteError` that names a file."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in DISK_FULL
        hint = "; expected a cache (--cache, --cache-gb) that fits on its disk" if is_full else ""
        raise RemoteError(
            f"{path} cannot be stored in the cache ({error.strerror or error}){hint}"
        ) from error
