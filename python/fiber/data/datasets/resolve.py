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
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from itertools import islice
from os import PathLike
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeGuard

from fiber.config_io import nearest
from fiber.data.datasets.registry import (
    HELD_OUT,
    SOURCES,
    SPLIT_NAMES,
    layouts_of,
    where_to_get,
)
from fiber.data.formats import jsonl, line_reader
from fiber.data.formats.annotation_file import TRY_WITH, without_garbage_collection
from fiber.data.formats.arrow import Tables
from fiber.data.formats.generated import other_version
from fiber.data.formats.layout import LINES, PART_SUFFIXES, TABLES, Layout
from fiber.data.formats.unsupported import names_there, unsupported_data
from fiber.data.formats.webdataset import Shards
from fiber.data.in_memory.rows import open_rows, splits_in_memory
from fiber.data.in_memory.tables import Rows, is_rows, kinds_of
from fiber.data.record import AnyPath, ConcatRecords, Record, RecordSet
from fiber.data.storage import held_out, pack_description, packed
from fiber.data.storage.remote_pack import local_path
from fiber.messages import shown, shown_names

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
def open_source(source: str, data: AnyPath | Rows, split: str, **options: Any) -> RecordSet:
    """Read the records of a source and split in any known layout.

    Args:
        source: a key of `registry.SOURCES`.
        data: data folder or annotation file, or the URL of a packed folder (see `remote_pack`). The
            images of an annotation file are looked up relative to its folder. Or rows (see
            `fiber.data.in_memory`).
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
    if source not in SOURCES:
        raise ValueError(f"unknown source {shown(source)}; {nearest(str(source)[:60], SOURCES)}")
    if not isinstance(split, str):
        raise TypeError(f"split must be a string such as 'train', got {shown(split)}")
    asked = split.split("+")
    if not all(asked):
        raise ValueError(f"split must be a name, or several joined by '+', got {shown(split)}")
    if not isinstance(data, str | PathLike):
        if not is_rows(data):
            check_supported(data, "data must be the path of a folder or file, or rows")
            raise TypeError(
                f"data must be the path of a folder or file, or rows, got {shown(data)}"
            )
        # Rows without splits are read as a whole, and only once.
        asked = asked if splits_in_memory(data) else [split]
        parts = [open_rows(source, data, part, **options) for part in asked]
        return parts[0] if len(parts) == 1 else ConcatRecords(parts)
    path = local_path(data)
    if pack_description.is_pack(path):
        parts = [packed.open_pack(path, source, part, **options) for part in asked]
    elif path.is_file():
        layout = file_layout(source, path, split)
        if layout.recognize:
            parts = [_open_split(source, path, part, options) for part in asked]
        else:
            # A file without splits is read as a whole, and only once.
            splits = asked if layout.has_splits else [split]
            if layout.split in asked:
                splits = [layout.split]
            parts = [_read(layout, path.parent, part, [path], options) for part in splits]
    else:
        splits = _splits_of(source, path, asked)
        parts = [_open_split(source, path, part, options) for part in splits]
    return parts[0] if len(parts) == 1 else ConcatRecords(parts)


def _open_split(source: str, data: Path, split: str, options: dict[str, Any]) -> RecordSet:
    """Read a split of a folder, or of a file that describes one; see `held_out`."""
    layout, files = choose_layout(source, data, split)
    folder = data if data.is_dir() else data.parent
    if not layout.holds_out or split not in ("train", HELD_OUT) or _has_held_out(source, data):
        return _read(layout, folder, split, files, options)
    shots = options.get("shots", 0)
    if shots:
        options = {**options, "shots": 0}
    return held_out.divided(_read(layout, folder, "train", files, options), split, shots)


def holds_out(source: str, data: AnyPath) -> bool:
    """Return whether "val" of data that can be opened is a part of the training images."""
    path = Path(data)
    if path.is_file() and not file_layout(source, path, HELD_OUT).recognize:
        return False
    find = SOURCES[source].find
    if find and path.is_dir() and (found := resolve_name(find)(path, HELD_OUT)) is not None:
        return found.is_divided
    return not (pack_description.is_pack(path) or _has_held_out(source, path))


def _has_held_out(source: str, data: Path) -> bool:
    try:
        return bool(_own_layout(source, data, HELD_OUT))
    except ValueError:
        # Opening reports the error.
        return True


def _read(
    layout: Layout, folder: Path, split: str, files: list[Path], options: dict[str, Any]
) -> RecordSet:
    """Read a split from files of a layout. If there are none, the reader finds its file itself."""
    reader = resolve_name(layout.reader)
    if not files:
        return reader(folder, split, **options)
    if files[0].suffix not in PART_SUFFIXES:
        return reader(folder, split, annotations=files[0], **options)
    is_shard = files[0].suffix == ".tar"
    return reader(Shards(files) if is_shard else Tables(files, layout.kind), **options)


def _splits_of(source: str, folder: Path, asked: list[str]) -> list[str]:
    """Return the requested splits that a source has."""
    if all(layout.split == "train" for layout in layouts_of(source)):
        if "train" not in asked:
            raise ValueError(
                f"{source} has only a 'train' split, got split {shown('+'.join(asked))}"
            )
        return [split for split in asked if split == "train"]
    optional = SOURCES[source].optional_splits if "train" in asked else ()
    return [s for s in asked if s not in optional or _layouts_in(source, folder, s)]


def has_splits(source: str, data: AnyPath | Rows, split: str) -> bool:
    """Return whether `data` has separate splits.

    A folder always does; a file does only if it names them, as do rows in memory. Arguments must be
    those of a successful call to `open_source`.
    """
    if not isinstance(data, str | PathLike):
        return bool(splits_in_memory(data))
    path = Path(data)
    if not path.is_file():
        return True
    layout = file_layout(source, path, split)
    if layout.kind == LINES:
        return jsonl.names_splits(path)
    return layout.has_splits or bool(layout.recognize)


def choose_layout(source: str, data: Path, split: str) -> tuple[Layout, list[Path]]:
    """Choose the layout that a folder uses for a split of a source.

    Return it with its files: the parts of one, or none if the reader finds the file itself.

    Raises:
        FileNotFoundError: if no layout matches.
        AmbiguousLayoutError: if several layouts match.
        ValueError: if several detection files match one layout.
    """
    if (found := _own_layout(source, data, split)) is not None:
        return found
    if split == HELD_OUT and any(layout.holds_out for layout in layouts_of(source)):
        training = _own_layout(source, data, "train")
        if training is not None and training[0].holds_out:
            return training
    raise FileNotFoundError(_missing(source, data, split))


def _own_layout(source: str, data: Path, split: str) -> tuple[Layout, list[Path]] | None:
    """Choose the layout that has files for a split; None if there is none. Errors: see above."""
    row, first = SOURCES[source], layouts_of(source)[0]
    if data.is_file():
        matches = _layouts_in(source, data, split)
        return next(iter(matches.items()), None)
    # The layout that `fiber data` writes has priority.
    if files := _first_files(source, data, split):
        return first, [] if first == row.standard else files
    # The boxes of a split may be part of another split's file.
    if row.find and (file := resolve_name(row.find)(data, split)) is not None:
        for files in _recognized(source, data, split).values():
            raise AmbiguousLayoutError(
                f"{data} has {source} for split {shown(split)} in several formats; pass one of"
                f" these instead: {file.file}, {files[0]}",
                (),
            )
        return first, []
    matches = _layouts_in(source, data, split)
    if not matches:
        return None
    if len(matches) > 1:
        names = ", ".join(str(files[0].relative_to(data)) for files in matches.values())
        others = (name for name in SOURCES if name != source)
        raise AmbiguousLayoutError(
            f"{data} has {source} for split {shown(split)} in several layouts; pass one of these"
            f" files instead: {names}",
            tuple(name for name in others if _reads_one(name, data, split, matches)),
        )
    return next(iter(matches.items()))


def _first_files(source: str, folder: Path, split: str) -> list[Path]:
    """Return the files with the first name of a source."""
    first = layouts_of(source)[0]
    return _matching(folder, first.names[0], split) if first.split in ("", split) else []


def _layouts_in(source: str, folder: Path, split: str) -> dict[Layout, list[Path]]:
    """Return the layouts of a source that match files in a folder, with the files of each."""
    matches: dict[Layout, list[Path]] = _recognized(source, folder, split)
    for layout in sorted(layouts_of(source), key=lambda layout: layout.is_fallback):
        if layout.split not in ("", split) or (layout.is_fallback and matches):
            continue
        if layout.recognize:
            continue
        found = (_matching(folder, name, split) for name in layout.names)
        files = next(filter(None, found), None)
        if files and (not layout.accepts or resolve_name(layout.accepts)(files[0])):
            matches[layout] = files
    return matches


def _recognized(source: str, data: Path, split: str) -> dict[Layout, list[Path]]:
    """Return the layouts that recognize a folder, or its description, with the path of a split."""
    found = {}
    for layout in layouts_of(source):
        if layout.recognize and split in (splits := resolve_name(layout.recognize)(data)):
            found[layout] = [splits[split]]
    return found


def _reads_one(source: str, folder: Path, split: str, matches: Mapping[Layout, list[Path]]) -> bool:
    """Return whether `source` would select exactly one of the layouts in `matches`."""
    common = matches.keys() & set(layouts_of(source))
    return len(common) == 1 or bool(common and _first_files(source, folder, split))


def _matching(folder: Path, name: str, split: str) -> list[Path]:
    """Return the files with a name of a layout, ordered by the number at the end of their names."""
    found = folder.glob(name.format(split=split)) if folder.is_dir() else ()
    return sorted((path for path in found if path.is_file()), key=_numbered)


def _numbered(path: Path) -> tuple[int, str]:
    last = re.search(r"\d+$", path.stem)
    return (int(last[0]) if last else 0, path.name)


def _missing(source: str, folder: Path, split: str) -> str:
    """Return the error message for a missing source: what is there, what to do, expected files."""
    if folder.is_file():
        found = splits_there((each for each in layouts_of(source) if each.recognize), folder)
        there = shown_names(found)
        return f"{folder} has no {source} for split {shown(split)}; available splits: {there}"
    if not folder.is_dir():
        return f"{folder} does not exist; expected a data folder or an annotation file"
    problem = f"{folder} has no {source} for split {shown(split)}"
    if (unsupported := unsupported_data(folder, source)) is not None:
        return f"{problem}: {unsupported}"
    if splits := splits_there(layouts_of(source), folder):
        advice = f"available splits: {shown_names(splits)}. Ask for one of these, or pass"
    elif names := names_there(folder):
        advice = f"it has {shown_names(names, _MOST_THERE)}. Pass"
    else:
        advice = "it is empty. Pass"
    kinds: dict[str, list[str]] = {}
    for layout in (each for each in layouts_of(source) if each.split in ("", split)):
        required = f" with {layout.companion}" if layout.companion else ""
        names = [f"{name}{required}".format(split=split) for name in layout.names]
        kinds.setdefault(layout.kind, []).extend(names)
    expected = []
    # Few users have files of the published code.
    last = ("published", "an image folder")
    likely = sorted(kinds.items(), key=lambda item: item[0].startswith(last))
    for kind, names in islice(likely, _MOST_KINDS):
        origin = f", from {where_to_get(kind)}" if where_to_get(kind) else ""
        expected.append(f"{names[0]} ({kind}{origin})")
    more = sum(map(len, kinds.values())) - len(expected)
    others = f", and {more} more names (docs/data.md)" if more else ""
    return (
        f"{problem}; {advice} an annotation file instead of the folder. Known names are"
        f" {', '.join(expected)}{others}"
    )


def splits_there(layouts: Iterable[Layout], folder: Path) -> list[str]:
    """Return the splits for which a folder has files of some layouts."""
    layouts, found = list(layouts), set[str | None]()
    for layout in layouts:
        if layout.recognize:
            found.update(resolve_name(layout.recognize)(folder))
    named = (each for each in layouts if not each.recognize)
    for layout, name in ((each, name) for each in named for name in each.names):
        pattern = re.escape(name).replace(r"\*", ".*")
        # Unrelated files may be called "x.json".
        is_any = name.startswith("{split}.") or layout.is_fallback
        pattern = pattern.replace(r"\{split\}", f"(?P<split>{SPLIT_NAMES if is_any else '.+?'})")
        for path in _matching(folder, name, "*"):
            match = re.fullmatch(pattern, path.relative_to(folder).as_posix())
            if match:
                found.add(layout.split or match.groupdict().get("split"))
    return sorted(filter(None, found))


def file_layout(source: str, path: Path, split: str) -> Layout:
    """Choose the layout of a file by its name, or else by its extension.

    Raises:
        ValueError: if no layout of the source has this extension.
    """
    by_suffix, suffix = layouts_by_suffix(source), path.suffix
    lines = by_suffix.get(".jsonl")
    may_be_list = suffix == ".json" and lines is not None and lines.kind == LINES
    is_list = may_be_list and line_reader.is_list(path)
    # A list is never a COCO file, whatever its name.
    for layout in layouts_of(source):
        names = (Path(name.format(split=split)).name for name in layout.names)
        if layout.recognize and not resolve_name(layout.recognize)(path):
            continue
        if is_list and SOURCES[source].find and not layout.recognize:
            continue
        if suffix not in PART_SUFFIXES and any(fnmatch(path.name, name) for name in names):
            return layout
    suffix = ".jsonl" if is_list else suffix
    if suffix not in by_suffix:
        if (unsupported := unsupported_data(path)) is not None:
            raise ValueError(unsupported)
        raise ValueError(
            f"{path} is not a {source} file; expected a folder, or a file that ends in"
            f" {', '.join(by_suffix)}"
        )
    return by_suffix[suffix]


def layouts_by_suffix(source: str) -> dict[str, Layout]:
    """Return the layout of other file names by extension, that of the kind for a named dataset."""
    kind = SOURCES[source].of or source
    found: dict[str, Layout] = {}
    for layout in (each for each in layouts_of(kind) if not each.recognize):
        for name in layout.names:
            found.setdefault(Path(name).suffix, layout)
    if reader := SOURCES[kind].row_reader:
        tables = Layout(reader, TABLES)
        found |= {".arrow": tables, ".parquet": tables}
    return found


#: Type of the `data` argument of `fiber.train` and `fiber.evaluate`: a folder or an annotation
#: file, rows in memory, one record set, or one record set per task.
Data = AnyPath | Rows | RecordSet | Mapping[str, RecordSet]

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
        got += "; pass a list of it, [record]" * isinstance(given, Record)
    raise TypeError(f"{expected}; got {got}")


def check_supported(given: Any, expected: str) -> None:
    """Raise TypeError for rows that are read only in order."""
    if kinds_of(given) & {"datasets.IterableDataset", "datasets.IterableDatasetDict"}:
        raise TypeError(
            f"{expected}; got a {type(given).__name__} of datasets, which has no length; load it"
            " without streaming=True, or write it by to_parquet"
        )


def is_readable(data: Any) -> TypeGuard[AnyPath | Rows]:
    """Return whether `open_source` reads data: a path, or rows in memory. Others are records."""
    return isinstance(data, str | PathLike) or is_rows(data)


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
    raise missing_data(path)


def missing_data(path: Path) -> FileNotFoundError:
    """Make the error for a data folder or file that does not exist; it names a similar one."""
    kind = "file" if path.suffix else "folder"
    close = difflib.get_close_matches(path.name, names_there(path.parent), n=1)
    advice = f"did you mean {path.parent / close[0]}?" if close else "check its path"
    if path.parts[:1] == ("~",):
        advice = "'~' is not expanded; pass the whole path (os.path.expanduser)"
    return FileNotFoundError(f"data {kind} {path} does not exist; {advice} ({TRY_WITH})")
