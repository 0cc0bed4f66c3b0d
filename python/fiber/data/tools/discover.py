"""Discover which sources and splits a folder or a file contains."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import accumulate, islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from fiber.data.datasets.registry import (
    HELD_OUT,
    KINDS,
    SOURCES,
    SPLIT_NAMES,
    layouts_of,
)
from fiber.data.datasets.resolve import (
    AmbiguousLayoutError,
    choose_layout,
    file_layout,
    holds_out,
    layouts_by_suffix,
    missing_data,
    open_source,
    splits_there,
)
from fiber.data.formats import jsonl, line_reader, rows
from fiber.data.formats.annotation_file import read_json
from fiber.data.formats.arrow import IMAGES
from fiber.data.formats.arrow_table import open_table
from fiber.data.formats.folders.yaml_file import read_yaml
from fiber.data.formats.json_values import split_problem
from fiber.data.formats.layout import LINES, PART_SUFFIXES, TABLES, Layout
from fiber.data.formats.line_reader import LineReader
from fiber.data.formats.unsupported import names_there, unsupported_data
from fiber.data.formats.webdataset import fields_of, samples_of
from fiber.data.record import AnyPath, RecordSet
from fiber.data.storage import pack_description
from fiber.data.storage.held_out import TooFewImagesError
from fiber.data.storage.remote_pack import local_path
from fiber.data.storage.tar import TarFile
from fiber.messages import shown, shown_names

#: Maximum number of splits, and of names of what is in a folder, in a message.
_MOST_SPLITS, _MOST_THERE = 12, 6
#: Number of samples of a shard to read when discovering its fields.
_SAMPLES_READ = 100
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
        parts_there = [part for source in KINDS for part in _in_folder(source, path)]
    elif path.is_file():
        parts_there = list(_in_file(path))
    else:
        raise missing_data(path)
    if not parts_there:
        raise ValueError(_nothing(path))
    order = {source: index for index, source in enumerate(SOURCES)}
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
    first = ""
    for file in islice(tables, 1):
        if readable := sorted(kinds_of(file)):
            return (
                f"{path} has no annotation file with the name of a split, but {file.name} has"
                f" {', '.join(readable)}; pass {file}, or name it train{file.suffix}"
            )
        first = f"; {file.name}: {_unknown(file)}"
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
    if path.suffix in PART_SUFFIXES:
        image = "" if path.suffix == ".tar" else f" in {_one_of(IMAGES)}"
        *most, last = (f"{kind} in {_one_of(names)}" for kind, (names, _) in rows.FIELDS.items())
        return (
            f"its fields are {shown_names(fields)}; expected an image{image}, and"
            f" {', '.join(most)}, or {last}"
        )
    if path.suffix in (".jsonl", ".csv"):
        try:
            for _ in islice(LineReader(path, None).walk(), 1):
                pass
        except (ValueError, OSError) as problem:
            return str(problem).removeprefix(f"{path}: ")
    hint = "; save a table as .csv" if path.suffix.lower() in (".xls", ".xlsx", ".ods") else ""
    return (
        "unknown kind of records; expected captions, questions, statements or boxes in a layout"
        f" described in docs/data.md{hint}"
    )


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _fields_there(path: Path) -> Iterable[str]:
    """Return the fields of the rows of a table, or of the samples of a shard."""
    if path.suffix not in PART_SUFFIXES:
        return ()
    if path.suffix != ".tar":
        return open_table(path, TABLES).columns
    file = TarFile(path)
    samples = islice(samples_of(file, {}), _SAMPLES_READ)
    return sorted({name for sample in samples for name in fields_of(file, sample)})


def _in_folder(source: str, folder: Path) -> Iterator[Part]:
    for split in _candidates(source, folder):
        try:
            layout, files = choose_layout(source, folder, split)
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
        find = SOURCES[source].find
        if not files and find and (found := resolve_name(find)(folder, split)) is not None:
            files = [found.file]
        if all(_is_of(source, split, layout, file) for file in files[:1]) and (
            split != HELD_OUT or not layout.holds_out or _has_enough(source, folder)
        ):
            yield Part(source, split, folder)


def _has_enough(source: str, folder: Path) -> bool:
    """Return False if "val" is a part of "train", which has too few images for that."""
    try:
        if holds_out(source, folder):
            open_source(source, folder, HELD_OUT)
    except TooFewImagesError:
        return False
    except (OSError, ValueError):
        # Opening reports the error.
        pass
    return True


def _is_of(source: str, split: str, layout: Layout, file: Path) -> bool:
    """Return whether a file, found by its name, has a source and a split by its content."""
    if layout.recognize:
        return True
    if layout.has_splits and split not in _karpathy_splits(file):
        return False
    if layout.accepts and not resolve_name(layout.accepts)(file):
        return False
    return not _is_ambiguous(file) or source in kinds_of(file)


def _candidates(source: str, folder: Path) -> Iterable[str]:
    layouts = layouts_of(source)
    # `find` knows the names of splits in other layouts.
    there = splits_there(layouts[:1] if SOURCES[source].find else layouts, folder)
    splits = dict.fromkeys(("train", "restval", "val", "test", *there))
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
    recognized = {
        source: splits
        for source in KINDS
        for layout in layouts_of(source)
        if layout.recognize and (splits := resolve_name(layout.recognize)(path))
    }
    for source, splits in recognized.items():
        # A part of "train" is held out.
        held_out = {HELD_OUT} if "train" in splits and _has_enough(source, path) else set()
        yield from (Part(source, split, path) for split in sorted({*splits, *held_out}))
    if recognized:
        return
    named = {
        source
        for source in KINDS
        for layout in layouts_of(source)
        for name in layout.names
        if not Path(name).name.startswith(("{split}.", "*."))
        and path.suffix not in PART_SUFFIXES
        and fnmatch(path.name, Path(name.format(split="*")).name)
    }
    kinds = kinds_of(path)
    if not kinds and (path.suffix in (".jsonl", ".csv") or line_reader.is_list(path)):
        # By its name, this is a user's own file; its reader will report the error.
        kinds = {"captions"}
    for source in (source for source in KINDS if source in (named or kinds)):
        match = re.search(rf"(?<![a-z])({_SPLITS_IN_NAMES})(?![a-z])", path.stem)
        splits = [match[1] if match else "train"]
        layout = file_layout(source, path, splits[0])
        if layout.has_splits:
            splits = sorted(_karpathy_splits(path))
        elif layout.kind == LINES:
            splits = jsonl.splits_in(path) or splits
        yield from (Part(source, split, path) for split in splits)


def kinds_of(path: Path) -> set[str]:
    """Return the possible sources of a file based on its content, or a guess if it is broken."""
    try:
        form, keys = _keys_of(path)
    except (ValueError, OSError):
        # Opening reports the error.
        return {"detection"} if path.suffix == ".json" else {"captions"}
    marks = [
        # "json.images.caption" includes "json.images".
        (source, {part for key in mark for part in accumulate(key.split("."), "{}.{}".format)})
        for source, row in KINDS.items()
        for mark in row.marks
        if all(_has(path, form, keys, key) for key in mark)
    ]
    for source, mark in marks:
        if not any(mark < other for _, other in marks):
            return {source}
    if not form:
        return {source for source in KINDS if path.suffix in layouts_by_suffix(source)}
    kinds_in = {"lines": jsonl.kinds_in, "rows": rows.kinds_in}.get(form)
    kinds = kinds_in(keys) if kinds_in is not None else ()
    return {source for source, row in KINDS.items() if row.rows in kinds}


def _keys_of(path: Path) -> tuple[str, Mapping[str, Collection[str]]]:
    """Return "json", "lines" or "rows" ("" for other formats), and the keys or fields in a file.

    Each key of a JSON object has the keys of its first entry, if it is a list of objects.
    """
    if path.suffix in PART_SUFFIXES:
        return "rows", dict.fromkeys(_fields_there(path), ())
    if path.suffix in (".jsonl", ".csv") or line_reader.is_list(path):
        return "lines", dict.fromkeys(jsonl.fields_in(path), ())
    if path.suffix in (".yaml", ".yml"):
        return "yaml", dict.fromkeys(read_yaml(path), ())
    if path.suffix != ".json":
        return "", {}
    keys = {}
    for name, value in read_json(path, "annotations").data.items():
        first = value[0] if isinstance(value, list) and value else None
        keys[name] = first if isinstance(first, dict) else ()
    return "json", keys


def _has(path: Path, form: str, keys: Mapping[str, Collection[str]], wanted: str) -> bool:
    """Return whether a file has a key of `Source.marks`."""
    if "*" in wanted:
        return fnmatch(path.name, wanted)
    own_form, name, *inner = wanted.split(".")
    return own_form == form and name in keys and all(key in keys[name] for key in inner)
