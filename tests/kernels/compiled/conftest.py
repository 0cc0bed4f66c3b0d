"""Kernels are compiled in a process of their own; see `tests/kernels/test_compiled.py`."""

import os

#: Triton reads the variable when a kernel is decorated: another process may have asked for the
#: interpreter, and kernels of such a process cannot be compiled.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "0" else ["test_*.py"]
