"""Write files and folders atomically, and read JSON.

Output is written under a temporary name and renamed when complete, so a crash, a full disk or
Ctrl-C never leaves a partial file under the final name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

#: Prefix of temporary names.
PART = ".part-"

#: Error numbers for a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Errors raised by `json.loads` for invalid JSON, very deep nesting, or very long integers.
JSON_ERRORS = (ValueError, RecursionError)

#: A string of JSON. One without a closing quote reaches to the end of the text: to look for it from
#: each quote after that would take quadratic time.
_JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)

#: Minimum number of bytes for each value of a file of maximum size.
_BYTES_PER_VALUE = 16

#: Number of characters before and after a mistake in JSON that are looked at.
_MAX_AROUND = 100
#: What other languages write where a value of JSON is expected, and how JSON does.
_IN_JSON = {
    "'": "use double quotes",
    "None": "write None as null",
    "True": "write True as true",
    "False": "write False as false",
    "\ufeff": "save it as UTF-8 without a byte order mark",
    **dict.fromkeys(("#", "//", "/*"), "remove the comment, which JSON does not have"),
}

_SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_target(path: Path) -> None:
    """Check that `path` either does not exist or is a regular file.

    Renaming a temporary file to `path` would replace whatever is there, even a device.

    Raises:
        IsADirectoryError: if `path` is a folder.
        FileExistsError: if `path` is a pipe, a device, a socket, or an open file of a process (such
            as /dev/stdout).
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file")
    expected = "expected a new name or the name of a regular file"
    if path.exists() and not path.is_file():
        kind = _SPECIAL_FILES.get(stat.S_IFMT(path.stat().st_mode), "not a regular file")
        raise FileExistsError(f"{path} is {kind}; {expected}")
    # stdout redirected to a file looks like a regular file.
    parent = path.parent.resolve()
    if parent == Path("/dev") or Path("/proc") in (parent, *parent.parents):
        raise FileExistsError(f"{path} is in {parent}, which has no regular files; {expected}")


def write_file(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> None:
    """Write a file atomically.

    Args:
        path: final name; an existing regular file is replaced.
        write: called with the temporary path; writes the content.
        shared: use a different temporary name in every process and thread, for files that several
            of them may write at once. A killed process leaves its temporary file behind.

    Raises:
        OSError: if `path` is not a regular file or cannot be written; `path` is then unchanged.
    """
    check_target(path)
    own = f"{os.getpid()}-{threading.get_ident()}-" if shared else ""
    part = path.with_name(f"{PART}{own}{path.name}")
    with explain_write_errors(path):
        try:
            write(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to `path` if the block succeeds.

    On any error or interruption, the temporary folder is deleted.

    Raises:
        OSError: if the folder cannot be created, or `path` exists and is not empty.
    """
    part = path.with_name(PART + path.name)
    # A killed process may have left the temporary folder behind.
    shutil.rmtree(part, ignore_errors=True)
    with made_folder(path.parent):
        try:
            part.mkdir()
            yield part
            if path.exists():
                path.rmdir()
            part.rename(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Create a folder and its parents, unless they exist, for files that the block writes.

    On any error or interruption, those that were created are deleted, unless they have files.

    Raises:
        OSError: if the folder cannot be created.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with explain_write_errors(path, DISK_FULL):
            path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for folder in new:
                folder.rmdir()
        raise


@contextmanager
def whole_or_none(files: Iterable[Path]) -> Iterator[None]:
    """Delete the files that the block writes, of which none may exist before, if it fails."""
    try:
        yield
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise


@contextmanager
def explain_write_errors(path: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """Re-raise an OSError from the block with the name of the file or folder being written.

    Of several such blocks in each other, the outermost one names what is written.
    `only` restricts this to the given error numbers; use `DISK_FULL` if the block also reads files.
    """
    try:
        yield
    except BaseException as error:
        cause = system_error(error)
        cause = getattr(cause, "explained", cause)
        if cause is None or (only is not None and cause.errno not in only):
            raise
        name = str(path)
        # Name the file in a folder, unless only its temporary name is known.
        if cause.errno in DISK_FULL and cause.filename and PART not in str(cause.filename):
            name = str(cause.filename)
        advice = full_disk_advice(cause, path)
        message = f"{name} could not be written ({cause.strerror or cause}){advice}"
        # Pillow raises OSError without an errno.
        named = OSError(cause.errno, message) if cause.errno else OSError(message)
        named.explained = cause  # type: ignore[attr-defined]
        raise named from error


def system_error(error: BaseException | None) -> OSError | None:
    """Return the error of the system behind an error, or None if there is none.

    torch.save hides it: what it raises is a RuntimeError about positions in the file.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def full_disk_advice(error: OSError, path: Path) -> str:
    """Return what can be done if writing to `path` failed for a full disk, or an empty string."""
    if error.errno == errno.EFBIG:
        return "; see `ulimit -f`, the limit on the size of files"
    if error.errno not in DISK_FULL:
        return ""
    folder = next((each for each in (path, *path.parents) if each.exists()), Path())
    free = shutil.disk_usage(folder).free
    return f"; {free / 1e6:,.1f} MB are free: free some space and run the command again"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def check_regular_file(path: Path, max_bytes: int | None = None) -> None:
    """Check that a file to read is a regular file of at most `max_bytes`.

    Opening a pipe without a writer would block, and reading a device might never end.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if `path` is a folder, a pipe, a device or a socket, or the file is too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = _SPECIAL_FILES.get(stat.S_IFMT(status.st_mode), "a folder")
        raise ValueError(f"{path} is {kind}; expected a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise ValueError(f"{path} has {status.st_size} bytes; expected at most {max_bytes}")


def read_json(path: Path, max_bytes: int | None = None) -> Any:
    """Read a JSON file, of at most `max_bytes` and one value for each 16 of these.

    Parsed, a value of two characters such as {} takes 72 bytes.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a regular file of at most `max_bytes`, has too many values, or is
            not valid JSON.
    """
    check_regular_file(path, max_bytes)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if max_bytes is not None:
        _check_count(text, path, max_bytes // _BYTES_PER_VALUE)
    try:
        return json.loads(text)
    except JSON_ERRORS as error:
        raise ValueError(f"{path} is not valid JSON: {describe_json_error(error)}") from error


def _check_count(text: str, path: Path, most: int) -> None:
    """Raise ValueError if a JSON text has more than about `most` values."""
    if sum(map(text.count, "[{,")) <= most:
        return
    # Those in strings are no values. Without the strings, the text is shorter.
    outside = _JSON_STRING.sub("", text)
    if (count := sum(map(outside.count, "[{,"))) > most:
        raise ValueError(
            f"{path} has {count:,} commas and opening brackets; expected at most {most:,}"
        )


def describe_json_error(error: Exception) -> str:
    """Describe why a text is not JSON: what and where, and how to mend common mistakes."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    before, after = (
        error.doc[max(0, error.pos - _MAX_AROUND) : error.pos].rstrip(),
        error.doc[error.pos : error.pos + _MAX_AROUND].lstrip(),
    )
    advice = ""
    if not before and not after:
        return "it is empty"
    # Newer versions of Python give the place of the comma.
    if found := re.match(r",\s*([}\]])", before[-1:] * (before[-1:] == ",") + after):
        advice = f"; remove the comma before {found[1]!r}"
    elif not after:
        advice = "; add the closing bracket, or what else is missing at the end"
    elif error.msg.startswith("Extra data"):
        advice = "; save a file with one JSON object a line as .jsonl" * (after[0] in "{[")
    elif error.msg.startswith("Unterminated"):
        advice = "; add the closing quote, or what else is missing at the end"
    elif error.msg.startswith("Invalid control"):
        advice = r"; write a line break in a string as \n"
    elif error.msg.startswith("Invalid \\"):
        advice = r"; write a backslash as \\"
    else:
        advice = next(
            (f"; {hint}" for start, hint in _IN_JSON.items() if after.startswith(start)), ""
        )
    return f"{error}{advice}"


def flush_to_disk(file: IO[Any]) -> None:
    """Write the buffered content of an open file to the disk itself (fsync)."""
    file.flush()
    os.fsync(file.fileno())


def remove_parts(folder: Path) -> None:
    """Delete temporary files and folders that a killed process left behind in `folder`."""
    for part in folder.glob(f"{PART}*"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
