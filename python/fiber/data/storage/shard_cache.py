"""Local cache of the shards of packed folders at URLs, shared by the processes of a node.

A shard is downloaded as a whole, in blocks that are checked by their CRC-32s, when it is first
read or ahead of that. One process downloads it, the others wait for its lock. A download that was
cut goes on after the last whole block, in any process. If the cache is full, the shards that were
read least recently are deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fiber.atomic_io import DISK_FULL, PART
from fiber.data.storage.pack_description import DESCRIPTION, file_of
from fiber.data.storage.remote import RemoteError, RemoteFolder
from fiber.messages import printable

#: Number of shards that a process downloads at a time.
DOWNLOADS = 4
#: Time between two notes that a shard is in use.
TOUCH_SECONDS = 2.0
#: Number of times that a shard is fetched for one read, if others delete it meanwhile.
_FETCHES = 5
#: Suffix of the note next to the folder of a pack, which has its URL.
NOTE_SUFFIX = ".remote.json"
#: Suffix of the files of a pack that may be deleted.
SHARD_SUFFIX = ".tar"


class ShardCache:
    """A folder in which the files of packs take `limit_bytes` at most."""

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
        for path, status in self._files():
            if path == part:
                continue
            used += _final_bytes(path, status.st_size)
            if path.suffix == SHARD_SUFFIX:
                shards.append((status.st_mtime_ns, path, _final_bytes(path, status.st_size)))
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
        # Of packs only: the folder may have files of the user.
        for note in self.folder.glob(f"*{NOTE_SUFFIX}"):
            for root, _, names in os.walk(self.folder / note.name.removesuffix(NOTE_SUFFIX)):
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
        with explained_as_remote(path):
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
        if (actual := digest.hexdigest()) != entry["sha256"]:
            os.ftruncate(descriptor, 0)
            raise RemoteError(
                f"{self.remote.url}/{entry['file']} has the SHA-256 checksum {actual}; expected"
                f" {printable(entry['sha256'], len(actual))} ({DESCRIPTION})"
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
        """Let a thread fetch the shard, or keep it in the cache as one that was just read."""
        # Else it would be deleted before shards that have been read, but will not be again.
        with suppress(PermissionError):
            try:
                os.utime(self.path)
            except FileNotFoundError:
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
            if shard.path in self._queued:
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


@contextmanager
def explained_as_remote(path: Path) -> Iterator[None]:
    """Turn an error of the cache's disk into a `RemoteError` that names a file."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in DISK_FULL
        hint = "; expected a cache (--cache, --cache-gb) that fits on its disk" if is_full else ""
        raise RemoteError(
            f"{path} cannot be stored in the cache ({error.strerror or error}){hint}"
        ) from error
