"""Layouts of each source's files, recognized by file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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
from fiber.data.record import AnyPath, RecordSet

#: Reads the records of a split: (folder, split, annotations=file).
Reader = Callable[..., RecordSet]


class DatasetLayout(NamedTuple):
    """A file name of a source, and its reader."""

    #: File name relative to the data folder, with * as wildcard and {split}.
    pattern: str
    reader: Reader
    #: Kind of file, for `where_to_get`.
    kind: str
    #: The only split of the file; "": any, given by its name or content.
    split: str = ""
    #: Used only if no other layout matches, since other files may have such names.
    is_fallback: bool = False

    def may_have(self, split: str) -> bool:
        """Return whether the file may have a split."""
        return self.split in ("", split)


#: Reads the records of files in several parts: (*files, options).
SetReader = Callable[..., RecordSet]


def _parts(
    read: SetReader, kind: str, *files: tuple[str, str], is_fallback: bool = False
) -> list[DatasetLayout]:
    """Return layouts of files in several parts; matching the first part selects all.

    Args:
        read: reads the parts.
        kind: kind of file.
        files: pattern and split of each layout; see `DatasetLayout`.
        is_fallback: see `DatasetLayout`.
    """

    def reader(folder: AnyPath, split: str, *, annotations: AnyPath, **options: Any) -> RecordSet:
        for pattern, _ in files:
            parts = matching(Path(folder), pattern, split)
            if Path(annotations) in parts[:1]:
                return read(*parts, **options)
        return read(annotations, **options)

    return [DatasetLayout(pattern, reader, kind, only, is_fallback) for pattern, only in files]


def _arrow(read: SetReader, files: str, only: str = "") -> DatasetLayout:
    """Return the layout of Arrow files of the published code."""
    (layout,) = _parts(partial(read, kind=arrow.KIND), arrow.KIND, (files, only))
    return layout


def _one(read: SetReader) -> Reader:
    """Return a reader of a single file of any name."""
    return lambda folder, split, *, annotations, **options: read(annotations, **options)


def _tables(read: SetReader) -> list[DatasetLayout]:
    """Return layouts of tables named by Hugging Face's `datasets` and hub."""
    names = [
        (pattern, "")
        for pattern in (
            "{split}.parquet",
            "{split}-*-of-*.parquet",
            "data/{split}-*-of-*.parquet",
            "{split}/data-*-of-*.arrow",
        )
    ]
    # Name of "val" on the hub.
    others = [(name.replace("{split}", "validation"), "val") for name, _ in names]
    return _parts(read, arrow.TABLE_KIND, *names, *others)


def _shards(read: SetReader) -> list[DatasetLayout]:
    """Return layouts of shards: split in the file or folder name, or numbers only (fallback)."""
    names = ("{split}-[0-9]*.tar", "{split}_[0-9]*.tar", "{split}.tar", "{split}/*.tar")
    return [
        *_parts(read, webdataset.KIND, *((name, "") for name in names)),
        *_parts(read, webdataset.KIND, ("[0-9]*.tar", "train"), is_fallback=True),
    ]


_OWN = "JSON lines, a JSON list or CSV"


def _own(read: Reader) -> list[DatasetLayout]:
    """Return layouts of a user's own files. NLVR2's original files are also "{split}.json"."""
    return [
        DatasetLayout("{split}.jsonl", read, _OWN),
        DatasetLayout("{split}.csv", read, _OWN),
        DatasetLayout("{split}.json", read, _OWN, is_fallback=True),
    ]


def _layouts(
    names: Iterable[str], reader: Reader, kind: str, split: str = "", is_fallback: bool = False
) -> list[DatasetLayout]:
    return [DatasetLayout(name, reader, kind, split, is_fallback) for name in names]


_COCO = [
    *_layouts(karpathy.COCO_KARPATHY, karpathy.coco_karpathy, "COCO, Karpathy's splits"),
    _arrow(arrow.table_captions, "coco_caption_karpathy_{split}.arrow"),
]
_FLICKR30K = [
    *_layouts(
        karpathy.FLICKR30K_KARPATHY, karpathy.flickr30k_karpathy, "Flickr30k, Karpathy's splits"
    ),
    _arrow(arrow.table_captions, "f30k_caption_karpathy_{split}.arrow"),
]
_VISUAL_GENOME = [
    *_layouts(visual_genome.FILES, visual_genome.visual_genome, visual_genome.KIND, "train"),
    _arrow(arrow.table_captions, "vg.arrow", "train"),
]
_SBU = [
    *_layouts(sbu.FILES, sbu.sbu, sbu.KIND, "train"),
    _arrow(arrow.table_captions, "sbu_*.arrow", "train"),
]
_CONCEPTUAL_CAPTIONS = [
    *(
        layout
        for split, names in conceptual_captions.FILES.items()
        for layout in _layouts(
            names, conceptual_captions.conceptual_captions, conceptual_captions.KIND, split
        )
    ),
    _arrow(arrow.table_captions, "conceptual_caption_{split}_*.arrow"),
]
_VQAV2 = "v2_OpenEnded_mscoco_{split}20*_questions.json"
# Other files that a layout needs.
COMPANION_FILES = {
    FILES["questions"]: [FILES["answers"]],
    _VQAV2: ["v2_mscoco_{split}20*_annotations.json"],
}


def _in_mdetr(*names: str) -> list[str]:
    """Return file names in a data folder and in the folder of MDETR's archive."""
    return [f"{folder}{name}" for folder in ("", "mdetr_annotations/") for name in names]


def _refcoco(*names: str) -> list[DatasetLayout]:
    """Return the layouts of one data set; its own reader object distinguishes it from others."""
    return _layouts(_in_mdetr(*names), partial(sources.referring), "RefCOCO, MDETR's files")


_REFERRING = DatasetLayout(FILES["referring"], sources.referring, "RefCOCO, MDETR's form")
_REFCOCO = _refcoco("finetune_refcoco_{split}.json")
_REFCOCOPLUS = _refcoco("finetune_refcoco+_{split}.json")
# The published test file of RefCOCOg is a corrected one.
_REFCOCOG = _refcoco("finetune_refcocog_{split}_corrected.json", "finetune_refcocog_{split}.json")

#: Layouts of each source that a task may name; the first is that of `fiber data`.
LAYOUTS: dict[str, list[DatasetLayout]] = {
    "captions": [
        DatasetLayout(FILES["captions"], sources.captions, "COCO captions"),
        *_own(jsonl.jsonl_captions),
        *_COCO,
        *_FLICKR30K,
        *_VISUAL_GENOME,
        *_SBU,
        *_CONCEPTUAL_CAPTIONS,
        *_tables(arrow.table_captions),
        *_shards(webdataset.shard_captions),
    ],
    "coco_karpathy": _COCO,
    "flickr30k_karpathy": _FLICKR30K,
    "visual_genome": _VISUAL_GENOME,
    "sbu": _SBU,
    "conceptual_captions": _CONCEPTUAL_CAPTIONS,
    "questions": [
        DatasetLayout(FILES["questions"], sources.questions, "VQAv2 questions"),
        *_own(jsonl.jsonl_questions),
        DatasetLayout(_VQAV2, sources.questions, "VQAv2, original files"),
        _arrow(arrow.table_questions, "vqav2_{split}.arrow"),
        *_tables(arrow.table_questions),
        *_shards(webdataset.shard_questions),
    ],
    "reasoning": [
        DatasetLayout(FILES["reasoning"], sources.reasoning, "NLVR2"),
        DatasetLayout("{split}.json", sources.reasoning, "NLVR2, original file"),
        _arrow(arrow.table_statements, "nlvr2_{split}.arrow"),
    ],
    "phrases": [
        DatasetLayout(FILES["phrases"], sources.phrases, "Flickr30k Entities, MDETR's form"),
        *_layouts(
            _in_mdetr("final_flickr_separateGT_{split}.json"),
            sources.phrases,
            "Flickr30k Entities, MDETR's files",
        ),
        *_layouts(
            flickr30k_entities.LISTS,
            flickr30k_entities.flickr_entities,
            flickr30k_entities.KIND,
            is_fallback=True,
        ),
    ],
    "mixed": _layouts(
        [name for file in mdetr.MIXED_FILES for name in _in_mdetr(file)],
        mdetr.mixed,
        mdetr.MIXED,
        "train",
    ),
    "referring": [_REFERRING, *_REFCOCO, *_REFCOCOPLUS, *_REFCOCOG],
    "refcoco": [_REFERRING, *_REFCOCO],
    "refcocoplus": _REFCOCOPLUS,
    "refcocog": _REFCOCOG,
    "objects365": _layouts(objects365.FILES, objects365.objects365, tsv.KIND, "train"),
    "detection": [
        DatasetLayout(FILES["detection"], coco_folders.coco_detection, coco_folders.KIND),
        *(
            layout
            for kind, names in coco_folders.SPLIT_FILES.items()
            for layout in _layouts(names, coco_folders.coco_detection, kind)
        ),
        *(
            layout
            for split in ("train", coco_folders.HELD_OUT)
            for layout in _layouts(
                coco_folders.WHOLE_FILES,
                coco_folders.coco_detection,
                "one file for all images",
                split,
            )
        ),
        DatasetLayout("{split}.jsonl", jsonl.jsonl_boxes, _OWN),
        *_tables(arrow.table_boxes),
        *_shards(webdataset.shard_boxes),
    ],
    "swapped": [DatasetLayout(FILES["swapped"], sources.swapped, "Winoground")],
}
#: Possible names of splits in "{split}.json", which other files may match.
SPLIT_NAMES = r"train|val|dev|novel|test[\w-]*"
#: Readers of files that have every split.
WITH_SPLITS = {karpathy.coco_karpathy, karpathy.flickr30k_karpathy}
#: Sources and readers of data sets with a training split only.
TRAINING_ONLY = {"visual_genome", "sbu", "mixed", "objects365"}
TRAINING_READERS = {visual_genome.visual_genome, sbu.sbu}
#: Readers of files with other names, by source and extension.
BY_SUFFIX: dict[tuple[str, str], Reader] = {
    ("captions", ".jsonl"): jsonl.jsonl_captions,
    ("captions", ".json"): sources.captions,
    ("captions", ".csv"): jsonl.jsonl_captions,
    ("captions", ".tsv"): conceptual_captions.conceptual_captions,
    ("questions", ".jsonl"): jsonl.jsonl_questions,
    ("questions", ".json"): sources.questions,
    ("questions", ".csv"): jsonl.jsonl_questions,
    ("reasoning", ".jsonl"): sources.reasoning,
    ("reasoning", ".json"): sources.reasoning,
    ("phrases", ".json"): sources.phrases,
    ("phrases", ".txt"): flickr30k_entities.flickr_entities,
    ("mixed", ".json"): mdetr.mixed,
    **{(name, ".json"): sources.referring for name in LAYOUTS if name.startswith("ref")},
    ("objects365", ".yaml"): objects365.objects365,
    ("detection", ".json"): coco_folders.coco_detection,
    ("detection", ".jsonl"): jsonl.jsonl_boxes,
    ("swapped", ".jsonl"): sources.swapped,
}
for _source, _table, _shard in (
    ("captions", arrow.table_captions, webdataset.shard_captions),
    ("questions", arrow.table_questions, webdataset.shard_questions),
    ("reasoning", arrow.table_statements, None),
    ("detection", arrow.table_boxes, webdataset.shard_boxes),
):
    BY_SUFFIX[_source, ".arrow"] = BY_SUFFIX[_source, ".parquet"] = _one(_table)
    if _shard is not None:
        BY_SUFFIX[_source, ".tar"] = _one(_shard)
#: Extensions of files in several parts; a file that is named is read without the others.
PART_SUFFIXES = (".arrow", ".parquet", ".tar")


def matching(folder: Path, pattern: str, split: str) -> list[Path]:
    """Return the files of a pattern, in order of the numbers in their names."""
    found = folder.glob(pattern.format(split=split)) if folder.is_dir() else ()
    return sorted((path for path in found if path.is_file()), key=_numbered)


def _numbered(path: Path) -> tuple[int, str]:
    last = re.search(r"\d+$", path.stem)
    return (int(last[0]) if last else 0, path.name)
