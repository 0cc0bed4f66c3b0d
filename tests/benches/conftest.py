import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture(scope="module")
def bench(request) -> ModuleType:
    """The bench that a test file is named after, as in test_starts.py."""
    sys.path.insert(0, str(BENCHES))
    try:
        return importlib.import_module(request.module.__name__.rpartition(".test_")[2])
    finally:
        sys.path.remove(str(BENCHES))
