"""Fuzz one target in Python, guided by the coverage of the package, with atheris.

Command: python -m tests.fuzz.guided TARGET [options and folders of libFuzzer]
An input that takes more than five seconds or 500 MB is a finding, too; so is a structured one that
takes more than 2.5 times as long when it is twice as large.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["fiber", "pickletools"]):
    from tests.fuzz.structured import GROWTH_SECONDS, MAX_GROWTH
    from tests.fuzz.targets import TARGETS

#: CPU time in seconds and memory in KiB that an input may take.
_MOST_SECONDS, _MOST_MEMORY = 5.0, 500_000


def main() -> None:
    """Run libFuzzer; it ends the process."""
    target = TARGETS[sys.argv[1]]
    folder = Path(tempfile.mkdtemp(prefix="fiber-fuzz-"))
    for seed in target.seeds():
        # What a reader sets up once is not counted for the first input.
        target.read(seed, folder)

    def read(data: bytes) -> None:
        memory, start = _peak(), time.process_time()
        target.read(data, folder)
        seconds = time.process_time() - start
        assert seconds <= _MOST_SECONDS, f"{seconds:.1f} s"
        assert _peak() - memory <= _MOST_MEMORY, f"{(_peak() - memory) / 1000:.0f} MB"
        if target.growth is not None and seconds >= GROWTH_SECONDS:
            growth = target.growth(data, folder)
            assert growth <= MAX_GROWTH, f"twice the size takes {growth:.1f} times as long"

    atheris.Setup([sys.argv[0], *sys.argv[2:]], read)
    atheris.Fuzz()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
