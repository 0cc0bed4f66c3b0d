"""Names under which a file may be written."""

from __future__ import annotations

import stat
from pathlib import Path

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
