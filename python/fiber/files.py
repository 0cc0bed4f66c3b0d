"""Files that are whole or not there, and the names under which one may be written."""

from __future__ import annotations

import errno
import json
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: How the temporary name of an unfinished file or folder begins.
PART = ".part-"

#: What else than a file or a folder can stand under a name.
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_target(path: Path) -> None:
    """Check that nothing is lost if a new file takes this name: it is free, or a regular file's.

    A file that is written under a temporary name and then renamed replaces whatever stands there,
    a device as well.

    Raises:
        IsADirectoryError: if the name is a folder's.
        FileExistsError: if it is that of a pipe, a device, a socket or one of a process's own open
            files (/dev/stdout).
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    expected = "expected a new name or that of a regular file"
    if path.exists() and not path.is_file():
        kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "no regular file")
        raise FileExistsError(f"{path} is {kind}; {expected}")
    # Standard output that goes to a file looks like that file.
    home = path.parent.resolve()
    if home == Path("/dev") or Path("/proc") in (home, *home.parents):
        raise FileExistsError(f"{path} stands in {home}, which holds no regular files; {expected}")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name and rename it when it is whole.

    Raises:
        OSError: if the name is that of something else than a regular file, or the file cannot be
            written; nothing of it is left then.
    """
    check_target(path)
    part = path.with_name(PART + path.name)
    with explained(path, lambda: part.unlink(missing_ok=True)):
        write(part)
        part.replace(path)


@contextmanager
def explained(path: Path, clean_up: Callable[[], None]) -> Iterator[None]:
    """Leave nothing half-written on any interruption; say which file a failed write was for."""
    try:
        yield
    except BaseException as error:
        clean_up()
        # torch.save hides the system's error inside a RuntimeError of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            advice = "; free some space and run the command again" if full else ""
            said = f"{path} could not be written ({cause.strerror or cause}){advice}"
            # Pillow's own errors have no number.
            raise (OSError(cause.errno, said) if cause.errno else OSError(said)) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is whole whenever it is there."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


#: What `json.loads` raises for a text that is no JSON, or that is JSON to do harm: thousands of
#: brackets, a number of thousands of digits.
JSON_ERRORS = (ValueError, RecursionError)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: if it is no JSON, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except JSON_ERRORS as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left under temporary names."""
    for part in folder.glob(f"{PART}*"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


#: Errors of the system by which nothing more can be written, in words.
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than is allowed here",
}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which gets its final name only when the block ends well.

    Whatever stops the block (an error, a full disk, Ctrl-C), the half-written folder is deleted.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    # Left by a process that was killed.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException as problem:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(problem, OSError) and problem.errno in FULL:
            where = problem.filename or str(folder)
            message = (
                f"{FULL[problem.errno]}; nothing was kept. Free some space or name another folder"
            )
            raise OSError(problem.errno, message, where) from problem
        raise
