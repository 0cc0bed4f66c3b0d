"""The folder of uploads and results of a page."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds after which uploads and results are deleted, and how often that is checked.
_KEEP_SECONDS, _CHECK_SECONDS = 3600, 600


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Give Gradio a folder for uploads and results, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="fiber-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield Path(folder)


@contextmanager
def deleting_old(folder: Path) -> Iterator[None]:
    """Delete files of a folder an hour after they were written, but those that are there now.

    These are the examples of the page.
    """
    kept = set(folder.rglob("*"))
    ended = threading.Event()

    def check() -> None:
        while not ended.wait(_CHECK_SECONDS):
            delete_old(folder, kept, time.time() - _KEEP_SECONDS)

    thread = threading.Thread(target=check, name="fiber-uploads", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def delete_old(folder: Path, kept: Collection[Path], before: float) -> None:
    """Delete files that were written before a time, and folders that are then empty.

    Args:
        folder: folder to search.
        kept: files and folders to keep.
        before: seconds since the epoch.
    """
    # Files before the folder that they are in.
    for path in sorted(folder.rglob("*"), reverse=True):
        # Another request may delete it, or write into the folder.
        with suppress(OSError):
            if path in kept or path.stat().st_mtime >= before:
                continue
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
