"""A plugin of pytest: from a time on, no test begins.

The variable FIBER_TESTS_UNTIL is the time, in seconds since the epoch. The files of tests that did
not begin are added to the file FIBER_TESTS_SKIPPED, one a line. `.ci/affected` sets both.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if time.time() < float(os.environ["FIBER_TESTS_UNTIL"]):
        return None
    with Path(os.environ["FIBER_TESTS_SKIPPED"]).open("a", encoding="utf-8") as file:
        file.write(f"{item.nodeid.partition('::')[0]}\n")
    return True
