"""Discover which sources and splits a folder or a file contains."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.datasets import objects365
from fiber.data.datasets.registry import LAYOUTS, PART_SUFFIXES, SPLIT_NAMES, WITH_SPLITS
from fiber.data.datasets.resolve import (
    OWN_READERS,
    AmbiguousLayoutError,
    choose_layout,
    file_reader,
    open_source,
    splits_there,
)
from fiber.data.formats import coco_folders, jsonl, line_reader, rows
from fiber.data.formats.annotation_file import read_json
from fiber.data.formats.arrow import IMAGES, TABLE_KIND
from fiber.data.formats.arrow_table import open_table
from fiber.data.formats.json_values import split_problem
from fiber.data.formats.unsupported import names_there, unsupported_data
from fiber.data.formats.webdataset import fields_of, samples_of
from fiber.data.record import AnyPath, RecordSet
from fiber.data.storage import pack_description
from fiber.data.storage.remote_pack import local_path
from fiber.data.storage.tar import TarFile
from fiber.messages import shown, shown_names

#: Sources to search for. The remaining sources are named datasets of these kinds.
SOURCES = (
    "captions",
    "phrases",
    "mixed",
    "referring",
    "questions",
    "detection",
    "objects365",
    "reasoning",
    "entailment",
    "swapped",
)
#: Sources whose readers can skip invalid boxes.
SKIPPING = ("phrases", "mixed", "referring", "detection", "objects365")
#: Maximum number of splits, and of names of what is in a folder, in a message.
_MOST_SPLITS, _MOST_THERE = 12, 6
#: Number of samples of a shard to read when discovering its fields.
_SAMPLES_READ = 100
# Extensions of table files.
_TABLES = (".parquet", ".arrow")
# Fields of each source.
_FIELDS = {"captions": rows.CAPTIONS, "questions": rows.QUESTIONS, "detection": rows.BOXES}
_SPLITS_IN_NAMES = r"train|val|test|dev"
# Aliases of splits.
_SPLIT_ALIASES = {"validation", "valid", "mini_val", "training"}


class Part(NamedTuple):
    """One source and split of a folder or a file."""

    source: str
    split: str
    #: The folder or file.
    data: Path

    def open(self, **options: Any) -> RecordSet:
        """Read the records. Arguments and errors are as in `open_source`."""
        return open_source(self.source, self.data, self.split, **options)


def parts_of(data: AnyPath, splits: Sequence[str] = ()) -> list[Part]:
    """List the sources and splits of a folder or a file: "train" first, then other splits by name.

    If `splits` is empty, all splits are listed. A file in a folder is read in full only if its name
    is ambiguous, such as "train.json".

    Raises:
        FileNotFoundError: if the folder or file does not exist.
        ValueError: if it contains no known data, or lacks one of `splits`.
    """
    path = local_path(data)
    if pack_description.is_pack(path):
        description = pack_description.read_description(path)
        parts_there = [Part(part["source"], part["split"], path) for part in description["parts"]]
    elif path.is_dir():
        parts_there = [part for source in SOURCES for part in _in_folder(source, path)]
    elif path.is_file():
        parts_there = list(_in_file(path))
    else:
        raise FileNotFoundError(f"folder or file {path} does not exist")
    if not parts_there:
        raise ValueError(_nothing(path))
    order = {source: index for index, source in enumerate(LAYOUTS)}
    parts_there.sort(key=lambda p: (p.split != "train", p.split, order.get(p.source, 0)))
    have = list(dict.fromkeys(part.split for part in parts_there))
    if missing := [split for split in splits if split not in have]:
        raise ValueError(
            f"{path} has no split {', '.join(map(shown, missing))}; available splits:"
            f" {', '.join(map(shown, have[:_MOST_SPLITS]))}"
        )
    return [part for part in parts_there if not splits or part.split in splits]


def _nothing(path: Path) -> str:
    """Return the error message for data without a known source."""
    if path.is_file():
        return f"{path}: {_unknown(path)}"
    if (unsupported := unsupported_data(path)) is not None:
        return unsupported
    tables = (file for file in sorted(path.iterdir()) if _is_ambiguous(file))
    first = "".join(f"; {file.name}: {_unknown(file)}" for file in itertools.islice(tables, 1))
    names = names_there(path)
    there = f"it has {shown_names(names, _MOST_THERE)}" if names else "it is empty"
    return (
        f"{path} has no known annotation files; {there}{first}. Pass an annotation file"
        " instead of the folder, or name it as in docs/data.md, such as train.jsonl,"
        " instances_train.json, train-000000.tar or train.parquet"
    )


def _unknown(path: Path) -> str:
    """Return the error message for a file without a known source."""
    if (unsupported := unsupported_data(path)) is not None:
        return unsupported
    try:
        fields = list(_fields_there(path))
    except (ValueError, OSError) as problem:
        return str(problem)
    if path.suffix in (".tar", *_TABLES):
        image = "" if path.suffix == ".tar" else f" in {_one_of(IMAGES)}"
        return (
            f"its fields are {shown_names(fields)}; expected an image{image}, and captions in"
            f" {_one_of(rows.CAPTIONS)}, questions in {_one_of(rows.QUESTIONS)}, or boxes in"
            f" {_one_of(rows.BOXES)}"
        )
    return (
        "unknown kind of records; expected captions, questions, statements or boxes in a layout"
        " described in docs/data.md"
    )


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _fields_there(path: Path) -> Iterable[str]:
    """Return the fields of the rows of a table, or of the samples of a shard."""
    if path.suffix in _TABLES:
        return open_table(path, TABLE_KIND).columns
    if path.suffix != ".tar":
        return ()
    file = TarFile(path)
    samples = itertools.islice(samples_of(file, {}), _SAMPLES_READ)
    return sorted({name for sample in samples for name in fields_of(file, sample)})


def _in_folder(source: str, folder: Path) -> Iterator[Part]:
    for split in _candidates(source, folder):
        try:
            reader, file = choose_layout(source, folder, split)
        except FileNotFoundError:
            continue
        except AmbiguousLayoutError as problem:
            # Each layout may have its own source; otherwise opening reports the ambiguity.
            yield from (Part(name, split, folder) for name in problem.sources or (source,))
            continue
        except ValueError:
            # Opening reports the error.
            yield Part(source, split, folder)
            continue
        if source == "detection" and file is None:
            detection = coco_folders.find(folder, split)
            file = None if detection is None else detection.file
        if reader in WITH_SPLITS and file is not None and split not in _karpathy_splits(file):
            continue
        if source == "objects365" and file is not None and not objects365.is_description(file):
            continue
        if file is None or not _is_ambiguous(file) or source in kinds_of(file):
            yield Part(source, split, folder)


def _candidates(source: str, folder: Path) -> Iterable[str]:
    splits = dict.fromkeys(("train", "restval", "val", "test"))
    if source == "detection":
        # `coco_folders` knows the split names of other tools.
        own = folder.glob(LAYOUTS[source][0].pattern.replace("{split}", "*"))
        splits |= dict.fromkeys(path.name.removeprefix("instances_")[:-5] for path in own)
    else:
        splits |= dict.fromkeys(splits_there(source, folder))
    return [split for split in splits if split not in _SPLIT_ALIASES]


def _is_ambiguous(file: Path) -> bool:
    """Return whether a name such as "train.json" is used for files of several sources."""
    return file.suffix in (".jsonl", ".csv", *PART_SUFFIXES) or (
        file.suffix == ".json" and bool(re.fullmatch(SPLIT_NAMES, file.stem))
    )


def _karpathy_splits(file: Path) -> set[str]:
    images = read_json(file, "Karpathy's splits").data.get("images")
    entries = images if isinstance(images, list) else ()
    splits = (entry.get("split") for entry in entries if isinstance(entry, dict))
    # Opening reports splits of other types.
    names = {split for split in splits if isinstance(split, str)}
    if len(names) > jsonl.MAX_SPLITS:
        raise ValueError(
            f"{file} has {len(names):,} splits; expected at most {jsonl.MAX_SPLITS}, such as train"
        )
    for split in names:
        if (problem := split_problem(split)) is not None:
            raise ValueError(f"{file} has {problem}")
    return names


def _in_file(path: Path) -> Iterator[Part]:
    named = [
        source
        for source in SOURCES
        for layout in LAYOUTS[source]
        if not Path(layout.pattern).name.startswith(("{split}.", "*."))
        and path.suffix not in PART_SUFFIXES
        and fnmatch(path.name, Path(layout.pattern.format(split="*")).name)
    ]
    kinds = kinds_of(path)
    if not kinds and (path.suffix in (".jsonl", ".csv") or line_reader.is_list(path)):
        # By its name, this is a user's own file; its reader will report the error.
        kinds = {"captions"}
    for source in dict.fromkeys(named or sorted(kinds, key=SOURCES.index)):
        match = re.search(rf"(?<![a-z])({_SPLITS_IN_NAMES})(?![a-z])", path.stem)
        splits = [match[1] if match else "train"]
        reader = file_reader(source, path, splits[0])
        if reader in WITH_SPLITS:
            splits = sorted(_karpathy_splits(path))
        elif reader in OWN_READERS:
            splits = jsonl.splits_in(path) or splits
        yield from (Part(source, split, path) for split in splits)


def kinds_of(path: Path) -> set[str]:
    """Return the possible sources of a file based on its content, or a guess if it is broken."""
    try:
        if path.suffix in (".tar", *_TABLES):
            fields = set(_fields_there(path))
            if "image_0" in fields:
                return {"reasoning"}
            if {"sentences", "labels"} <= fields:
                return {"entailment"}
            return {source for source, names in _FIELDS.items() if fields.intersection(names)}
        if path.suffix in (".jsonl", ".csv") or line_reader.is_list(path):
            return jsonl.kinds_in(path)
        if path.suffix == ".json":
            return _kinds_of_json(read_json(path, "annotations").data, path.name)
    except (ValueError, OSError):
        # Opening reports the error.
        return {"detection"} if path.suffix == ".json" else {"captions"}
    by_suffix = {".yaml": {"objects365"}, ".tsv": {"captions"}, ".txt": {"phrases"}}
    return by_suffix.get(path.suffix, set())


def _kinds_of_json(data: dict[str, Any], name: str) -> set[str]:
    first = {
        key: value[0]
        for key, value in data.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    image, annotation = first.get("images", {}), first.get("annotations", {})
    if "questions" in data:
        return {"questions"}
    if "sentences" in image or "caption" in annotation:
        return {"captions"}
    if "caption" in image:
        if "data_source" in image:
            return {"mixed"}
        return {"referring"} if "refcoco" in name else {"phrases"}
    if "identifier" in data:
        return {"reasoning"}
    return {"detection"} if "images" in data and "annotations" in data else set()
