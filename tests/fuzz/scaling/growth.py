"""Growth of a reader's work with the size of its input, in forked processes with limits."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.forked import Ended, limit, run_forked
from tests.fuzz.generated.cases import Case
from tests.fuzz.scaling.counters import Work, work_of

#: Sizes of a case: each is twice the one before, so linear work grows by twice as much. What seems
#: to grow faster is counted again at the larger sizes, where steps of buffers and tables are small.
SIZES, LARGER_SIZES = (60, 120, 240), (240, 480, 960)
#: Most by which the growth of the work may exceed twice that of the step before. Work of n log n
#: grows by 2.3 times as much here, tables and lists that grow by doubling by up to 2.4.
MARGIN = 1.3
#: Growth that is no work of interest: bytes, opcodes, calls.
NEGLIGIBLE = Work(60_000, 4_000, 600)
#: Limits of a case: what takes exponential time or memory ends there.
MAX_SECONDS, MAX_BYTES = 5, 500_000_000


def check(cases: Sequence[Case], folder: Path) -> Iterator[tuple[Case, str]]:
    """Count the work of cases of one document at each size; yield those that grow too much."""
    cases[0].document.prepare(folder)
    # The counters are compiled once, before the processes are forked.
    work_of(lambda: None)
    for case, found in zip(
        cases, run_forked(cases, lambda case: _measure(case, folder)), strict=True
    ):
        if isinstance(found, Ended):
            yield case, f"ended by {found.reason} after {found.seconds:.1f} s"
        elif problem := excess([Work(*each) for each in found]):
            yield case, problem


def excess(work: Sequence[Work]) -> str:
    """Describe what grows faster than linearly, given the work at `SIZES`; "" if nothing does."""
    problems = []
    for name, least, counts in zip(Work._fields, NEGLIGIBLE, zip(*work, strict=True), strict=True):
        first, second = counts[1] - counts[0], counts[2] - counts[1]
        if second > 2 * MARGIN * max(first, least):
            problems.append(f"{name} {' -> '.join(f'{count:,}' for count in counts)}")
    return "; ".join(problems)


def _measure(case: Case, folder: Path) -> list[Work]:
    warnings.simplefilter("ignore")
    limit(MAX_SECONDS, MAX_BYTES)
    gc.disable()

    def read() -> None:
        try:
            case.document.read(folder)
        except Exception as error:
            # A message is part of the work.
            str(error)

    def count(sizes: Sequence[int]) -> list[Work]:
        found = []
        for size in sizes:
            case.write(folder, size)
            found.append(work_of(read))
        return found

    # What a reader sets up once is not counted. From Python 3.13 on, opcodes are counted in
    # functions that were traced before.
    count(SIZES[:1])
    found = count(SIZES)
    return count(LARGER_SIZES) if excess(found) else found
