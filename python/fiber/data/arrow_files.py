"""Readers of the Arrow files that the published code trains on: pictures and texts in one file.

One row holds a picture with a list of texts; each text becomes a record. Files are mapped into
memory and pictures are read when a record is asked for, so that a set larger than memory will do.
Empty captions, captions that repeat one of the same picture, and pictures without captions are left
out and counted, as in `downloads`. They need pyarrow: pip install 'fiber-vl[arrow]'.

Source of the columns: the published code's write_*.py and data sets.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.data.records import Record
from fiber.data.source_files import RecordList, where_to_get

AnyPath = str | PathLike[str]

#: What the files are, in messages.
KIND = "published Arrow data"


class ArrowRecords(Sequence[Record]):
    """Records of Arrow files, in order; `counts` tells what was left out."""

    def __init__(self, fields: list[dict[str, Any]], pictures: list[Callable[[], tuple]]) -> None:
        """Args: fields of each record but its pictures, and "picture", an index of `pictures`."""
        self.counts: dict[str, int] = {}
        self._fields = fields
        self._pictures = pictures
        # The texts of a picture follow one another, and can share its bytes.
        self._last: tuple[int, tuple[bytes, ...]] = (-1, ())

    def __len__(self) -> int:
        return len(self._fields)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        fields = dict(self._fields[index])
        number = fields.pop("picture")
        last = self._last
        if last[0] != number:
            last = self._last = (number, self._pictures[number]())
        return Record(images=last[1], **fields)


def arrow_captions(*paths: AnyPath) -> ArrowRecords:
    """Read captions: columns `image`, `caption` (a list) and `image_id`.

    Args:
        paths: files, whose records follow one another.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if a file is missing.
        ValueError: if a file is no Arrow file or lacks a column, with those that it has.
    """
    counts = RecordList()

    def fields(row: dict[str, Any], stem: str, number: int) -> Iterator[dict[str, Any]]:
        seen = set()
        if not row["caption"]:
            counts.add("pictures without captions")
        for place, text in enumerate(row["caption"]):
            if not text.strip():
                counts.add("empty captions")
            elif text in seen:
                counts.add("repeated captions")
            else:
                seen.add(text)
                key = f"{stem}/{number}-{place}"
                yield {"key": key, "text": text, "image_id": str(row["image_id"])}

    found = _read(paths, ("image",), ("caption", "image_id"), (), fields)
    found.counts = counts.counts
    return found


def arrow_questions(*paths: AnyPath) -> ArrowRecords:
    """Read questions: columns `image`, `questions`, `question_id` and `image_id`.

    `answers` and `answer_scores` hold the answers of each question, if they are there and hold any
    at all. Arguments and errors are those of `arrow_captions`.
    """

    def fields(row: dict[str, Any], stem: str, number: int) -> Iterator[dict[str, Any]]:
        answers, scores = row.get("answers"), row.get("answer_scores")
        for place, text in enumerate(row["questions"]):
            own = None
            if answers and scores:
                own = dict(zip(answers[place], scores[place], strict=True))
            yield {
                "key": f"{stem}/{row['question_id'][place]}",
                "text": text,
                "image_id": str(row["image_id"]),
                "answers": own,
            }

    needed = ("questions", "question_id", "image_id")
    return _read(paths, ("image",), needed, ("answers", "answer_scores"), fields)


def arrow_answers(*paths: AnyPath) -> dict[int, str]:
    """Read the text of each numbered answer: columns `answers` and `answer_labels`.

    An answer that no question has is absent. Arguments and errors are those of `arrow_captions`;
    two texts of one number are an error too.
    """
    known: dict[int, str] = {}
    for path in map(Path, paths):
        table, names = _open(path), ("answers", "answer_labels")
        _check_columns(table, path, names)
        texts, labels = (table.column(name).to_pylist() for name in names)
        for row, (own_texts, own_labels) in enumerate(zip(texts, labels, strict=True)):
            for text, label in zip(chain(*own_texts), chain(*own_labels), strict=True):
                if known.setdefault(label, text) != text:
                    raise ValueError(
                        f"{path}: row {row} has answer {label} as {text!r}; expected"
                        f" {known[label]!r}, as before"
                    )
    return known


def arrow_statements(*paths: AnyPath) -> ArrowRecords:
    """Read statements about two pictures (NLVR2): columns `image_0`, `image_1`, `questions`,
    `answers` ("True" or "False") and `identifier`.

    The files hold the identifier of a pair of pictures; keys get the place of the statement in the
    row as its last part. Arguments and errors are those of `arrow_captions`.
    """

    def fields(row: dict[str, Any], stem: str, number: int) -> Iterator[dict[str, Any]]:
        for place, (text, answer) in enumerate(zip(row["questions"], row["answers"], strict=True)):
            if answer not in ("True", "False"):
                raise ValueError(f"has the answer {answer!r}; expected 'True' or 'False'")
            key = f"{stem}/{row['identifier']}-{place}"
            yield {"key": key, "text": text, "truth": answer == "True"}

    return _read(paths, ("image_0", "image_1"), ("questions", "answers", "identifier"), (), fields)


def _read(
    paths: Sequence[AnyPath],
    pictures: tuple[str, ...],
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    fields: Callable[[dict[str, Any], str, int], Iterator[dict[str, Any]]],
) -> ArrowRecords:
    """Read texts of all rows and where their pictures are."""
    records: list[dict[str, Any]] = []
    readers: list[Callable[[], tuple]] = []
    for path in map(Path, paths):
        table = _open(path)
        _check_columns(table, path, (*pictures, *needed))
        names = (*needed, *(name for name in optional if name in table.column_names))
        columns = [table.column(name).to_pylist() for name in names]
        stored = [table.column(name) for name in pictures]
        for number, values in enumerate(zip(*columns, strict=True)):
            row = dict(zip(names, values, strict=True))
            try:
                found = [{**one, "picture": len(readers)} for one in fields(row, path.stem, number)]
            except (ValueError, TypeError, IndexError) as problem:
                raise ValueError(f"{path}: row {number} {problem}") from None
            records += found
            readers.append(_picture_reader(stored, number))
    return ArrowRecords(records, readers)


def _check_columns(table: Any, path: Path, needed: Sequence[str]) -> None:
    have = list(table.column_names)
    missing = [name for name in needed if name not in have]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, have))}"
        )


def _picture_reader(columns: list[Any], number: int) -> Callable[[], tuple]:
    return lambda: tuple(column[number].as_py() for column in columns)


def _open(path: Path) -> Any:
    """Map a file into memory as a table."""
    try:
        arrow, ipc = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.ipc")
    except ImportError:
        raise ModuleNotFoundError(
            f"{path} needs pyarrow to be read; pip install 'fiber-vl[arrow]' brings it",
            name="pyarrow",
        ) from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it comes from {where_to_get(KIND)}")
    try:
        return ipc.open_file(arrow.memory_map(str(path))).read_all()
    except arrow.ArrowInvalid as problem:
        raise ValueError(f"{path} is no Arrow file ({problem}); expected {KIND}") from None
