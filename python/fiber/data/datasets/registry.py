"""File layouts of each source, recognized by file name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data import sources
from fiber.data.datasets import (
    conceptual_captions,
    flickr30k_entities,
    karpathy,
    mdetr,
    objects365,
    sbu,
    visual_genome,
)
from fiber.data.formats import arrow, coco_folders, jsonl, tsv, webdataset
from fiber.data.formats.annotation_file import FILES
from fiber.data.formats.arrow import Tables
from fiber.data.formats.row_records import box_records, caption_records, question_records
from fiber.data.formats.webdataset import Shards
from fiber.data.record import AnyPath, RecordSet

#: Function that reads a split, called with (folder, split, annotations=file).
Reader = Callable[..., RecordSet]


class DatasetLayout(NamedTuple):
    """A file name pattern of a source, and the reader of matching files."""

    #: File name relative to the data folder, with wildcards ("*") and the placeholder "{split}".
    pattern: str
    reader: Reader
    #: Kind of file, as expected by `where_to_get`.
    kind: str
    #: The only split in the file; "" if the split follows from the name or content.
    split: str = ""
    #: Used only if no other layout matches, since unrelated files may have such names.
    is_fallback: bool = False


def _rows_reader(
    read: Callable[..., RecordSet],
    source: Callable[[Sequence[AnyPath]], Any],
    patterns: Sequence[str] = (),
) -> Reader:
    """Return a reader that reads all files that match a pattern when given the first one."""

    def reader(folder: AnyPath, split: str, *, annotations: AnyPath, **options: Any) -> RecordSet:
        for pattern in patterns:
            parts = matching(Path(folder), pattern, split)
            if Path(annotations) in parts[:1]:
                return read(source(parts), **options)
        return read(source([annotations]), **options)

    return reader


def _layouts(names: Iterable[str], *fields: Any, **options: Any) -> list[DatasetLayout]:
    """Return layouts that differ only in their file names."""
    return [DatasetLayout(name, *fields, **options) for name in names]


def _arrow(read: Callable[..., RecordSet], pattern: str, split: str = "") -> DatasetLayout:
    """Return the layout of the published code's Arrow files."""
    reader = _rows_reader(read, partial(Tables, kind=arrow.KIND), [pattern])
    return DatasetLayout(pattern, reader, arrow.KIND, split)


def _tables_and_shards(read: Callable[..., RecordSet]) -> list[DatasetLayout]:
    """Return layouts of WebDataset shards and of tables named as on the Hugging Face Hub."""
    tables = (
        "{split}.parquet",
        "{split}-*-of-*.parquet",
        "data/{split}-*-of-*.parquet",
        "{split}/data-*-of-*.arrow",
    )
    # "val" is called "validation" on the Hub.
    validation = [name.replace("{split}", "validation") for name in tables]
    table_reader = _rows_reader(read, Tables, [*tables, *validation])
    shards = ("{split}-[0-9]*.tar", "{split}_[0-9]*.tar", "{split}.tar", "{split}/*.tar")
    numbered = ["[0-9]*.tar"]
    return [
        *_layouts(tables, table_reader, arrow.TABLE_KIND),
        *_layouts(validation, table_reader, arrow.TABLE_KIND, "val"),
        *_layouts(shards, _rows_reader(read, Shards, shards), webdataset.KIND),
        *_layouts(numbered, _rows_reader(read, Shards, numbered), webdataset.KIND, "train", True),
    ]


_OWN = "JSON lines, a JSON list or CSV"


def _own(read: Reader) -> list[DatasetLayout]:
    """Return layouts of a user's own files. NLVR2 uses "{split}.json", which is thus a fallback."""
    return [
        *_layouts(("{split}.jsonl", "{split}.csv"), read, _OWN),
        DatasetLayout("{split}.json", read, _OWN, is_fallback=True),
    ]


_COCO = [
    *_layouts(karpathy.COCO_KARPATHY, karpathy.coco_karpathy, karpathy.COCO_KIND),
    _arrow(caption_records, "coco_caption_karpathy_{split}.arrow"),
]
_FLICKR30K = [
    *_layouts(karpathy.FLICKR30K_KARPATHY, karpathy.flickr30k_karpathy, karpathy.FLICKR30K_KIND),
    _arrow(caption_records, "f30k_caption_karpathy_{split}.arrow"),
]
_VISUAL_GENOME = [
    *_layouts(visual_genome.FILES, visual_genome.visual_genome, visual_genome.KIND, "train"),
    _arrow(caption_records, "vg.arrow", "train"),
]
_SBU = [
    *_layouts(sbu.FILES, sbu.sbu, sbu.KIND, "train"),
    _arrow(caption_records, "sbu_*.arrow", "train"),
]
_CONCEPTUAL_CAPTIONS = [
    *(
        DatasetLayout(
            name, conceptual_captions.conceptual_captions, conceptual_captions.KIND, split
        )
        for split, names in conceptual_captions.FILES.items()
        for name in names
    ),
    _arrow(caption_records, "conceptual_caption_{split}_*.arrow"),
]
_VQAV2 = "v2_OpenEnded_mscoco_{split}20*_questions.json"
#: Additional files that a layout requires, keyed by its pattern.
COMPANION_FILES = {
    FILES["questions"]: [FILES["answers"]],
    _VQAV2: ["v2_mscoco_{split}20*_annotations.json"],
}


def _in_mdetr(*names: str) -> list[str]:
    """Return `names` both with and without the prefix of MDETR's archive folder."""
    return [f"{folder}{name}" for folder in ("", "mdetr_annotations/") for name in names]


def _refcoco(*names: str) -> list[DatasetLayout]:
    """Return the layouts of one RefCOCO-style dataset.

    Each call creates its own reader object, so the reader also identifies the dataset.
    """
    return _layouts(_in_mdetr(*names), partial(sources.referring), "RefCOCO, MDETR files")


_FLICKR_PHRASES = _in_mdetr("final_flickr_separateGT_{split}.json")
_MIXED = [name for file in mdetr.MIXED_FILES for name in _in_mdetr(file)]
_REFERRING = DatasetLayout(FILES["referring"], sources.referring, "RefCOCO, MDETR format")
_REFCOCO = _refcoco("finetune_refcoco_{split}.json")
_REFCOCOPLUS = _refcoco("finetune_refcoco+_{split}.json")
# RefCOCOg's published test file is a corrected version.
_REFCOCOG = _refcoco("finetune_refcocog_{split}_corrected.json", "finetune_refcocog_{split}.json")

#: Layouts of each source that a task may name; the first is the one that `fiber data` writes.
LAYOUTS: dict[str, list[DatasetLayout]] = {
    "captions": [
        DatasetLayout(FILES["captions"], sources.captions, "COCO captions"),
        *_own(jsonl.jsonl_captions),
        *_COCO,
        *_FLICKR30K,
        *_VISUAL_GENOME,
        *_SBU,
        *_CONCEPTUAL_CAPTIONS,
        *_tables_and_shards(caption_records),
    ],
    "coco_karpathy": _COCO,
    "flickr30k_karpathy": _FLICKR30K,
    "visual_genome": _VISUAL_GENOME,
    "sbu": _SBU,
    "conceptual_captions": _CONCEPTUAL_CAPTIONS,
    "questions": [
        DatasetLayout(FILES["questions"], sources.questions, "VQAv2 questions"),
        *_own(jsonl.jsonl_questions),
        DatasetLayout(_VQAV2, sources.questions, "VQAv2, original layout"),
        _arrow(question_records, "vqav2_{split}.arrow"),
        *_tables_and_shards(question_records),
    ],
    "reasoning": [
        DatasetLayout(FILES["reasoning"], sources.reasoning, "NLVR2"),
        DatasetLayout("{split}.json", sources.reasoning, "NLVR2, original layout"),
        _arrow(arrow.statement_records, "nlvr2_{split}.arrow"),
    ],
    "entailment": [
        DatasetLayout(FILES["entailment"], sources.entailment, "SNLI-VE"),
        _arrow(arrow.entailment_records, "snli_{split}.arrow"),
    ],
    "phrases": [
        DatasetLayout(FILES["phrases"], sources.phrases, "Flickr30k Entities, MDETR format"),
        *_layouts(_FLICKR_PHRASES, sources.phrases, "Flickr30k Entities, MDETR files"),
        *_layouts(
            flickr30k_entities.LISTS,
            flickr30k_entities.flickr_entities,
            flickr30k_entities.KIND,
            is_fallback=True,
        ),
    ],
    "mixed": _layouts(_MIXED, mdetr.mixed, mdetr.MIXED, "train"),
    "referring": [_REFERRING, *_REFCOCO, *_REFCOCOPLUS, *_REFCOCOG],
    "refcoco": [_REFERRING, *_REFCOCO],
    "refcocoplus": _REFCOCOPLUS,
    "refcocog": _REFCOCOG,
    "objects365": _layouts(objects365.FILES, objects365.Objects365Records, tsv.KIND, "train"),
    "detection": [
        DatasetLayout(FILES["detection"], coco_folders.coco_detection, coco_folders.KIND),
        *(
            DatasetLayout(name, coco_folders.coco_detection, kind)
            for kind, names in coco_folders.SPLIT_FILES.items()
            for name in names
        ),
        *(
            DatasetLayout(name, coco_folders.coco_detection, "one file for all images", split)
            for split in ("train", coco_folders.HELD_OUT)
            for name in coco_folders.WHOLE_FILES
        ),
        DatasetLayout("{split}.jsonl", jsonl.jsonl_boxes, _OWN),
        *_tables_and_shards(box_records),
    ],
    "swapped": [DatasetLayout(FILES["swapped"], sources.swapped, "Winoground")],
}
#: Split names recognized in "{split}.json", a pattern that unrelated files may also match.
SPLIT_NAMES = r"train|val|dev|novel|test[\w-]*"
#: Readers of files that contain all splits.
WITH_SPLITS = {karpathy.coco_karpathy, karpathy.flickr30k_karpathy}
#: Sources and readers of datasets with a training split only.
TRAINING_ONLY = {"visual_genome", "sbu", "mixed", "objects365"}
TRAINING_READERS = {visual_genome.visual_genome, sbu.sbu}
#: Fallback readers for other file names, by (source, extension). Caption datasets have none.
BY_SUFFIX: dict[tuple[str, str], Reader] = {}
for _source in LAYOUTS:
    if _source == "captions" or LAYOUTS[_source][0] not in LAYOUTS["captions"]:
        for _layout in LAYOUTS[_source]:
            BY_SUFFIX.setdefault((_source, Path(_layout.pattern).suffix), _layout.reader)
for _source, _read in (
    ("captions", caption_records),
    ("questions", question_records),
    ("reasoning", arrow.statement_records),
    ("entailment", arrow.entailment_records),
    ("detection", box_records),
):
    BY_SUFFIX[_source, ".arrow"] = BY_SUFFIX[_source, ".parquet"] = _rows_reader(_read, Tables)
    if (_source, ".tar") in BY_SUFFIX:
        BY_SUFFIX[_source, ".tar"] = _rows_reader(_read, Shards)
#: Extensions of files that may come in parts. A part given by name is read on its own.
PART_SUFFIXES = (".arrow", ".parquet", ".tar")


def matching(folder: Path, pattern: str, split: str) -> list[Path]:
    """Return the files that match a pattern, ordered by the number at the end of their names."""
    found = folder.glob(pattern.format(split=split)) if folder.is_dir() else ()
    return sorted((path for path in found if path.is_file()), key=_numbered)


def _numbered(path: Path) -> tuple[int, str]:
    last = re.search(r"\d+$", path.stem)
    return (int(last[0]) if last else 0, path.name)
