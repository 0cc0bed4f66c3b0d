"""Open a data folder or an annotation file in any known layout.

    open_source("captions", "photos/train.jsonl", "train")     JSON lines
    open_source("captions", "coco", "train+val")               coco/dataset_coco.json
    open_source("questions", "vqa", "val")                     vqa/v2_OpenEnded_mscoco_val2014_...

Layouts are recognized by file name. Splits joined by "+" are concatenated.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.config_io import nearest
from fiber.data.datasets.registry import (
    BY_SUFFIX,
    COMPANION_FILES,
    LAYOUTS,
    PART_SUFFIXES,
    SPLIT_NAMES,
    TRAINING_ONLY,
    TRAINING_READERS,
    WITH_SPLITS,
    Reader,
    matching,
)
from fiber.data.formats import coco_folders, jsonl, line_reader
from fiber.data.formats.annotation_file import (
    FILES,
    TRY_WITH,
    where_to_get,
    without_garbage_collection,
)
from fiber.data.formats.generated import other_version
from fiber.data.formats.unsupported import names_there, unsupported_data, unsupported_object
from fiber.data.record import AnyPath, ConcatRecords, Record, RecordSet, record_in_epoch
from fiber.data.storage import pack_description, packed
from fiber.data.storage.remote_pack import local_path
from fiber.data.storage.shard_order import ShardMap, shard_map_of
from fiber.messages import shown, shown_names

#: Readers of a user's own lines, and the sources that they read.
OWN_READERS = (jsonl.jsonl_captions, jsonl.jsonl_questions, jsonl.jsonl_boxes)
OWN_KINDS = ("captions", "questions", "detection")
#: Number of kinds of files in a message, and of names of what is in a folder.
_MOST_KINDS, _MOST_THERE = 4, 6


class AmbiguousLayoutError(ValueError):
    """Raised if a folder has several layouts of a source.

    `sources` lists more specific sources, each of which selects one of these layouts.
    """

    def __init__(self, problem: str, sources: tuple[str, ...]) -> None:
        super().__init__(problem)
        self.sources = sources


@without_garbage_collection()
def open_source(source: str, data: AnyPath, split: str, **options: Any) -> RecordSet:
    """Read the records of a source and split in any known layout.

    Args:
        source: a key of `registry.LAYOUTS`.
        data: data folder or annotation file, or the URL of a packed folder (see `remote_pack`). The
            images of an annotation file are looked up relative to its folder.
        split: a split name, or several joined by "+". A file without splits is read as a whole. If
            "train" is requested, other splits of training-only sources (such as Visual Genome and
            SBU) and a missing "val" or "restval" split of Conceptual Captions are ignored.
        options: options of the reader, such as `whole_expression` of `sources.referring`.

    Raises:
        FileNotFoundError: if the folder or file does not exist, or the folder has no file of the
            source.
        AmbiguousLayoutError: if the folder has several layouts of the source.
        TypeError: if the type of `data` or `split` is wrong.
        ValueError: if the source is unknown or never has the split, or if the file is invalid.
    """
    if source not in LAYOUTS:
        raise ValueError(f"unknown source {shown(source)}; {nearest(str(source)[:60], LAYOUTS)}")
    if not isinstance(data, str | PathLike):
        got = unsupported_object(data) or shown(data)
        raise TypeError(f"data must be the path of a folder or file, got {got}")
    if not isinstance(split, str):
        raise TypeError(f"split must be a string such as 'train', got {shown(split)}")
    path, asked = local_path(data), split.split("+")
    if not all(asked):
        raise ValueError(f"split must be a name, or several joined by '+', got {shown(split)}")
    if pack_description.is_pack(path):
        parts = [packed.open_pack(path, source, part, **options) for part in asked]
    elif path.is_file():
        reader = file_reader(source, path, split)
        # A file without splits is read as a whole, and only once.
        splits = asked if reader in WITH_SPLITS else [split]
        if reader in TRAINING_READERS and "train" in asked:
            splits = ["train"]
        parts = [reader(path.parent, part, annotations=path, **options) for part in splits]
    else:
        parts = []
        for part in _splits_of(source, path, asked):
            reader, file = choose_layout(source, path, part)
            named = {} if file is None else {"annotations": file}
            parts.append(reader(path, part, **named, **options))
    return parts[0] if len(parts) == 1 else ConcatRecords(parts)


def _splits_of(source: str, folder: Path, asked: list[str]) -> list[str]:
    """Return the requested splits that a source has."""
    if source in TRAINING_ONLY:
        if "train" not in asked:
            raise ValueError(
                f"{source} has only a 'train' split, got split {shown('+'.join(asked))}"
            )
        return [split for split in asked if split == "train"]
    if source == "conceptual_captions" and "train" in asked:
        optional = ("val", "restval")
        return [s for s in asked if s not in optional or _layouts_in(source, folder, s)]
    return asked


def has_splits(source: str, data: AnyPath, split: str) -> bool:
    """Return whether `data` has separate splits.

    A folder always does; a file does only if it names them. Arguments must be those of a successful
    call to `open_source`.
    """
    path = Path(data)
    if not path.is_file():
        return True
    reader = file_reader(source, path, split)
    return jsonl.names_splits(path) if reader in OWN_READERS else reader in WITH_SPLITS


def choose_layout(source: str, data: Path, split: str) -> tuple[Reader, Path | None]:
    """Choose the layout that a folder uses for a split of a source.

    Return its reader and the first of its files (None if the reader finds the file itself).

    Raises:
        FileNotFoundError: if no layout matches.
        AmbiguousLayoutError: if several layouts match.
        ValueError: if several detection files match one layout.
    """
    first = LAYOUTS[source][0]
    # The layout that `fiber data` writes has priority.
    if first.split in ("", split) and (files := matching(data, first.pattern, split)):
        return first.reader, None if first.pattern in FILES.values() else files[0]
    # The boxes of a split may be part of another split's file.
    if source == "detection" and coco_folders.find(data, split) is not None:
        return first.reader, None
    matches = _layouts_in(source, data, split)
    if not matches:
        raise FileNotFoundError(_missing(source, data, split))
    if len(matches) > 1:
        names = ", ".join(str(path.relative_to(data)) for path in matches.values())
        others = (name for name in LAYOUTS if name != source)
        raise AmbiguousLayoutError(
            f"{data} has {source} for split {shown(split)} in several layouts; pass one of these"
            f" files instead: {names}",
            tuple(name for name in others if _reads_one(name, data, split, matches)),
        )
    return next(iter(matches.items()))


def _layouts_in(source: str, folder: Path, split: str) -> dict[Reader, Path]:
    """Return the readers of a source that match files in a folder, with the first file of each."""
    matches: dict[Reader, Path] = {}
    for layout in sorted(LAYOUTS[source], key=lambda layout: layout.is_fallback):
        if layout.split not in ("", split) or (layout.is_fallback and matches):
            continue
        for path in matching(folder, layout.pattern, split)[:1]:
            matches.setdefault(layout.reader, path)
    return matches


def _reads_one(source: str, folder: Path, split: str, matches: dict[Reader, Path]) -> bool:
    """Return whether `source` would select exactly one of the readers in `matches`."""
    common = matches.keys() & {layout.reader for layout in LAYOUTS[source]}
    return len(common) == 1 or bool(common and matching(folder, LAYOUTS[source][0].pattern, split))


def _missing(source: str, folder: Path, split: str) -> str:
    """Return the error message for a missing source: what is there, what to do, expected files."""
    if not folder.is_dir():
        return f"{folder} does not exist; expected a data folder or an annotation file"
    problem = f"{folder} has no {source} for split {shown(split)}"
    if (unsupported := unsupported_data(folder)) is not None:
        return f"{problem}: {unsupported}"
    if splits := splits_there(source, folder):
        advice = f"available splits: {shown_names(splits)}. Ask for one of these, or pass"
    elif names := names_there(folder):
        advice = f"it has {shown_names(names, _MOST_THERE)}. Pass"
    else:
        advice = "it is empty. Pass"
    kinds: dict[str, list[str]] = {}
    for layout in (each for each in LAYOUTS[source] if each.split in ("", split)):
        names = " with ".join([layout.pattern, *COMPANION_FILES.get(layout.pattern, ())])
        kinds.setdefault(layout.kind, []).append(names.format(split=split))
    expected = []
    # Files of the published code are what few users have.
    likely = sorted(kinds.items(), key=lambda item: item[0].startswith("published"))
    for kind, names in islice(likely, _MOST_KINDS):
        origin = f", from {where_to_get(kind)}" if where_to_get(kind) else ""
        expected.append(f"{names[0]} ({kind}{origin})")
    more = sum(map(len, kinds.values())) - len(expected)
    others = f", and {more} more names (docs/data.md)" if more else ""
    return (
        f"{problem}; {advice} an annotation file instead of the folder. Known names are"
        f" {', '.join(expected)}{others}"
    )


def splits_there(source: str, folder: Path) -> list[str]:
    """Return the splits for which a folder has files of a source."""
    found = set()
    for layout in LAYOUTS[source]:
        pattern = re.escape(layout.pattern).replace(r"\*", ".*")
        # Unrelated files may be called "x.json".
        is_any = layout.pattern.startswith("{split}.") or layout.is_fallback
        pattern = pattern.replace(r"\{split\}", f"(?P<split>{SPLIT_NAMES if is_any else '.+?'})")
        for path in matching(folder, layout.pattern, "*"):
            match = re.fullmatch(pattern, path.relative_to(folder).as_posix())
            if match:
                found.add(layout.split or match.groupdict().get("split"))
    return sorted(filter(None, found))


def file_reader(source: str, path: Path, split: str) -> Reader:
    """Choose the reader of a file by its name, or else by its extension.

    Raises:
        ValueError: if no layout of the source has this extension.
    """
    # A list is never a COCO file, whatever its name.
    is_own_list = source == "detection" and path.suffix == ".json" and line_reader.is_list(path)
    for layout in () if is_own_list else LAYOUTS[source]:
        name = Path(layout.pattern.format(split=split)).name
        if path.suffix not in PART_SUFFIXES and fnmatch(path.name, name):
            return layout.reader
    suffix = path.suffix
    if suffix == ".json" and _kind(source) in OWN_KINDS and line_reader.is_list(path):
        suffix = ".jsonl"
    reader = BY_SUFFIX.get((_kind(source), suffix))
    if reader is None:
        if (unsupported := unsupported_data(path)) is not None:
            raise ValueError(unsupported)
        suffixes = ", ".join(end for name, end in BY_SUFFIX if name == _kind(source))
        raise ValueError(
            f"{path} is not a {source} file; expected a folder, or a file that ends in {suffixes}"
        )
    return reader


def _kind(source: str) -> str:
    """Return `source`, or "captions" if it is a named caption dataset."""
    return source if any(source == name for name, _ in BY_SUFFIX) else "captions"


#: Type of the `data` argument of `fiber.train` and `fiber.evaluate`: a folder or an annotation
#: file, one record set, or one record set per task.
Data = AnyPath | RecordSet | Mapping[str, RecordSet]

#: Description of a record set in messages.
RECORD_SET = "a map-style collection of fiber.data.Record"


def check_records(given: Any, expected: str) -> None:
    """Raise TypeError unless `given` looks like a record set, based on its first item."""
    check_supported(given, expected)
    kind = type(given).__name__
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, str):
        try:
            if not len(given) or isinstance(given[0], Record):
                return
            got = f"{kind} whose first item is {shown(given[0])} ({type(given[0]).__name__})"
        except (KeyError, TypeError) as error:
            got = f"{kind}, of which [0] fails with {type(error).__name__}"
    else:
        got = f"{kind} {shown(given)}"
    raise TypeError(f"{expected}; got {got}")


def check_supported(given: Any, expected: str) -> None:
    """Raise TypeError, with what to do, for data such as a data frame; see `unsupported_object`."""
    if (advice := unsupported_object(given)) is not None:
        raise TypeError(f"{expected}; got {advice}")


class ChosenRecords:
    """The subset of a record set at the given indices."""

    def __init__(self, records: RecordSet, indices: Sequence[int]) -> None:
        self.records = records
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.records[self.indices[index]]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return the version of a record used in the given epoch."""
        return record_in_epoch(self.records, epoch, self.indices[index])

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if the records have no shards."""
        return shard_map_of(self.records).chosen(self.indices)


def existing_data(data: AnyPath) -> Path:
    """Return the path of a data folder or file; for a URL, that of its local folder.

    Warns of a folder that another version of `fiber data` made.

    Raises:
        FileNotFoundError: if it does not exist.
        RemoteError, ValueError: see `remote_pack`.
    """
    path = local_path(data)
    if path.exists():
        if (problem := other_version(path)) is not None:
            warnings.warn(f"{problem}: results are not comparable", stacklevel=3)
        return path
    kind = "file" if path.suffix else "folder"
    close = difflib.get_close_matches(path.name, names_there(path.parent), n=1)
    advice = f"did you mean {path.parent / close[0]}?" if close else "check its path"
    raise FileNotFoundError(f"data {kind} {path} does not exist; {advice} ({TRY_WITH})")
