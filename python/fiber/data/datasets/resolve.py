"""Find the reader for what a user names: a data folder, or one annotation file of any known form.

    open_source("captions", "photos/train.jsonl", "train")     a user's own lines
    open_source("captions", "coco", "train+val")               coco/dataset_coco.json
    open_source("questions", "vqa", "val")                     vqa/v2_OpenEnded_mscoco_val2014_...

Forms are told apart by the names of their files. Splits joined by "+" follow one another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.config_io import nearest
from fiber.data.datasets.registry import (
    BESIDE,
    BY_SUFFIX,
    FORMS,
    PART_SUFFIXES,
    SPLIT_NAMES,
    TRAINING_ONLY,
    TRAINING_READERS,
    WITH_SPLITS,
    Form,
    Reader,
    matching,
)
from fiber.data.formats import coco_folders, jsonl, line_reader
from fiber.data.formats.annotation_file import FILES, TRY_WITH, where_to_get
from fiber.data.record import ConcatRecords, Record, RecordSet, record_in_epoch
from fiber.data.storage import packed

AnyPath = str | PathLike[str]

#: Readers of a user's own lines, and what these may hold.
OWN_READERS = (jsonl.own_captions, jsonl.own_questions, jsonl.own_boxes)
OWN_KINDS = ("captions", "questions", "detection")


class SeveralFormsError(ValueError):
    """A folder holds several forms of a source.

    Args:
        problem: in words.
        sources: names that each stand for one of them alone.
    """

    def __init__(self, problem: str, sources: tuple[str, ...]) -> None:
        super().__init__(problem)
        self.sources = sources


def open_source(source: str, data: AnyPath, split: str, **options: Any) -> RecordSet:
    """Read a source's records of a split, whatever form they are in.

    Args:
        source: a key of `forms.FORMS`.
        data: a data folder, or the annotation file. A file's pictures are looked for from its
            folder.
        split: its name, or several joined by "+". Of a file that does not tell its records' splits,
            all of them are read. Where "train" is one of several, Visual Genome and SBU, which have
            no other split, give that one, and Conceptual Captions their "val" if it is there.
        options: of the reader, such as the `whole_expression` of `sources.referring`.

    Raises:
        FileNotFoundError: if there is no such folder or file, or none that the source may be.
        SeveralFormsError: a ValueError, if a folder holds several forms of the source.
        TypeError: for data or a split of another type.
        ValueError: if the source is none that is known or never has such a split, or a file is not
            as expected.
    """
    if source not in FORMS:
        raise ValueError(f"source is {source!r}; {nearest(str(source), FORMS)}")
    if not isinstance(data, str | PathLike):
        raise TypeError(f"data is {data!r:.40}; expected the path of a folder or file")
    if not isinstance(split, str):
        raise TypeError(f"split is {split!r:.40}; expected a name, such as 'train'")
    if not all(split.split("+")):
        raise ValueError(f"split is {split!r}; expected a name, or several joined by '+'")
    path, asked = Path(data), split.split("+")
    if packed.is_pack(path):
        parts = [packed.open_pack(path, source, part, **options) for part in asked]
    elif path.is_file():
        reader = file_reader(source, path, split)
        # Of other files all is read, whatever the split, and that once.
        splits = asked if reader in WITH_SPLITS else [split]
        if reader in TRAINING_READERS and "train" in asked:
            splits = ["train"]
        parts = [reader(path.parent, part, annotations=path, **options) for part in splits]
    else:
        splits = _splits_of(source, path, asked)
        parts = [_open_folder(source, path, part, options) for part in splits]
    return parts[0] if len(parts) == 1 else ConcatRecords(parts)


def _splits_of(source: str, folder: Path, asked: list[str]) -> list[str]:
    """Keep, of the splits asked for, those that a source has."""
    if source in TRAINING_ONLY:
        if "train" not in asked:
            raise ValueError(
                f"{source} has only a training split, no {'+'.join(asked)!r}; expected 'train'"
            )
        return [split for split in asked if split == "train"]
    if source == "conceptual_captions" and "train" in asked:
        return [split for split in asked if split != "val" or _forms_there(source, folder, split)]
    return asked


def has_splits(source: str, data: AnyPath, split: str) -> bool:
    """Tell whether data hold a split apart from others: a folder, or a file that names them.

    The arguments are those of `open_source`, which has read the data.
    """
    path = Path(data)
    if not path.is_file():
        return True
    reader = file_reader(source, path, split)
    if reader in OWN_READERS:
        return jsonl.names_splits(path)
    return reader in WITH_SPLITS


def _open_folder(source: str, data: Path, split: str, options: dict[str, Any]) -> RecordSet:
    reader, file = choose_form(source, data, split)
    named = {} if file is None else {"annotations": file}
    return reader(data, split, **named, **options)


def choose_form(source: str, data: Path, split: str) -> tuple[Reader, Path | None]:
    """Choose the form in which a folder holds a split of a source.

    Returns:
        Its reader, and the first of its files; None: the reader finds it by itself.

    Raises:
        FileNotFoundError: if there is none.
        SeveralFormsError: if there are several.
        ValueError: if there are several files of boxes of one form.
    """
    first = FORMS[source][0]
    # What the recipes name comes before all else.
    if first.holds(split) and (files := matching(data, first.pattern, split)):
        return first.reader, None if first.pattern in FILES.values() else files[0]
    # A split of boxes may be a part of another file.
    if source == "detection" and coco_folders.find(data, split) is not None:
        return first.reader, None
    found = _forms_there(source, data, split)
    if not found:
        raise FileNotFoundError(_missing(source, data, split))
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(data)) for path in found.values())
        raise SeveralFormsError(
            f"{data} holds {source} of split {split!r} in several forms: {names}; name one file"
            " instead of the folder",
            tuple(
                name for name in FORMS if name != source and _reads_one(name, data, split, found)
            ),
        )
    return next(iter(found.items()))


def _forms_there(source: str, folder: Path, split: str) -> dict[Reader, Path]:
    """Find the forms of a source that a folder holds: its reader, and the first of its files."""
    found: dict[Reader, Path] = {}
    for form in sorted(FORMS[source], key=lambda form: form.yields):
        if not form.holds(split) or (form.yields and found):
            continue
        for path in matching(folder, form.pattern, split)[:1]:
            found.setdefault(form.reader, path)
    return found


def _reads_one(source: str, folder: Path, split: str, found: dict[Reader, Path]) -> bool:
    """Whether a source reads one of the forms found: its only one there, or that which is first."""
    own = found.keys() & {form.reader for form in FORMS[source]}
    return len(own) == 1 or bool(own and matching(folder, FORMS[source][0].pattern, split))


def _missing(source: str, folder: Path, split: str) -> str:
    """Say that a folder holds no form of a source, what it might hold, and where to get that."""
    problem = f"{folder} does not exist"
    if folder.is_dir():
        splits = ", ".join(splits_there(source, folder))
        problem = f"{folder} holds no {source} of split {split!r}"
        problem += f", only of the splits whose files are there: {splits}" if splits else ""
    kinds: dict[str, list[str]] = {}
    for form in FORMS[source]:
        if form.holds(split):
            names = " with ".join([form.pattern, *BESIDE.get(form.pattern, ())])
            kinds.setdefault(form.kind, []).append(names.format(split=split))
    generated = {form.kind for form in FORMS[source] if form.pattern in FILES.values()}
    forms = []
    for kind, files in kinds.items():
        where = f", from {where_to_get(kind)}" if where_to_get(kind) else ""
        made = f" ({TRY_WITH})" if kind in generated else ""
        forms.append(f"{kind}: {' or '.join(files)}{where}{made}")
    return (
        f"{problem}. Expected in the folder one of: {'; '.join(forms)}. A file of another name can"
        " be named in place of the folder"
    )


def splits_there(source: str, folder: Path) -> list[str]:
    """List the splits of which a folder has files of a source."""
    found = set()
    for form in FORMS[source]:
        pattern = re.escape(form.pattern).replace(r"\*", ".*")
        # Any file may be called "x.json".
        any_split = SPLIT_NAMES if form.pattern.startswith("{split}.") or form.yields else ".+?"
        pattern = pattern.replace(r"\{split\}", f"(?P<split>{any_split})")
        for path in matching(folder, form.pattern, "*"):
            match = re.fullmatch(pattern, path.relative_to(folder).as_posix())
            if match:
                found.add(form.split or match.groupdict().get("split"))
    return sorted(filter(None, found))


def file_reader(source: str, path: Path, split: str) -> Reader:
    """Tell a file's form by its name, else by the end of its name.

    Raises:
        ValueError: if no file of the source ends so.
    """
    # A list is no file of COCO's, whatever its name.
    is_own_list = source == "detection" and path.suffix == ".json" and line_reader.is_list(path)
    for form in () if is_own_list else FORMS[source]:
        if path.suffix not in PART_SUFFIXES and fnmatch(path.name, _name(form, split)):
            return form.reader
    forms = [end for name, end in BY_SUFFIX if name == _kind(source)]
    suffix = path.suffix
    if suffix == ".json" and _kind(source) in OWN_KINDS and line_reader.is_list(path):
        suffix = ".jsonl"
    reader = BY_SUFFIX.get((_kind(source), suffix))
    if reader is None:
        raise ValueError(
            f"{path}: a file of {source} ends in {', '.join(forms)}, or the data are a folder"
        )
    return reader


def _name(form: Form, split: str) -> str:
    return Path(form.pattern.format(split=split)).name


def _kind(source: str) -> str:
    """What records of a source hold: those of a named data set hold captions."""
    return source if any(source == name for name, _ in BY_SUFFIX) else "captions"


#: What `fiber.train` and `fiber.evaluate` take: a folder or an annotation file, one set of records,
#: or one for each task.
Data = str | os.PathLike[str] | RecordSet | Mapping[str, RecordSet]


#: In words, for messages.
RECORD_SET = "a map-style set of fiber.data.Record"


def check_records(given: Any, expected: str) -> None:
    """Check by its first record that something is a set of them.

    Raises:
        TypeError: if it is not: what was expected and what was given.
    """
    kind = type(given).__name__
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, str):
        if not len(given) or isinstance(given[0], Record):
            return
        first = given[0]
        found = f"{kind} whose first item is the {type(first).__name__} {first!r:.60}"
    else:
        found = f"{kind} {given!r:.60}"
    raise TypeError(f"{expected}; got the {found}")


class ChosenRecords:
    """Some records of a set, in its order."""

    def __init__(self, records: RecordSet, indices: Sequence[int]) -> None:
        """Args: the set, and the places in it of those chosen."""
        self.records = records
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.records[self.indices[index]]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Give a record as an epoch has it."""
        return record_in_epoch(self.records, epoch, self.indices[index])


def existing_data(data: str | os.PathLike[str]) -> Path:
    """Check that a data folder, or a file in place of one, is there.

    Raises:
        FileNotFoundError: if it is not, with how to make a folder.
    """
    path = Path(data)
    if path.suffix and not path.exists():
        raise FileNotFoundError(f"data file {path} does not exist")
    if not path.exists():
        raise FileNotFoundError(
            f"data folder {path} does not exist; `fiber data scenes --output {path}` makes a data"
            " set to try with"
        )
    return path
