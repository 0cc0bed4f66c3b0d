"""Files of an index: embeddings as float16 matrices, and Parquet files of columns.

    index.json               model, width, sources, segments, and which rows are deleted
    vectors/000000.f16       float16 rows of a segment, little-endian, mapped into memory
    columns/000000.parquet   columns of the same rows
    deleted-000003.npy       bools, True = the row is deleted; named by index.json

A segment is what one call of `add` wrote. Files are written under another name, flushed to the disk
and renamed; index.json, the last one, makes them part of the index.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fiber import _core
from fiber.atomic_io import PART, explain_write_errors, flush_to_disk, write_file
from fiber.bulk.output import (
    MODEL_FIELDS,
    check_fields,
    read_format,
    write_table,
)
from fiber.bulk.output import SOURCE_FIELDS as MAP_SOURCE_FIELDS
from fiber.bulk.parquet import OF_RECORDS, parquet_errors, read_rows, require_arrow
from fiber.data.formats.json_values import is_integer
from fiber.env import usable_cores
from fiber.messages import printable, shown

#: Version of the format.
VERSION = 1
#: Names in the folder.
FILE, VECTORS, COLUMNS = "index.json", "vectors", "columns"
#: Rows of a block, of which a thread does one at a time.
BLOCK_ROWS = 32_768
#: Fields of a source in index.json.
SOURCE_FIELDS = {
    name: kind for name, kind in MAP_SOURCE_FIELDS.items() if name not in ("records", "units")
}
#: Length in characters of the part of an error of NumPy that is shown.
_MAX_REASON = 240
#: Maximum number of components of an embedding.
_MAX_WIDTH = 1 << 20
#: Names of segments and of files of deletions, which are parts of paths.
_SEGMENT, _DELETED = re.compile(r"[0-9]{6,18}"), re.compile(r"deleted-([0-9]{6,18})\.npy")


class Store:
    """The files of an index, as of one moment.

    Args:
        folder: folder of an index.

    Raises:
        FileNotFoundError: if there is no index.
        ValueError: if it is of another program or version, or a file is missing or of another size.
    """

    def __init__(self, folder: Path) -> None:
        require_arrow("fiber.Index")
        self.folder = folder
        path = folder / FILE
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} is no index: {FILE} does not exist; write one with"
                " `fiber index SOURCE --output INDEX`"
            )
        self.about: dict[str, Any] = _read_index(path)
        self.width: int = self.about["width"]
        counts = [segment["rows"] for segment in self.about["segments"]]
        self.count = sum(counts)
        #: Rows of each segment: half-open ranges.
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
        self.matrices = [self._map(segment) for segment in self.about["segments"]]
        self._columns: Any = None

    def _map(self, segment: Mapping[str, Any]) -> np.ndarray:
        path = self.folder / VECTORS / f"{segment['name']}.f16"
        expected = segment["rows"] * self.width * 2
        found = path.stat().st_size if path.exists() else -1
        if found != expected:
            size = f"{found} bytes" if found >= 0 else "no file"
            raise ValueError(f"{path}: found {size}; expected {expected} bytes, as {FILE} says")
        if not expected:
            return np.zeros((0, self.width), np.float16)
        return np.memmap(path, "<f2", mode="r", shape=(segment["rows"], self.width))

    @property
    def columns(self) -> Any:
        """The columns of all rows, a pyarrow table."""
        if self._columns is None:
            arrow, _ = require_arrow("fiber.Index")
            tables = []
            for segment in self.about["segments"]:
                path = self.folder / COLUMNS / f"{segment['name']}.parquet"
                table = read_rows(path, OF_RECORDS | {"source": "int32"})
                if len(table) != segment["rows"]:
                    raise ValueError(f"{path} has {len(table)} rows; expected {segment['rows']}")
                tables.append(table)
            with parquet_errors(self.folder / COLUMNS):
                self._columns = arrow.concat_tables(tables, promote_options="default")
        return self._columns

    def alive(self) -> np.ndarray:
        """Return (n,) bools: the rows that are not deleted."""
        name = self.about.get("deleted")
        if name is None:
            return np.ones(self.count, bool)
        path = self.folder / name
        try:
            # Mapped, so that a header cannot ask for more than the file has.
            deleted = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OverflowError) as error:
            reason = printable(str(error), _MAX_REASON)
            raise ValueError(f"{path} cannot be read: {reason}") from None
        # Rows that were added since are not deleted.
        if deleted.dtype != bool or deleted.ndim != 1 or len(deleted) > self.count:
            found = printable(f"{deleted.dtype} {deleted.shape}", _MAX_REASON)
            raise ValueError(f"{path} has {found}; expected one bool a row")
        return np.concatenate([~deleted, np.ones(self.count - len(deleted), bool)])

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return the (n, D) float16 vectors of rows in ascending order."""
        out = np.empty((len(numbers), self.width), np.float16)
        places = np.searchsorted(numbers, self.starts)
        for start, matrix, first, last in zip(
            self.starts, self.matrices, places, places[1:], strict=False
        ):
            out[first:last] = matrix[numbers[first:last] - start]
        return out

    def save(self, changes: Mapping[str, Any]) -> None:
        """Write index.json with changed fields, which makes new files part of the index."""
        write_index(self.folder, {**self.about, **changes})

    def next_name(self) -> str:
        """Return the name of a new segment."""
        there = [path.stem for path in (self.folder / VECTORS).glob("*.f16")]
        numbers = [int(stem) for stem in there if stem.isdecimal()]
        return f"{max(numbers, default=-1) + 1:06d}"


def _read_index(path: Path) -> dict[str, Any]:
    about = read_format(path, "fiber.index", VERSION)
    check_fields(path, about, {"model": dict, "width": int})
    check_fields(path, about["model"], MODEL_FIELDS, "model")
    if not 0 < about["width"] <= _MAX_WIDTH:
        raise ValueError(f"{path}: width is {about['width']}; expected 1 to {_MAX_WIDTH}")
    for field in ("sources", "segments"):
        entries = about.get(field)
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise ValueError(f"{path}: {field} is {shown(entries)}; expected a list of objects")
    for number, source in enumerate(about["sources"]):
        check_fields(path, source, SOURCE_FIELDS, f"sources.{number}")
    for segment in about["segments"]:
        name = segment.get("name")
        is_name = isinstance(name, str) and _SEGMENT.fullmatch(name)
        if not is_name or not is_integer(segment.get("rows")):
            raise ValueError(f"{path}: a segment is {shown(segment)}; expected a name and its rows")
    deleted = about.get("deleted")
    is_name = isinstance(deleted, str) and _DELETED.fullmatch(deleted)
    if deleted is not None and not is_name:
        raise ValueError(
            f"{path}: deleted is {shown(deleted)}; expected the name of a file, such as"
            " 'deleted-000001.npy'"
        )
    return about


def next_deleted(before: str | None) -> str:
    """Return the name of the file of deletions that follows another one."""
    found = None if before is None else _DELETED.fullmatch(before)
    return f"deleted-{int(found[1]) + 1 if found else 1:06d}.npy"


def write_index(folder: Path, about: Mapping[str, Any]) -> None:
    """Write index.json, flushed to the disk."""
    text = json.dumps({"format": "fiber.index", "version": VERSION, **about}, indent=1)

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            flush_to_disk(file)

    write_file(folder / FILE, write)


def write_segment(
    folder: Path, name: str, width: int, parts: Iterable[tuple[np.ndarray, Any]]
) -> int:
    """Write the files of a segment from (vectors, columns) parts; return the number of rows.

    Nothing of it is part of the index before `Store.save`.

    Raises:
        ValueError: if vectors have another width, or no unit length.
    """
    arrow, _ = require_arrow("fiber.Index")
    path = folder / VECTORS / f"{name}.f16"
    tables = []

    def write(part: Path) -> None:
        with part.open("wb") as file:
            for vectors, columns in parts:
                _check_vectors(vectors, width)
                file.write(np.ascontiguousarray(vectors, "<f2").tobytes())
                tables.append(columns)
            flush_to_disk(file)

    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
    table = arrow.concat_tables(tables, promote_options="default")
    write_table(folder / COLUMNS / f"{name}.parquet", table)
    return len(table)


def _check_vectors(vectors: np.ndarray, width: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(f"embeddings have shape {vectors.shape}; expected (n, {width})")
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    if len(lengths) and not np.all(np.abs(lengths - 1) < 1e-2):
        wrong = lengths[np.argmax(np.abs(lengths - 1))]
        raise ValueError(
            f"embeddings are not normalized: one has the length {wrong:.4g}, expected 1"
        )


def remove_unused(folder: Path, about: Mapping[str, Any]) -> None:
    """Delete files of segments and of deletions that index.json does not name."""
    names = {segment["name"] for segment in about["segments"]}
    for kind in (VECTORS, COLUMNS):
        for path in (folder / kind).iterdir() if (folder / kind).is_dir() else ():
            if path.stem not in names or path.name.startswith(PART):
                path.unlink(missing_ok=True)
    for path in folder.glob("deleted-*.npy"):
        if path.name != about.get("deleted"):
            path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Let one process at a time change an index.

    Raises:
        BlockingIOError: if another process changes it now.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Not on Windows, where nothing keeps two processes apart.
        with suppress(ModuleNotFoundError):
            fcntl = importlib.import_module("fcntl")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    error.errno, f"{folder} is being changed by another process; try again later"
                ) from None
        yield
    finally:
        os.close(file)


def nearest_rows(
    matrices: Sequence[np.ndarray], queries: np.ndarray, top_k: int, usable: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Run `exact_search` on all cores."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return exact_search(matrices, queries, top_k, usable, pool.map)


def exact_search(
    matrices: Sequence[np.ndarray],
    queries: np.ndarray,
    top_k: int,
    usable: np.ndarray | None,
    run: Callable[..., Iterable[tuple[np.ndarray, np.ndarray]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows with the largest products with queries; of equal ones, the first rows.

    Args:
        matrices: (n, D) float16 matrices, one after the other.
        queries: (Q, D) float32.
        top_k: number of rows for each query.
        usable: (N,) bools, rows that may be found; None means all.
        run: maps a function over (first row, block), such as on threads.

    Returns:
        (Q, k) int64 rows and (Q, k) float32 products, summed in float32, best first, with k at most
        `top_k` and the number of usable rows.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    blocks, start = [], 0
    for matrix in matrices:
        for first in range(0, len(matrix), BLOCK_ROWS):
            blocks.append((start + first, matrix[first : first + BLOCK_ROWS]))
        start += len(matrix)

    def best_of(block: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        first, values = block
        rows = np.arange(first, first + len(values))
        bits = np.ascontiguousarray(values).view(np.uint16)
        scores = np.asarray(_core.half_products(bits, queries))
        if usable is not None:
            kept = usable[first : first + len(values)]
            rows, scores = rows[kept], scores[:, kept]
        return _best(np.broadcast_to(rows, scores.shape), scores, top_k)

    found = list(run(best_of, blocks))
    empty = np.zeros((len(queries), 0))
    rows = np.concatenate([empty.astype(np.int64), *(rows for rows, _ in found)], axis=1)
    scores = np.concatenate([empty.astype(np.float32), *(scores for _, scores in found)], axis=1)
    return _best(rows, scores, top_k)


def _best(rows: np.ndarray, scores: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `top_k` best of each row of (Q, n) scores, with their row numbers."""
    if scores.shape[1] > 4 * top_k:
        # Those at the limit with the score of the last one stay, so that the first rows win.
        limit = np.partition(scores, -top_k, axis=1)[:, -top_k]
        width = int((scores >= limit[:, None]).sum(1).max())
        chosen = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        chosen.sort(axis=1)
        rows, scores = np.take_along_axis(rows, chosen, 1), np.take_along_axis(scores, chosen, 1)
    order = np.lexsort((rows, -scores), axis=1)[:, :top_k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
