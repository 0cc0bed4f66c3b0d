"""The forms that records of each source come in, told apart by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data import sources
from fiber.data.datasets import flickr30k_entities, karpathy, mdetr, objects365
from fiber.data.formats import arrow, coco_folders, jsonl, tsv, webdataset
from fiber.data.formats.annotation_file import FILES
from fiber.data.record import RecordSet

AnyPath = str | PathLike[str]

#: Reads records of a split: (folder, split, annotations=file).
Reader = Callable[..., RecordSet]


class Form(NamedTuple):
    """One form that records of a source come in."""

    #: Name of the file below the data folder; * stands for anything, {split} for the split.
    pattern: str
    reader: Reader
    #: What the file is, as `where_to_get` knows it.
    kind: str
    #: The only split whose records the file holds; "": any, told by its name or inside it.
    split: str = ""
    #: Whether it counts only where no other form is there, since other things have such names too.
    yields: bool = False

    def holds(self, split: str) -> bool:
        """Whether a file of this form may hold a split."""
        return self.split in ("", split)


#: Reads records of files that belong together: (*files, options).
SetReader = Callable[..., RecordSet]


def _parts(read: SetReader, kind: str, *files: tuple[str, str], yields: bool = False) -> list[Form]:
    """The form of files in several parts; the first part of a folder stands for all of them.

    Args:
        read: reads the parts.
        kind: what they are.
        files: names as in `Form.pattern`, and the only split that they hold or "".
        yields: see `Form`.
    """

    def reader(folder: AnyPath, split: str, *, annotations: AnyPath, **options: Any) -> RecordSet:
        for pattern, _ in files:
            parts = matching(Path(folder), pattern, split)
            if Path(annotations) in parts[:1]:
                return read(*parts, **options)
        return read(annotations, **options)

    return [Form(pattern, reader, kind, only, yields) for pattern, only in files]


def _arrow(read: SetReader, files: str, only: str = "") -> Form:
    """The form of the Arrow files that the published code trains on."""
    (form,) = _parts(partial(read, kind=arrow.KIND), arrow.KIND, (files, only))
    return form


def _one(read: SetReader) -> Reader:
    """Read one file of whatever name."""
    return lambda folder, split, *, annotations, **options: read(annotations, **options)


def _tables(read: SetReader) -> list[Form]:
    """Tables by the names that Hugging Face's `datasets` and its hub give them."""
    names = [
        (pattern, "")
        for pattern in (
            "{split}.parquet",
            "{split}-*-of-*.parquet",
            "data/{split}-*-of-*.parquet",
            "{split}/data-*-of-*.arrow",
        )
    ]
    # The hub's own name for it.
    others = [(name.replace("{split}", "validation"), "val") for name, _ in names]
    return _parts(read, arrow.TABLE_KIND, *names, *others)


def _shards(read: SetReader) -> list[Form]:
    """Shards of one split, by their names or their folder's, and those that have numbers alone."""
    names = ("{split}-[0-9]*.tar", "{split}_[0-9]*.tar", "{split}.tar", "{split}/*.tar")
    return [
        *_parts(read, webdataset.KIND, *((name, "") for name in names)),
        *_parts(read, webdataset.KIND, ("[0-9]*.tar", "train"), yields=True),
    ]


_OWN = "lines of your own"


def _own(read: Reader) -> list[Form]:
    """The forms of a user's own pictures. NLVR2's own files are called "{split}.json" too."""
    return [
        Form("{split}.jsonl", read, _OWN),
        Form("{split}.csv", read, _OWN),
        Form("{split}.json", read, _OWN, yields=True),
    ]


_COCO = [
    *(
        Form(name, karpathy.coco_karpathy, "COCO, Karpathy's splits")
        for name in karpathy.COCO_KARPATHY
    ),
    _arrow(arrow.table_captions, "coco_caption_karpathy_{split}.arrow"),
]
_FLICKR30K = [
    *(
        Form(name, karpathy.flickr30k_karpathy, "Flickr30k, Karpathy's splits")
        for name in karpathy.FLICKR30K_KARPATHY
    ),
    _arrow(arrow.table_captions, "f30k_caption_karpathy_{split}.arrow"),
]
_VISUAL_GENOME = [
    *(
        Form(name, karpathy.visual_genome, "Visual Genome's region descriptions", "train")
        for name in karpathy.VISUAL_GENOME
    ),
    _arrow(arrow.table_captions, "vg.arrow", "train"),
]
_SBU = [
    *(Form(name, karpathy.sbu, "SBU captions", "train") for name in karpathy.SBU),
    _arrow(arrow.table_captions, "sbu_*.arrow", "train"),
]
_CONCEPTUAL_CAPTIONS = [
    *(
        Form(name, karpathy.conceptual_captions, "Conceptual Captions", split)
        for split, names in karpathy.CONCEPTUAL_CAPTIONS.items()
        for name in names
    ),
    _arrow(arrow.table_captions, "conceptual_caption_{split}_*.arrow"),
]
_VQAV2 = "v2_OpenEnded_mscoco_{split}20*_questions.json"
# Files that stand beside those of a form.
BESIDE = {
    FILES["questions"]: [FILES["answers"]],
    _VQAV2: ["v2_mscoco_{split}20*_annotations.json"],
}


def _in_mdetr(*names: str) -> list[str]:
    """Names of files in a data folder, and in the folder that MDETR's archive unpacks to."""
    return [f"{folder}{name}" for folder in ("", "mdetr_annotations/") for name in names]


def _refcoco(*names: str) -> list[Form]:
    """The forms of one of the sets; each has a reader of its own, so that they are told apart."""
    reader = partial(sources.referring)
    return [Form(name, reader, "RefCOCO, MDETR's files") for name in _in_mdetr(*names)]


_REFERRING = Form(FILES["referring"], sources.referring, "RefCOCO, MDETR's form")
_REFCOCO = _refcoco("finetune_refcoco_{split}.json")
_REFCOCOPLUS = _refcoco("finetune_refcoco+_{split}.json")
# The published test file of RefCOCOg is a corrected one.
_REFCOCOG = _refcoco("finetune_refcocog_{split}_corrected.json", "finetune_refcocog_{split}.json")

#: For each source that a task may name, its forms; the first is what `fiber data` writes.
FORMS: dict[str, list[Form]] = {
    "captions": [
        Form(FILES["captions"], sources.captions, "COCO captions"),
        *_own(jsonl.own_captions),
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
        Form(FILES["questions"], sources.questions, "VQAv2 questions"),
        *_own(jsonl.own_questions),
        Form(_VQAV2, sources.questions, "VQAv2, original files"),
        _arrow(arrow.table_questions, "vqav2_{split}.arrow"),
        *_tables(arrow.table_questions),
        *_shards(webdataset.shard_questions),
    ],
    "reasoning": [
        Form(FILES["reasoning"], sources.reasoning, "NLVR2"),
        Form("{split}.json", sources.reasoning, "NLVR2, original file"),
        _arrow(arrow.table_statements, "nlvr2_{split}.arrow"),
    ],
    "phrases": [
        Form(FILES["phrases"], sources.phrases, "Flickr30k Entities, MDETR's form"),
        *(
            Form(name, sources.phrases, "Flickr30k Entities, MDETR's files")
            for name in _in_mdetr("final_flickr_separateGT_{split}.json")
        ),
        *(
            Form(name, flickr30k_entities.flickr_entities, flickr30k_entities.KIND, yields=True)
            for name in flickr30k_entities.LISTS
        ),
    ],
    "mixed": [
        Form(name, mdetr.mixed, mdetr.MIXED, "train")
        for file in mdetr.MIXED_FILES
        for name in _in_mdetr(file)
    ],
    "referring": [_REFERRING, *_REFCOCO, *_REFCOCOPLUS, *_REFCOCOG],
    "refcoco": [_REFERRING, *_REFCOCO],
    "refcocoplus": _REFCOCOPLUS,
    "refcocog": _REFCOCOG,
    "objects365": [
        Form(name, objects365.objects365, tsv.KIND, "train") for name in objects365.FILES
    ],
    "detection": [
        Form(FILES["detection"], coco_folders.coco_detection, coco_folders.KIND),
        *(
            Form(name, coco_folders.coco_detection, kind)
            for kind, names in coco_folders.SPLIT_FILES.items()
            for name in names
        ),
        *(
            Form(name, coco_folders.coco_detection, "one file for all pictures", split)
            for split in ("train", coco_folders.HELD_OUT)
            for name in coco_folders.WHOLE_FILES
        ),
        Form("{split}.jsonl", jsonl.own_boxes, _OWN),
        *_tables(arrow.table_boxes),
        *_shards(webdataset.shard_boxes),
    ],
    "swapped": [Form(FILES["swapped"], sources.swapped, "Winoground")],
}
#: What "{split}.json" may be named, so that no other file is taken for one.
SPLIT_NAMES = r"train|val|dev|novel|test[\w-]*"
#: Readers of files that hold every split.
WITH_SPLITS = {karpathy.coco_karpathy, karpathy.flickr30k_karpathy}
#: Sources and readers of sets that nothing but a training split was ever made of.
TRAINING_ONLY = {"visual_genome", "sbu", "mixed", "objects365"}
TRAINING_READERS = {karpathy.visual_genome, karpathy.sbu}
#: What a file of another name is taken for, by source and end of its name.
BY_SUFFIX: dict[tuple[str, str], Reader] = {
    ("captions", ".jsonl"): jsonl.own_captions,
    ("captions", ".json"): sources.captions,
    ("captions", ".csv"): jsonl.own_captions,
    ("captions", ".tsv"): karpathy.conceptual_captions,
    ("captions", ".arrow"): _one(arrow.table_captions),
    ("captions", ".parquet"): _one(arrow.table_captions),
    ("captions", ".tar"): _one(webdataset.shard_captions),
    ("questions", ".jsonl"): jsonl.own_questions,
    ("questions", ".json"): sources.questions,
    ("questions", ".csv"): jsonl.own_questions,
    ("questions", ".arrow"): _one(arrow.table_questions),
    ("questions", ".parquet"): _one(arrow.table_questions),
    ("questions", ".tar"): _one(webdataset.shard_questions),
    ("reasoning", ".jsonl"): sources.reasoning,
    ("reasoning", ".json"): sources.reasoning,
    ("reasoning", ".arrow"): _one(arrow.table_statements),
    ("reasoning", ".parquet"): _one(arrow.table_statements),
    ("phrases", ".json"): sources.phrases,
    ("phrases", ".txt"): flickr30k_entities.flickr_entities,
    ("mixed", ".json"): mdetr.mixed,
    ("referring", ".json"): sources.referring,
    ("refcoco", ".json"): sources.referring,
    ("refcocoplus", ".json"): sources.referring,
    ("refcocog", ".json"): sources.referring,
    ("objects365", ".yaml"): objects365.objects365,
    ("detection", ".json"): coco_folders.coco_detection,
    ("detection", ".jsonl"): jsonl.own_boxes,
    ("detection", ".arrow"): _one(arrow.table_boxes),
    ("detection", ".parquet"): _one(arrow.table_boxes),
    ("detection", ".tar"): _one(webdataset.shard_boxes),
    ("swapped", ".jsonl"): sources.swapped,
}
#: Ends of files that are parts of sets; one that is named is read without the others.
PART_SUFFIXES = (".arrow", ".parquet", ".tar")


def matching(folder: Path, pattern: str, split: str) -> list[Path]:
    """List the files of a pattern, those with numbers in their order."""
    found = folder.glob(pattern.format(split=split)) if folder.is_dir() else ()
    return sorted((path for path in found if path.is_file()), key=_numbered)


def _numbered(path: Path) -> tuple[int, str]:
    last = re.search(r"\d+$", path.stem)
    return (int(last[0]) if last else 0, path.name)
