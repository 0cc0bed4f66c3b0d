import json
import os
import sys
from pathlib import Path

import pytest

TURBO = Path(__file__).parents[2] / "benches" / "turbo"


@pytest.fixture
def run(monkeypatch):
    for path in (TURBO.parent, TURBO):
        monkeypatch.syspath_prepend(str(path))
    for name in ("rows", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    yield run
    del sys.modules["run"]


def test_the_program_is_where_cargo_put_it(run, monkeypatch, tmp_path):
    """Where CARGO_TARGET_DIR says, for one."""
    program = str(tmp_path / "elsewhere" / "turbo-bench")
    messages = [
        {"reason": "compiler-artifact", "target": {"name": "libc"}, "executable": None},
        {"reason": "compiler-artifact", "target": {"name": "turbo-bench"}, "executable": program},
        {"reason": "build-finished", "success": True},
    ]
    cargo = tmp_path / "cargo"
    printed = "\n".join(map(json.dumps, messages))
    cargo.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    cargo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert run.build() == program
