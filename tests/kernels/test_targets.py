"""Tests that need a separate pytest run have a make target."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "folder", "interpret"),
    [("test-all", "triton", 1), ("test-interpreter", "triton", 1), ("kernels-aot", "compiled", 0)],
)
def test_make_target_runs_the_folder(target, folder, interpret):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    commands = done.stdout.replace("\\\n", "").splitlines()
    found = [
        f"TRITON_INTERPRET={interpret} " in command
        for command in commands
        if f"tests/kernels/{folder} " in f"{command} "
    ]
    assert found == [True], done.stderr
