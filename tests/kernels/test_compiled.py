"""The Triton kernels as compiled for chips that need not be there, in a process of its own.

The gated calls alone: every call on every chip takes an hour, and a command of its own.

`python -m tests.kernels.compiled` prints what these tests check, as tables.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    # Triton reads the variable when a kernel is decorated; interpreted kernels do not compile.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "tests/kernels/compiled"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print("\n".join(done.stdout.splitlines()[-30:]))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_compiled_kernels():
    run()
