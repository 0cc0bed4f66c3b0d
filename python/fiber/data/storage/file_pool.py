"""Files that are read at places, by any thread, with few of them open at once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

#: Such files of this process that are open at once.
OPEN_FILES = 64

#: A path, and of the file there size, time of change and, where that counts, device and number.
_Key = tuple[Path, tuple[int, ...]]


class ChangedFileError(ValueError):
    """A file is not the one that was opened."""

    #: What a loader counts a sample as that cannot be read for it (`Skipped`).
    status = "corrupt"


class _OpenFile:
    """A file descriptor, closed when the last one who reads from it lets it go."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class _Pool:
    """The files that are open, the one that was used last at the end."""

    def __init__(self) -> None:
        self.files: OrderedDict[_Key, _OpenFile] = OrderedDict()
        self.lock = threading.Lock()

    def unlock(self) -> None:
        """Forget who held the lock: in a forked process that thread is not there."""
        self.lock = threading.Lock()

    def get(self, pooled: PooledFile) -> _OpenFile:
        """Return the open file, checked not to have changed; one that has is not kept."""
        key = (pooled.path, pooled.stamp)
        with self.lock:
            opened = self.files.get(key) or self._open(pooled, key)
            self.files.move_to_end(key)
        if pooled.is_same(os.fstat(opened.descriptor)):
            return opened
        # It was written over while it was open; what has its name by now may be the right one.
        with self.lock:
            if self.files.get(key) is opened:
                del self.files[key]
            return self.files.get(key) or self._open(pooled, key)

    def _open(self, pooled: PooledFile, key: _Key) -> _OpenFile:
        opened = _OpenFile(pooled.path)
        pooled.check(os.fstat(opened.descriptor))
        self.files[key] = opened
        while len(self.files) > OPEN_FILES:
            # A thread that reads from it keeps it open until it is done.
            self.files.popitem(last=False)
        return opened


_POOL = _Pool()
os.register_at_fork(after_in_child=_POOL.unlock)


class PooledFile:
    """A file that does not change while it is used.

    Reads have no position (pread), so that threads share one open file; at most `OPEN_FILES` are
    open, and no thread keeps one.

    Args:
        path: of the file.
        is_held: whether someone else holds it open or mapped too: then another file of the same
            size and time that has come to its place is a change as well.

    Raises:
        FileNotFoundError: if it is missing.

    Attributes:
        bytes: its size.
        changed: its time of change in nanoseconds.
        stamp: what must stay the same.
    """

    def __init__(self, path: Path, is_held: bool = False) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        self.path = path
        self._is_held = is_held
        self.stamp = self._stamp_of(path.stat())
        self.bytes, self.changed = self.stamp[:2]

    def read(self, start: int, size: int) -> bytes:
        """Read bytes from a place.

        Raises:
            OSError: if the file cannot be read.
            ChangedFileError: if it has changed since it was opened, with its name.
        """
        file = _POOL.get(self)
        parts, done = [], 0
        while done < size:
            part = os.pread(file.descriptor, size - done, start + done)
            if not part:
                raise ChangedFileError(
                    f"{self.path} ends at byte {start + done}, where {size} bytes from byte {start}"
                    " on were expected: it has been cut since it was opened"
                )
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_now(self) -> None:
        """Check that the file has not changed, for one who reads it in another way.

        Raises:
            OSError: if the file cannot be opened.
            ChangedFileError: if it has changed since it was opened, with its name.
        """
        _POOL.get(self)

    def _stamp_of(self, found: os.stat_result) -> tuple[int, ...]:
        stamp = (found.st_size, found.st_mtime_ns)
        return (*stamp, found.st_dev, found.st_ino) if self._is_held else stamp

    def is_same(self, found: os.stat_result) -> bool:
        """Tell whether the file is the one that was opened."""
        return self._stamp_of(found) == self.stamp

    def check(self, found: os.stat_result) -> None:
        """Check that the file is the one that was opened.

        Raises:
            ChangedFileError: if its size or time of change is another, or where that counts the
                file.
        """
        if self.is_same(found):
            return
        if found.st_size != self.bytes:
            change = f"{self.bytes} bytes then, {found.st_size} now"
        elif found.st_mtime_ns != self.changed:
            change = (
                f"written at {self.changed / 1e9:.6f} s then, at {found.st_mtime_ns / 1e9:.6f} s"
                f" now, and {self.bytes} bytes as before"
            )
        else:
            change = f"another file of {self.bytes} bytes has its place now"
        raise ChangedFileError(
            f"{self.path} has changed since it was opened: {change}; open the data again"
        )


def forget_open_files() -> None:
    """Close every file of the pool that nobody reads from."""
    _POOL.files.clear()
