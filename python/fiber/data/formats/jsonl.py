"""Readers of a user's own annotations in JSON Lines files, with one object per line.

A .json file may contain the same objects in a list. A .csv file has field names in its first line
and one text or answer per line.

    {"image": "photos/1.jpg", "text": "a dog on a beach"}
    {"image": "photos/1.jpg", "texts": ["a dog on a beach", "a brown dog runs"]}
    {"image": "photos/1.jpg", "question": "what is on the beach?", "answer": "dog"}
    {"image": "photos/1.jpg", "question": "what runs?", "answers": {"dog": 1.0, "animal": 0.6}}
    {"image": "photos/1.jpg", "question": "what runs?", "answers": ["dog", "dog", "animal"]}
    {"image": "photos/1.jpg", "boxes_xyxy": [[10, 20, 90.5, 60]], "labels": ["dog"]}

Each line is of one of these kinds; an image with both a text and boxes needs two lines.

`boxes_xyxy` contains half-open pixel coordinates (x0, y0, x1, y1), and `labels` the class of each
box. If `width` and `height` are given, boxes are checked against the image size.

A list of answers has one answer per annotator, scored as in VQAv2: an answer given by three of ten
annotators scores 0.9, and one given by four or more scores 1.0. If there are not ten annotators,
counts are scaled to ten. If every question has such a list, the two published VQA accuracies are
also reported (`metrics.vqa`).

`image` is relative to the file's folder or its "images" subfolder. Optional fields: `id`, which
identifies the line in prediction files (default: the line number), and `split`. Either all lines
have a `split` or none do. If they do, only lines of the requested splits ("train+val") are read.
Unknown fields raise an error. Repeated captions of an image are skipped and counted.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import ReadReport, RecordList, named
from fiber.data.formats.json_values import MAX_ID_LENGTH, is_id, split_problem
from fiber.data.formats.line_reader import LineReader
from fiber.data.formats.row_records import DataRow, RowRecords, RowSource, box_records
from fiber.data.formats.rows import check_scores, scores_of
from fiber.data.record import AnyPath, Record
from fiber.messages import shown, shown_names

#: Maximum number of splits of a file, which is read once for each.
MAX_SPLITS = 64
# Fields that occur in only one kind of line, and the fields that each kind requires.
_KINDS = {
    "captions": {"text", "texts"},
    "questions": {"question", "answer", "answers"},
    "boxes": {"boxes_xyxy", "labels"},
}
_NEEDED = {
    "captions": "'text' or 'texts'",
    "questions": "'question' and 'answer' or 'answers'",
    "boxes": "'boxes_xyxy' and 'labels'",
}


def jsonl_captions(
    folder: AnyPath, split: str, *, annotations: AnyPath, images: AnyPath | None = None
) -> RecordList:
    """Read captions from the file `annotations`, one record per text.

    Lines for other splits are ignored. Lines of other kinds are skipped and counted. For `images`,
    see `LineReader`.

    Raises:
        FileNotFoundError: if the file or the first image is missing.
        ValueError: if a line is invalid (the error names the file, line and field), or if no line
            has this split and kind.
    """
    lines = LineReader(Path(annotations), images)
    out, seen = RecordList(), set()
    for key, entry in _of_split(lines, split, out, "captions"):
        several = "texts" in entry
        if several and "text" in entry:
            raise lines.error("has both 'text' and 'texts'; expected only one of them")
        texts = entry["texts"] if several else [lines.text(entry, "text")]
        if not isinstance(texts, list) or not texts:
            raise lines.error(f"has 'texts' {shown(texts)}; expected a nonempty list of strings")
        image = lines.image(entry)
        for index, text in enumerate(texts):
            text = lines.text({(field := f"texts[{index}]"): text}, field) if several else text
            name = f"{key}-{index}" if several else key
            if (image, text) in seen:
                out.skip("repeated captions")
                continue
            seen.add((image, text))
            out.append(Record(key=name, images=(image,), image_id=image, text=text))
    return out


def jsonl_questions(
    folder: AnyPath, split: str, *, annotations: AnyPath, images: AnyPath | None = None
) -> RecordList:
    """Read questions, one record per line.

    Arguments and errors are as in `jsonl_captions`. Answers are optional in splits whose names
    start with "test".
    """
    lines, out = LineReader(Path(annotations), images), RecordList()
    for key, entry in _of_split(lines, split, out, "questions"):
        answers = _answers(lines, entry, optional=split.startswith("test"))
        image, text = lines.image(entry), lines.text(entry, "question")
        out.append(Record(key=key, images=(image,), image_id=image, text=text, **answers))
    return out


class _BoxLines(RowSource):
    """Row source for lines with boxes."""

    # A bound method would make pickled records include all lines.
    image = staticmethod(os.fspath)  # type: ignore[assignment]

    def __init__(self, lines: LineReader, split: str) -> None:
        super().__init__()
        self.lines, self.split = lines, split

    def rows(self, kind: str) -> Iterator[DataRow]:
        for key, entry in _of_split(self.lines, self.split, self, kind):
            image = self.lines.image(entry)
            values = {"boxes_xyxy": [], "image_id": image, **entry}
            yield DataRow(self.lines.where, key, values, (image,))


def jsonl_boxes(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath,
    images: AnyPath | None = None,
    **options: Any,
) -> RowRecords:
    """Read boxes with classes, one record per line; see `jsonl_captions` and `box_records`."""
    return box_records(_BoxLines(LineReader(Path(annotations), images), split), **options)


def names_splits(path: Path) -> bool:
    """Return whether the lines of a file have a `split` (either all do or none)."""
    return any("split" in entry for _, entry in islice(LineReader(path, None).walk(), 1))


def _of_split(
    lines: LineReader, split: str, out: ReadReport, kind: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a split and kind, with unique keys, and count lines of other kinds."""
    wanted, splits = set(split.split("+")), set()
    having = lacking = 0
    keys, others = set[str](), dict[str, None]()
    for number, entry in lines.walk():
        if "split" in entry:
            splits.add(lines.text(entry, "split"))
            having = having or number
        else:
            lacking = lacking or number
        if having and lacking:
            raise lines.error(
                f"is inconsistent: line {having} has a 'split', but line {lacking} does not;"
                " expected 'split' in all lines or in none"
            )
        kinds = [name for name, fields in _KINDS.items() if fields & set(entry)]
        if len(kinds) > 1:
            have = " and ".join(repr(next(f for f in entry if f in _KINDS[name])) for name in kinds)
            raise lines.error(
                f"has {have}; expected fields of one kind ({' or '.join(kinds)}) per line"
            )
        if not kinds:
            have = ", ".join(map(repr, entry)) or "nothing"
            raise lines.error(
                f"has {have}; expected 'image' with {', or with '.join(_NEEDED.values())}"
            )
        if "split" in entry and entry["split"] not in wanted:
            continue
        if kinds[0] != kind:
            others[kinds[0]] = None
            out.skip(f"lines with {kinds[0]}")
            continue
        own = entry.get("id", number)
        if not is_id(own):
            raise lines.error(
                f"has 'id' {shown(own)}; expected a string of 1 to {MAX_ID_LENGTH} characters or an"
                " integer below 2**63"
            )
        key = f"{lines.path.stem}/{own}"
        if key in keys:
            raise lines.error(f"has duplicate 'id' {shown(own)}; expected unique ids")
        keys.add(key)
        yield key, entry
    if keys:
        return
    if not having and not lacking:
        raise ValueError(f"{lines.path} is empty; expected {lines.expected}")
    if having and not wanted & splits:
        have = shown_names(sorted(splits))
        raise ValueError(
            f"{lines.path} has no lines for split {shown(split)}; available splits: {have}"
        )
    raise ValueError(
        f"{lines.path} has only {' and '.join(others)}; expected lines with {_NEEDED[kind]}"
    )


def _answers(lines: LineReader, entry: dict[str, Any], *, optional: bool) -> dict[str, Any]:
    """Return the record fields `answers` (soft scores) and, if known, `human_answers`."""
    if "answer" in entry and "answers" in entry:
        raise lines.error("has both 'answer' and 'answers'; expected only one of them")
    if "answer" in entry:
        return {"answers": {lines.text(entry, "answer"): 1.0}}
    if "answers" not in entry:
        if optional:
            return {}
        raise lines.error("has neither 'answer' nor 'answers'; expected one of them")
    answers = entry["answers"]
    if not isinstance(answers, dict | list) or not answers:
        raise lines.error(
            f"has 'answers' {shown(answers)}; expected a nonempty list of answers, or an object"
            " that maps answers to scores"
        )
    for answer in answers:
        lines.text({"answers": answer}, "answers")
    if isinstance(answers, list):
        return {"answers": scores_of(answers), "human_answers": tuple(answers)}
    with named(lines.where):
        return {"answers": check_scores(answers)}


def splits_in(path: Path) -> list[str]:
    """Return the splits that occur in a file, in order of appearance.

    Raises:
        ValueError: if a line is invalid, or there are more than `MAX_SPLITS`.
    """
    lines, found = LineReader(path, None), dict[str, None]()
    for _, entry in lines.walk():
        if "split" in entry:
            split = lines.text(entry, "split")
            if (problem := split_problem(split)) is not None:
                raise lines.error(f"has {problem}")
            found[split] = None
        if len(found) > MAX_SPLITS:
            raise lines.error(
                f"has split {shown(entry['split'])}, after {MAX_SPLITS} other splits; expected"
                " names such as train and val"
            )
    return list(found)


def fields_in(path: Path) -> set[str]:
    """Return the fields of all objects in a file.

    Raises:
        ValueError: if the file cannot be parsed.
    """
    fields: set[str] = set()
    for _, entry in LineReader(path, None).entries():
        fields |= set(entry) if isinstance(entry, dict) else set()
    return fields


def kinds_in(fields: Collection[str]) -> set[str]:
    """Return the kinds of lines that have some of the fields."""
    return {kind for kind, own in _KINDS.items() if own.intersection(fields)}
