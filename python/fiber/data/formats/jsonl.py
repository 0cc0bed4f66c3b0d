"""Readers of a user's own pictures: one JSON object a line, in a file beside them.

The same objects may stand in a list in a .json file; a .csv file has a line with the names of the
fields first, and one text or answer a line.

    {"image": "photos/1.jpg", "text": "a dog on a beach"}
    {"image": "photos/1.jpg", "texts": ["a dog on a beach", "a brown dog runs"]}
    {"image": "photos/1.jpg", "question": "what is on the beach?", "answer": "dog"}
    {"image": "photos/1.jpg", "question": "what runs?", "answers": {"dog": 1.0, "animal": 0.6}}
    {"image": "photos/1.jpg", "question": "what runs?", "answers": ["dog", "dog", "animal"]}
    {"image": "photos/1.jpg", "boxes_xyxy": [[10, 20, 90.5, 60]], "labels": ["dog"]}

A line is of one of these kinds; a picture with a text and boxes has a line for each.

Boxes are half-open pixels (x0, y0, x1, y1), each with its class in `labels`; with `width` and
`height` they are checked against the size of the picture.

A list of answers is what several people said; an answer scores as in VQAv2, where three of ten give
0.9 and four 1.0, with other numbers of people in proportion. Where every question has such a list,
the two named accuracies of VQA are reported too (`metrics.vqa`), which count people as they are.
`image` starts at the file's folder, or at "images" in it. Optional fields: `id`, which predictions
are named by (default: the number of the line), and `split`: if one line has it, all have, and only
lines of the split asked for are read ("train+val": of both); without it every line is. Any other
field is an error. A text that stands a second time beside its picture is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import RecordList, without_garbage_collection
from fiber.data.formats.line_reader import OwnLines
from fiber.data.formats.row_records import Row, RowRecords, box_records
from fiber.data.formats.rows import check_scores, scores_of
from fiber.data.record import Record

AnyPath = str | PathLike[str]

# Which fields only one kind of line has, and what a line of the kind needs.
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


@without_garbage_collection
def own_captions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read a user's captions: one record for each text. Lines with questions are counted.

    Args:
        folder: with "<split>.jsonl".
        split: which lines, where lines have a field `split`.
        annotations: the file, if it is not "<split>.jsonl" in the folder.
        images: where file names start, if neither in the file's folder nor in "images" there.

    Raises:
        FileNotFoundError: if the file or a picture is missing, with the line.
        ValueError: if a line is not as described above, with file, line and field; if no line is
            of this split or kind.
    """
    lines = OwnLines(_file(folder, split, annotations), images)
    out, keys, seen = RecordList(), set(), set()
    for number, entry in _of_split(lines, split, out, "captions"):
        key = _key(lines, entry, number, keys)
        several = "texts" in entry
        if several and "text" in entry:
            raise lines.error("has both 'text' and 'texts'; expected one of them")
        texts = entry["texts"] if several else [lines.text(entry, "text")]
        if not isinstance(texts, list) or not texts:
            raise lines.error(f"has 'texts' {str(texts)[:40]!r}; expected a list of texts")
        image = lines.picture(entry)
        for place, text in enumerate(texts):
            text = lines.checked_text(text, f"texts[{place}]") if several else text
            name = f"{key}-{place}" if several else key
            if (image, text) in seen:
                out.add("repeated captions")
                continue
            seen.add((image, text))
            out.append(Record(key=name, images=(image,), image_id=image, text=text))
    return out


@without_garbage_collection
def own_questions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read a user's questions: one record for each. Lines with captions are counted.

    Arguments and errors are those of `own_captions`. Only in splits whose names start with "test"
    may answers be absent.
    """
    lines = OwnLines(_file(folder, split, annotations), images)
    out, keys = RecordList(), set()
    for number, entry in _of_split(lines, split, out, "questions"):
        answers = _answers(lines, entry, optional=split.startswith("test"))
        image, people = lines.picture(entry), entry.get("answers")
        out.append(
            Record(
                key=_key(lines, entry, number, keys),
                images=(image,),
                image_id=image,
                text=lines.text(entry, "question"),
                answers=answers,
                human_answers=tuple(people) if isinstance(people, list) else (),
            )
        )
    return out


def own_boxes(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    on_error: str = "raise",
    shots: int = 0,
    objects: bool = False,
) -> RowRecords:
    """Read a user's boxes of classes: one record for each line; see `row_records.box_records`.

    `objects` is for metrics, which measure by the boxes themselves where there are no crowds.
    Other arguments and errors are those of `own_captions`.
    """
    lines = OwnLines(_file(folder, split, annotations), images)
    told, keys = RecordList(), set()

    def rows() -> Iterator[Row]:
        for number, entry in _of_split(lines, split, told, "boxes"):
            image = lines.picture(entry)
            yield Row(
                where=lines.where,
                key=_key(lines, entry, number, keys),
                values={"boxes_xyxy": [], "image_id": image, **entry},
                places=(image,),
            )

    out = box_records(rows(), _as_path, on_error=on_error, shots=shots)
    for what, times in told.counts.items():
        out.leave_out(what, times)
    return out


def _as_path(place: str) -> str:
    """Give the path of a picture, whose place is its path."""
    return place


def names_splits(path: Path) -> bool:
    """Tell whether the lines of a file have the field `split`: all have it or none."""
    return any("split" in entry for _, entry in islice(OwnLines(path, None).walk(), 1))


def _file(folder: AnyPath, split: str, path: AnyPath | None) -> Path:
    return Path(folder) / f"{split}.jsonl" if path is None else Path(path)


def _of_split(
    lines: OwnLines, split: str, out: RecordList, kind: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a split and kind; those of other kinds are counted."""
    wanted, splits = set(split.split("+")), set()
    having = lacking = 0
    used, others = False, dict[str, None]()
    for number, entry in lines.walk():
        if "split" in entry:
            splits.add(lines.text(entry, "split"))
            having = having or number
        else:
            lacking = lacking or number
        if having and lacking:
            raise lines.error(
                f"does not fit: line {having} has the field 'split', line {lacking} has not;"
                " expected it in every line or in none"
            )
        kinds = [name for name, fields in _KINDS.items() if fields & set(entry)]
        if len(kinds) > 1:
            have = " and ".join(repr(next(f for f in entry if f in _KINDS[name])) for name in kinds)
            raise lines.error(
                f"has {have}, fields of {' and of '.join(kinds)}; expected one kind a line:"
                " name the picture again on a line for each kind"
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
            out.add(f"lines with {kinds[0]}")
            continue
        used = True
        yield number, entry
    if used:
        return
    if not having and not lacking:
        raise ValueError(f"{lines.path} is empty; expected {lines.expected}")
    if having and not wanted & splits:
        have = ", ".join(map(repr, sorted(splits)))
        raise ValueError(f"{lines.path} has no line of split {split!r}; its splits are {have}")
    raise ValueError(
        f"{lines.path} has only lines with {' and '.join(others)}; expected lines with"
        f" {_NEEDED[kind]}"
    )


def _key(lines: OwnLines, entry: dict[str, Any], number: int, keys: set[str]) -> str:
    """Name the records of a line, differently from those of all others."""
    own = entry.get("id", number)
    if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
        raise lines.error(f"has 'id' {str(own)[:40]!r}; expected a text or a whole number")
    key = f"{lines.path.stem}/{own}"
    if key in keys:
        raise lines.error(f"has 'id' {own!r}, as another line has; expected each id once")
    keys.add(key)
    return key


def _answers(lines: OwnLines, entry: dict[str, Any], *, optional: bool) -> dict[str, float] | None:
    """Return the soft score of each answer of a line."""
    if "answer" in entry and "answers" in entry:
        raise lines.error("has both 'answer' and 'answers'; expected one of them")
    if "answer" in entry:
        return {lines.text(entry, "answer"): 1.0}
    if "answers" not in entry:
        if optional:
            return None
        raise lines.error("has no 'answer' and no 'answers'")
    answers = entry["answers"]
    if not isinstance(answers, dict | list) or not answers:
        raise lines.error(
            f"has 'answers' {str(answers)[:40]!r}; expected answers with their scores, or a list"
        )
    for answer in answers:
        lines.checked_text(answer, "answers")
    if isinstance(answers, list):
        return scores_of(answers)
    try:
        return check_scores(answers)
    except ValueError as problem:
        raise lines.error(str(problem)) from None


def splits_in(path: Path) -> list[str]:
    """List the splits that the lines of a file name, in the order of their first lines."""
    found = (entry.get("split") for _, entry in OwnLines(path, None).walk())
    return list(dict.fromkeys(str(split) for split in found if split is not None))


def kinds_in(path: Path) -> set[str]:
    """Tell which sources the objects of a file may be read as: a user's own or public ones.

    Raises:
        ValueError: if the file is no list of objects.
    """
    fields: set[str] = set()
    for _, entry in OwnLines(path, None).entries():
        fields |= set(entry) if isinstance(entry, dict) else set()
    if {"sentence", "label"} <= fields:
        return {"reasoning"}
    if {"caption_0", "image_0"} <= fields:
        return {"swapped"}
    sources = {"captions": "captions", "questions": "questions", "boxes": "detection"}
    return {source for kind, source in sources.items() if fields & _KINDS[kind]}
