"""Tests of compiled kernels: `make kernels-aot`.

Triton reads TRITON_INTERPRET when a kernel is decorated; interpreted kernels cannot be compiled.
The tests are collected only if the variable is 0, so that they run in a separate process.
"""

import importlib.util
import os

if os.environ.get("TRITON_INTERPRET") != "0" or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
