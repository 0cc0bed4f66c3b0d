"""Files that are read at places, by any thread, with few of them open at once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

#: Such files of this process that are open at once.
OPEN_FILES = 64


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
        self.files: OrderedDict[tuple[Path, int, int], _OpenFile] = OrderedDict()
        self.lock = threading.Lock()

    def unlock(self) -> None:
        """Forget who held the lock: in a forked process that thread is not there."""
        self.lock = threading.Lock()

    def get(self, pooled: PooledFile) -> _OpenFile:
        key = (pooled.path, pooled.bytes, pooled.changed)
        with self.lock:
            if key not in self.files:
                opened = _OpenFile(pooled.path)
                pooled.check(os.fstat(opened.descriptor))
                self.files[key] = opened
                while len(self.files) > OPEN_FILES:
                    # A thread that reads from it keeps it open until it is done.
                    self.files.popitem(last=False)
            self.files.move_to_end(key)
            return self.files[key]


_POOL = _Pool()
os.register_at_fork(after_in_child=_POOL.unlock)


class PooledFile:
    """A file that does not change while it is used.

    Reads have no position (pread), so that threads share one open file; at most `OPEN_FILES` are
    open, and no thread keeps one.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if it is missing.

    Attributes:
        bytes: its size.
        changed: its time of change in nanoseconds.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        self.path = path
        found = path.stat()
        self.bytes, self.changed = found.st_size, found.st_mtime_ns

    def read(self, start: int, size: int) -> bytes:
        """Read bytes from a place.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it has changed since it was opened, with its name.
        """
        file = _POOL.get(self)
        # It may be written over while it is open.
        self.check(os.fstat(file.descriptor))
        parts, done = [], 0
        while done < size:
            part = os.pread(file.descriptor, size - done, start + done)
            if not part:
                raise ValueError(
                    f"{self.path} ends at byte {start + done}, where {size} bytes from byte {start}"
                    " on were expected: it has been cut since it was opened"
                )
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check(self, found: os.stat_result) -> None:
        """Check that the file is the one that was found.

        Raises:
            ValueError: if its size or time of change is another.
        """
        if (found.st_size, found.st_mtime_ns) != (self.bytes, self.changed):
            raise ValueError(
                f"{self.path} has changed since it was opened: {self.bytes} bytes then,"
                f" {found.st_size} now; open the data again"
            )


def forget_open_files() -> None:
    """Close every file of the pool that nobody reads from."""
    _POOL.files.clear()
