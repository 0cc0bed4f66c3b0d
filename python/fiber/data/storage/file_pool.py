"""Thread-safe positioned reads from many files, with a bounded number of open descriptors."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

#: Maximum number of open files per process.
OPEN_FILES = 64

#: Path, size and modification time; also device and inode if the file is held.
_Key = tuple[Path, tuple[int, ...]]


class ChangedFileError(ValueError):
    """Raised if a file has changed since it was opened."""

    #: `Skipped.status` of a sample that cannot be read for this reason.
    status = "corrupt"


class _OpenFile:
    """File descriptor that is closed when its last reader drops it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class _Pool:
    """LRU cache of open files."""

    def __init__(self) -> None:
        self.files: OrderedDict[_Key, _OpenFile] = OrderedDict()
        self.unlock()

    def unlock(self) -> None:
        """Replace the lock after a fork, since its holder may not exist in the child process."""
        self.lock = threading.Lock()

    def get(self, pooled: PooledFile) -> _OpenFile:
        """Return the open file. If it was overwritten, drop it and reopen the path."""
        key = (pooled.path, pooled.stamp)
        with self.lock:
            opened = self.files.get(key) or self._open(pooled, key)
            self.files.move_to_end(key)
        if pooled.is_same(os.fstat(opened.descriptor)):
            return opened
        # The open file was overwritten; the file now at its path may be the right one.
        with self.lock:
            if self.files.get(key) is opened:
                del self.files[key]
            return self.files.get(key) or self._open(pooled, key)

    def _open(self, pooled: PooledFile, key: _Key) -> _OpenFile:
        opened = _OpenFile(pooled.path)
        pooled.check(os.fstat(opened.descriptor))
        self.files[key] = opened
        while len(self.files) > OPEN_FILES:
            # A thread that still reads from the file keeps it open.
            self.files.popitem(last=False)
        return opened


_POOL = _Pool()
os.register_at_fork(after_in_child=_POOL.unlock)


class PooledFile:
    """A file that must not change while it is used.

    Reads are positioned (pread), so threads share one descriptor. At most `OPEN_FILES` files are
    open at once. If `is_held` is True (the file is also mapped or open elsewhere), a replacement
    with the same size and modification time also counts as a change.

    Raises:
        FileNotFoundError: if the file does not exist.

    Attributes:
        bytes: size in bytes.
        changed: modification time in nanoseconds.
        stamp: file attributes that must not change.
    """

    def __init__(self, path: Path, is_held: bool = False) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        self.path = path
        self._is_held = is_held
        self.stamp = self._stamp_of(path.stat())
        self.bytes, self.changed = self.stamp[:2]

    def read(self, start: int, size: int) -> bytes:
        """Read `size` bytes from offset `start`.

        Raises:
            ValueError: if the file has no such bytes.
            ChangedFileError, OSError: see `check_now`.
        """
        file = _POOL.get(self)
        if start < 0 or size < 0 or start + size > self.bytes:
            # `os.pread` would allocate `size` bytes first.
            raise ValueError(
                f"{self.path} has {self.bytes} bytes; expected {size} bytes from byte {start}"
            )
        parts, done = [], 0
        while done < size:
            part = os.pread(file.descriptor, size - done, start + done)
            if not part:
                raise ChangedFileError(
                    f"{self.path} has been truncated since it was opened: expected {size} bytes"
                    f" from byte {start}, but the file ends at byte {start + done}"
                )
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_now(self) -> None:
        """Raise `ChangedFileError` if the file has changed, or OSError if it cannot be opened."""
        _POOL.get(self)

    def _stamp_of(self, status: os.stat_result) -> tuple[int, ...]:
        stamp = (status.st_size, status.st_mtime_ns)
        return (*stamp, status.st_dev, status.st_ino) if self._is_held else stamp

    def is_same(self, status: os.stat_result) -> bool:
        """Return whether `status` describes the file that was opened."""
        return self._stamp_of(status) == self.stamp

    def check(self, status: os.stat_result) -> None:
        """Raise `ChangedFileError` unless `status` describes the file that was opened."""
        if self.is_same(status):
            return
        if status.st_size != self.bytes:
            change = f"it had {self.bytes} bytes and now has {status.st_size}"
        elif status.st_mtime_ns != self.changed:
            change = (
                f"its modification time was {self.changed / 1e9:.6f} s and now is"
                f" {status.st_mtime_ns / 1e9:.6f} s (it still has {self.bytes} bytes)"
            )
        else:
            change = f"it was replaced by a different file of {self.bytes} bytes"
        raise ChangedFileError(
            f"{self.path} has changed since it was opened: {change}; open the data again"
        )
