"""Errors that another start of the same command would end with, too."""

from __future__ import annotations

import errno

#: Exit code of bad input.
EXIT_CODE = 2

#: Errors of files that are caused by the input. Others, such as those of a full disk or of a
#: network file system, may be gone at the next start.
_ERRNOS = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EXDEV),
}


def is_bad_input(error: BaseException) -> bool:
    """Check whether an error is one of the input: a wrong value, missing data or library.

    An error that names ranks has the attribute `is_bad_input`: they failed for such an error.
    """
    if isinstance(error, (ConnectionError, ChildProcessError)):
        return getattr(error, "is_bad_input", False)
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _ERRNOS
    return isinstance(error, (ValueError, ModuleNotFoundError))
