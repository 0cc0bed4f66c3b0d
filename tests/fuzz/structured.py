"""Targets whose inputs steer the generator: bytes are its choices, not the content of a file.

Mutants of bytes hardly ever make a long string that thousands of opcodes refer to, or a value of
another type in a field: these targets start where the parser of the format has ended.
"""

from __future__ import annotations

import gc
import math
import random
import shutil
import time
from pathlib import Path

from tests.fuzz.generated import cases
from tests.fuzz.generated.cases import Case, documents
from tests.fuzz.generated.documents import Document
from tests.fuzz.generated.verdict import ALLOWED, verdict

#: Kinds of documents of each target.
KINDS = {
    "pickle_programs": ("programs",),
    "stored_configs": ("stored_configs",),
    "run_indexes": ("runs",),
    "json_files": ("configs", "headers", "packs", "bulk"),
    "annotations": ("annotations",),
    "text_tables": ("tables",),
    "model_folders": ("graphs", "adapters"),
    "mask_files": ("masks",),
}
#: Sizes of cases; the first one is that of an input of zeros.
_SIZES = (1, 1, 3, 30)
#: Processor time from which the growth of a case is measured, and the most by which twice the size
#: may multiply it.
GROWTH_SECONDS, MAX_GROWTH = 0.3, 2.5
_TRIES, _REPEATS = 3, 4


class Steered(random.Random):
    """A random generator whose choices are bytes, and the first ones after their end."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def getrandbits(self, count: int, /) -> int:
        """Return the next bytes as an integer."""
        size = -(-count // 8)
        found = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(found, "little") & ((1 << count) - 1)


def drawn(data: bytes, name: str) -> tuple[Case, int]:
    """Return the case and the size that an input stands for."""
    draw = Steered(data)
    document = draw.choice(_documents(name))
    return cases.random_case(draw, document), draw.choice(_SIZES)


def read(data: bytes, folder: Path, name: str) -> bool:
    """Write and read a case; see `Target.read`."""
    case, size = drawn(data, name)
    place = prepared(case.document, folder)
    case.write(place, size)
    found = verdict(case.document.read, place)
    assert found in ALLOWED, f"{case.document.name}, {case.name}, size {size}: {found}"
    return found == "read"


def growth(data: bytes, folder: Path, name: str) -> float:
    """Measure the growth of a case; see `growth_of`."""
    case, size = drawn(data, name)
    return growth_of(case, prepared(case.document, folder), size)


def growth_of(case: Case, folder: Path, size: int) -> float:
    """Return the processor time for twice the size of a case, as a multiple of that for the size.

    It is the best of three for both, and is measured again while it is high: other programs, which
    share caches and cores, may have slowed one of them down.
    """

    def seconds(size: int) -> float:
        case.write(folder, size)
        gc.collect()
        best = math.inf
        for _ in range(_TRIES):
            start = time.process_time()
            verdict(case.document.read, folder)
            best = min(best, time.process_time() - start)
        return best

    growth = math.inf
    for _ in range(_REPEATS):
        growth = min(growth, seconds(2 * size) / seconds(size))
        if growth <= MAX_GROWTH:
            break
    return growth


def seeds(name: str) -> list[bytes]:
    """The sound form of each document."""
    return [bytes([number]) for number in range(len(_documents(name)))]


def choices(draw: random.Random, originals: list[bytes]) -> bytes:
    """Draw an input."""
    return draw.randbytes(64)


def prepared(document: Document, folder: Path) -> Path:
    """Return a folder with what goes with a document, written once for each `folder`."""
    place = folder / f"{document.kind} {documents().index(document)}"
    if not place.exists():
        part = folder / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        document.prepare(part)
        part.rename(place)
    return place


def _documents(name: str) -> list[Document]:
    return [each for each in documents() if each.kind in KINDS[name]]
