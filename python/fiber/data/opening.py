"""Find the reader for what a user names: a data folder, or one annotation file of any known form.

    open_source("captions", "photos/train.jsonl", "train")     a user's own lines
    open_source("captions", "coco", "train+val")               coco/dataset_coco.json
    open_source("questions", "vqa", "val")                     vqa/v2_OpenEnded_mscoco_val2014_...

Forms are told apart by the names of their files. Splits joined by "+" follow one another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data import arrow_files, downloads, own_data, sources
from fiber.data.annotations import FILES
from fiber.data.records import ConcatRecords, RecordSet

AnyPath = str | PathLike[str]

#: Reads records of a split: (folder, split, annotations=file).
Reader = Callable[..., RecordSet]


class Form(NamedTuple):
    """One form that records of a source come in."""

    #: Name of the file below the data folder; * stands for anything, {split} for the split.
    pattern: str
    reader: Reader


def _arrow(read: Callable[..., arrow_files.ArrowRecords], files: str) -> Form:
    """The form of Arrow files; the first of several parts of a folder stands for all of them."""

    def reader(folder: AnyPath, split: str, *, annotations: AnyPath) -> RecordSet:
        parts = _matching(Path(folder), files, split)
        return read(*(parts if Path(annotations) in parts[:1] else [annotations]))

    return Form(files, reader)


def _arrow_file(read: Callable[..., arrow_files.ArrowRecords]) -> Reader:
    """Read one Arrow file of whatever name."""
    return lambda folder, split, *, annotations: read(annotations)


_COCO = [
    *(Form(name, downloads.coco_karpathy) for name in downloads.COCO_KARPATHY),
    _arrow(arrow_files.arrow_captions, "coco_caption_karpathy_{split}.arrow"),
]
_FLICKR30K = [
    *(Form(name, downloads.flickr30k_karpathy) for name in downloads.FLICKR30K_KARPATHY),
    _arrow(arrow_files.arrow_captions, "f30k_caption_karpathy_{split}.arrow"),
]
_VISUAL_GENOME = [
    *(Form(name, downloads.visual_genome) for name in downloads.VISUAL_GENOME),
    _arrow(arrow_files.arrow_captions, "vg.arrow"),
]
_SBU = [
    *(Form(name, downloads.sbu) for name in downloads.SBU),
    _arrow(arrow_files.arrow_captions, "sbu_*.arrow"),
]
_CONCEPTUAL_CAPTIONS = [
    *(
        Form(name, downloads.conceptual_captions)
        for names in downloads.CONCEPTUAL_CAPTIONS.values()
        for name in names
    ),
    _arrow(arrow_files.arrow_captions, "conceptual_caption_{split}_*.arrow"),
]

#: For each source that a task may name, its forms; the first is what `fiber data` writes.
FORMS: dict[str, list[Form]] = {
    "captions": [
        Form(FILES["captions"], sources.captions),
        Form("{split}.jsonl", own_data.own_captions),
        *_COCO,
        *_FLICKR30K,
        *_VISUAL_GENOME,
        *_SBU,
        *_CONCEPTUAL_CAPTIONS,
    ],
    "coco_karpathy": _COCO,
    "flickr30k_karpathy": _FLICKR30K,
    "visual_genome": _VISUAL_GENOME,
    "sbu": _SBU,
    "conceptual_captions": _CONCEPTUAL_CAPTIONS,
    "questions": [
        Form(FILES["questions"], sources.questions),
        Form("{split}.jsonl", own_data.own_questions),
        Form("v2_OpenEnded_mscoco_{split}20*_questions.json", sources.questions),
        _arrow(arrow_files.arrow_questions, "vqav2_{split}.arrow"),
    ],
    "reasoning": [
        Form(FILES["reasoning"], sources.reasoning),
        Form("{split}.json", sources.reasoning),
        _arrow(arrow_files.arrow_statements, "nlvr2_{split}.arrow"),
    ],
    "phrases": [Form(FILES["phrases"], sources.phrases)],
    "referring": [Form(FILES["referring"], sources.referring)],
    "detection": [Form(FILES["detection"], sources.detection)],
    "swapped": [Form(FILES["swapped"], sources.swapped)],
}
# Readers of files that hold every split.
_WITH_SPLITS = {downloads.coco_karpathy, downloads.flickr30k_karpathy}
# What a file of another name is taken for, by source and end of its name.
_BY_SUFFIX: dict[tuple[str, str], Reader] = {
    ("captions", ".jsonl"): own_data.own_captions,
    ("captions", ".json"): sources.captions,
    ("captions", ".tsv"): downloads.conceptual_captions,
    ("captions", ".arrow"): _arrow_file(arrow_files.arrow_captions),
    ("questions", ".jsonl"): own_data.own_questions,
    ("questions", ".json"): sources.questions,
    ("questions", ".arrow"): _arrow_file(arrow_files.arrow_questions),
    ("reasoning", ".jsonl"): sources.reasoning,
    ("reasoning", ".json"): sources.reasoning,
    ("reasoning", ".arrow"): _arrow_file(arrow_files.arrow_statements),
    ("phrases", ".json"): sources.phrases,
    ("referring", ".json"): sources.referring,
    ("detection", ".json"): sources.detection,
    ("swapped", ".jsonl"): sources.swapped,
}


def open_source(source: str, data: AnyPath, split: str, **options: Any) -> RecordSet:
    """Read a source's records of a split, whatever form they are in.

    Args:
        source: a key of `FORMS`.
        data: a data folder, or the annotation file. A file's pictures are looked for from its
            folder.
        split: its name, or several joined by "+". Of a file that does not tell its records' splits,
            all of them are read.
        options: of the reader, such as the `max_classes` of `sources.detection`.

    Raises:
        FileNotFoundError: if there is no such folder or file, or none that the source may be.
        ValueError: if a folder holds several forms of the source, or a file is not as expected.
    """
    path = Path(data)
    if path.is_file():
        reader = _file_reader(source, path, split)
        # Of other files all is read, whatever the split, and that once.
        splits = split.split("+") if reader in _WITH_SPLITS else [split]
        parts = [reader(path.parent, part, annotations=path, **options) for part in splits]
    else:
        parts = [_open_folder(source, path, part, options) for part in split.split("+")]
    return parts[0] if len(parts) == 1 else ConcatRecords(parts)


def left_out(records: RecordSet) -> dict[str, int]:
    """Count what readers left out of some records, or changed: {"empty captions": 3}."""
    if not isinstance(records, ConcatRecords):
        return dict(getattr(records, "counts", {}))
    counts: Counter[str] = Counter()
    for part in records.parts:
        counts.update(left_out(part))
    return dict(counts)


def _open_folder(source: str, data: Path, split: str, options: dict[str, Any]) -> RecordSet:
    first = FORMS[source][0]
    # What the recipes name comes before all else.
    found = {} if _matching(data, first.pattern, split) else _forms_there(source, data, split)
    if not found:
        return first.reader(data, split, **options)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(data)) for path in found.values())
        raise ValueError(
            f"{data} holds {source} of split {split!r} in several forms: {names}; name one file"
            " instead of the folder"
        )
    ((reader, file),) = found.items()
    return reader(data, split, annotations=file)


def _forms_there(source: str, folder: Path, split: str) -> dict[Reader, Path]:
    """Find the forms of a source that a folder holds: its reader, and the first of its files."""
    found: dict[Reader, Path] = {}
    for form in FORMS[source]:
        for path in _matching(folder, form.pattern, split)[:1]:
            found.setdefault(form.reader, path)
    return found


def _file_reader(source: str, path: Path, split: str) -> Reader:
    """Tell a file's form by its name, else by the end of its name."""
    for form in FORMS[source]:
        # An Arrow file that is named is read alone, without the other parts of its set.
        if path.suffix != ".arrow" and fnmatch(path.name, _name(form, split)):
            return form.reader
    forms = [end for name, end in _BY_SUFFIX if name == _kind(source)]
    reader = _BY_SUFFIX.get((_kind(source), path.suffix))
    if reader is None:
        raise ValueError(
            f"{path}: a file of {source} ends in {', '.join(forms)}, or the data are a folder"
        )
    return reader


def _name(form: Form, split: str) -> str:
    return Path(form.pattern.format(split=split)).name


def _kind(source: str) -> str:
    """What records of a source hold: those of a named data set hold captions."""
    return source if (source, ".json") in _BY_SUFFIX or source == "swapped" else "captions"


def _matching(folder: Path, pattern: str, split: str) -> list[Path]:
    """List the files of a pattern, those with numbers in their order."""
    found = folder.glob(pattern.format(split=split)) if folder.is_dir() else ()
    return sorted((path for path in found if path.is_file()), key=_numbered)


def _numbered(path: Path) -> tuple[int, str]:
    last = path.stem.rpartition("_")[2]
    return (int(last) if last.isdigit() else 0, path.name)
