"""Work of Python code, counted: allocated bytes, opcodes and calls.

Three counters, since a loop in C shows in one of them only, if at all. Bytes are all that are
requested from Python's allocators, not the most that are in use: a copy of a long string counts as
long as it is. What allocates nothing and calls nothing, such as a comparison of long strings or the
hash of a tuple, is not counted; only a limit of processor time sees it.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_SOURCE = Path(__file__).with_name("counters.c")


class Work(NamedTuple):
    """Work of a call."""

    allocated_bytes: int
    opcodes: int
    #: Calls of functions in Python and in C.
    calls: int


def work_of(call: Callable[[], object]) -> Work:
    """Count the work of a call, which must not raise."""
    library = _library()
    # Python 3.12 reports opcodes only if a frame asked for them before the tracer is set.
    sys._getframe().f_trace_opcodes = True
    library.start(True)
    try:
        call()
    finally:
        library.stop()
    return Work(*(ctypes.c_ulonglong * len(Work._fields)).in_dll(library, "counts"))


@cache
def _library() -> Any:
    """Compile the counters with the C compiler that links the extension."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counters.so"
        command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(path), str(_SOURCE)]
        # The symbols of Python are those of the process that loads it.
        command += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        subprocess.run(command, check=True)
        library = ctypes.PyDLL(str(path))
    library.start.argtypes = [ctypes.py_object]
    library.start.restype = library.stop.restype = None
    return library
