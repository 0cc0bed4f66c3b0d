"""What a folder or a file holds: which sources, of which splits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.datasets.registry import FORMS, PART_SUFFIXES, SPLIT_NAMES, WITH_SPLITS
from fiber.data.datasets.resolve import (
    OWN_READERS,
    SeveralFormsError,
    choose_form,
    file_reader,
    open_source,
    splits_there,
)
from fiber.data.formats import coco_folders, jsonl, line_reader, rows
from fiber.data.formats.annotation_file import read_json
from fiber.data.formats.arrow import IMAGES, TABLE_KIND
from fiber.data.formats.arrow_table import open_table
from fiber.data.formats.webdataset import fields_of, samples_of
from fiber.data.record import RecordSet
from fiber.data.storage import packed
from fiber.data.storage.tar import TarFile

AnyPath = str | PathLike[str]

#: Sources that are looked for; the others are named sets of these.
SOURCES = (
    "captions",
    "phrases",
    "mixed",
    "referring",
    "questions",
    "detection",
    "objects365",
    "reasoning",
    "swapped",
)
#: Sources whose readers can leave faulty boxes out.
SKIPPING = ("phrases", "mixed", "referring", "detection", "objects365")
#: Samples or entries of a file that are looked into to tell what it holds.
_LOOKED_AT = 100
# Ends of the names of tables.
_TABLES = (".parquet", ".arrow")
# Names of the fields that each source is told by.
_KNOWN = {"captions": rows.CAPTIONS, "questions": rows.QUESTIONS, "detection": rows.BOXES}
_NAMES_OF_SPLITS = r"train|val|test|dev"
# Names of splits for others that readers know.
_OTHER_SPLITS = {"validation", "valid", "mini_val", "training"}


class Part(NamedTuple):
    """One source and split that a folder or a file holds."""

    source: str
    split: str
    #: The folder or file.
    data: Path

    def open(self, **options: Any) -> RecordSet:
        """Read the records; arguments and errors are those of `open_source`."""
        return open_source(self.source, self.data, self.split, **options)


def parts_of(data: AnyPath) -> list[Part]:
    """Find what a folder or a file holds; "train" comes first, then the other splits by name.

    Nothing is read whole but a file that is named, or that is called like files of several kinds.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it holds nothing that is known.
    """
    path = Path(data)
    if packed.is_pack(path):
        description = packed.read_description(path)
        found = [Part(part["source"], part["split"], path) for part in description["parts"]]
    elif path.is_dir():
        found = [part for source in SOURCES for part in _in_folder(source, path)]
    elif path.is_file():
        found = list(_in_file(path))
    else:
        raise FileNotFoundError(f"{path}: no such folder or file")
    if not found:
        raise ValueError(f"{path}: {_nothing(path)}")
    order = {source: place for place, source in enumerate(FORMS)}
    return sorted(found, key=lambda p: (p.split != "train", p.split, order.get(p.source, 0)))


def _nothing(path: Path) -> str:
    """Say what data hold in place of anything known."""
    if path.is_file():
        return _unknown(path)
    names = ", ".join(
        forms[0].pattern.format(split="SPLIT") for forms in (FORMS[source] for source in SOURCES)
    )
    tables = (file for file in sorted(path.iterdir()) if _may_be_another(file))
    told = "".join(f"; {file.name}: {_unknown(file)}" for file in itertools.islice(tables, 1))
    return (
        f"no annotation file in this folder; expected some of {names}, SPLIT.jsonl, SPLIT-*.tar,"
        f" SPLIT-*.parquet, COCO's files or another form that docs/data.md lists{told}"
    )


def _unknown(path: Path) -> str:
    """Say what is in a file whose records are of no known kind."""
    try:
        fields = list(_fields_there(path))
    except (ValueError, OSError) as problem:
        return str(problem)
    if path.suffix in (".tar", *_TABLES):
        have = ", ".join(map(repr, fields)) or "none"
        picture = "" if path.suffix == ".tar" else f" in {_one_of(IMAGES)}"
        return (
            f"its fields are {have}; expected a picture{picture}, and captions in"
            f" {_one_of(rows.CAPTIONS)}, questions in {_one_of(rows.QUESTIONS)}, or boxes in"
            f" {_one_of(rows.BOXES)}"
        )
    return (
        "its records are of no known kind; expected captions, questions, statements or boxes in"
        " one of the forms that docs/data.md lists"
    )


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _fields_there(path: Path) -> Iterable[str]:
    """Give the names of what each row of a table, or each sample of a shard, has."""
    if path.suffix in _TABLES:
        return open_table(path, TABLE_KIND).columns
    if path.suffix != ".tar":
        return ()
    file = TarFile(path)
    some = itertools.islice(samples_of(file, {}), _LOOKED_AT)
    return sorted({name for sample in some for name in fields_of(file, sample)})


def _in_folder(source: str, folder: Path) -> Iterator[Part]:
    for split in _candidates(source, folder):
        try:
            reader, file = choose_form(source, folder, split)
        except FileNotFoundError:
            continue
        except SeveralFormsError as problem:
            # Each of them has a name of its own, or opening says that they are several.
            yield from (Part(name, split, folder) for name in problem.sources or (source,))
            continue
        except ValueError:
            # Opening says what is wrong.
            yield Part(source, split, folder)
            continue
        if source == "detection" and file is None:
            found = coco_folders.find(folder, split)
            file = None if found is None else found.file
        if reader in WITH_SPLITS and file is not None and split not in _karpathy_splits(file):
            continue
        if file is None or not _may_be_another(file) or source in kinds_of(file):
            yield Part(source, split, folder)


def _candidates(source: str, folder: Path) -> Iterable[str]:
    splits = dict.fromkeys(("train", "restval", "val", "test"))
    if source == "detection":
        own = FORMS[source][0].pattern.replace("{split}", "*")
        # Of other tools' names for splits `coco_folders` knows those that count.
        names = [path.name for path in folder.glob(own)]
        splits |= dict.fromkeys(name.removeprefix("instances_")[:-5] for name in names)
    else:
        splits |= dict.fromkeys(splits_there(source, folder))
    return [split for split in splits if split not in _OTHER_SPLITS]


def _may_be_another(file: Path) -> bool:
    """Whether files of several sources are called so: "train.json" may be anything."""
    return file.suffix in (".jsonl", ".csv", *PART_SUFFIXES) or (
        file.suffix == ".json" and bool(re.fullmatch(SPLIT_NAMES, file.stem))
    )


def _karpathy_splits(file: Path) -> set[str]:
    found = read_json(file, "Karpathy's splits").data.get("images", ())
    return {str(entry.get("split")) for entry in found if isinstance(entry, dict)}


def _in_file(path: Path) -> Iterator[Part]:
    named = [
        source
        for source in SOURCES
        for form in FORMS[source]
        if not Path(form.pattern).name.startswith(("{split}.", "*."))
        and path.suffix not in PART_SUFFIXES
        and fnmatch(path.name, Path(form.pattern.format(split="*")).name)
    ]
    kinds = kinds_of(path)
    if not kinds and (path.suffix in (".jsonl", ".csv") or line_reader.is_list(path)):
        # A user's own, as its name says; its reader tells what is wrong.
        kinds = {"captions"}
    for source in dict.fromkeys(named or sorted(kinds, key=SOURCES.index)):
        told = re.search(rf"(?<![a-z])({_NAMES_OF_SPLITS})(?![a-z])", path.stem)
        splits = [told[1] if told else "train"]
        reader = file_reader(source, path, splits[0])
        if reader in WITH_SPLITS:
            splits = sorted(_karpathy_splits(path))
        elif reader in OWN_READERS:
            splits = jsonl.splits_in(path) or splits
        yield from (Part(source, split, path) for split in splits)


def kinds_of(path: Path) -> set[str]:
    """Tell which sources a file may hold by what is in it; a broken one holds none."""
    try:
        if path.suffix in (".tar", *_TABLES):
            return _kinds_of_fields(_fields_there(path))
        if path.suffix in (".jsonl", ".csv") or line_reader.is_list(path):
            return jsonl.kinds_in(path)
        if path.suffix == ".json":
            return _kinds_of_json(read_json(path, "annotations").data, path.name)
    except (ValueError, OSError):
        return _by_suffix(path.suffix)
    return {".yaml": {"objects365"}, ".tsv": {"captions"}, ".txt": {"phrases"}}.get(
        path.suffix, set()
    )


def _by_suffix(suffix: str) -> set[str]:
    """Take a broken file for what it likely is; its reader says what is wrong."""
    return {".json": {"detection"}}.get(suffix, {"captions"})


def _kinds_of_fields(fields: Iterable[str]) -> set[str]:
    found = {source for source, names in _KNOWN.items() if not set(names).isdisjoint(fields)}
    return {"reasoning"} if "image_0" in fields else found


def _kinds_of_json(data: dict[str, Any], name: str) -> set[str]:
    first = {
        key: value[0]
        for key, value in data.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    picture, box = first.get("images", {}), first.get("annotations", {})
    if "questions" in data:
        return {"questions"}
    if "sentences" in picture or "caption" in box:
        return {"captions"}
    if "caption" in picture:
        if "data_source" in picture:
            return {"mixed"}
        return {"referring"} if "refcoco" in name else {"phrases"}
    if "identifier" in data:
        return {"reasoning"}
    return {"detection"} if "images" in data and "annotations" in data else set()
