"""The Triton kernels in Triton's interpreter: their tests need a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*choice: str) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    # One thread: the products are too small to share, and threads that wait for work cost more.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/kernels/triton", *choice]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print("\n".join(done.stdout.splitlines()[-30:]))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_kernels_in_the_interpreter():
    run("-m", "not slow")


@pytest.mark.slow
def test_kernels_of_large_windows_in_the_interpreter():
    run("-m", "slow")
