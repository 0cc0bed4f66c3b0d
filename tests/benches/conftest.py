import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


def load_bench(name: str) -> ModuleType:
    """Import a file of benches/, which is no package."""
    sys.path.insert(0, str(BENCHES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHES))


@pytest.fixture(scope="module")
def bench(request) -> ModuleType:
    """The bench that a test file is named after, as in test_starts.py."""
    return load_bench(request.module.__name__.rpartition(".test_")[2])
