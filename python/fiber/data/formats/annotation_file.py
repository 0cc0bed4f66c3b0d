"""Read and validate annotation files. Errors name the file and the entry."""

from __future__ import annotations

import gc
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fiber.atomic_io import check_regular_file
from fiber.data.datasets.registry import FILES, where_to_get
from fiber.data.formats.json_values import (
    MAX_ID,
    file_name_problem,
    id_key,
    is_integer,
    is_number,
    may_have_surrogates,
    parse_json,
    surrogate_problem,
    type_advice,
)
from fiber.data.record import MAX_SIDE, AnyPath, Record
from fiber.messages import shown, shown_names

# Number of images to look up when searching for their folder.
_IMAGES_TO_FIND = 20
# Number of ids in messages.
_MAX_IDS = 4
#: Command that generates data, for messages.
TRY_WITH = "`fiber data scenes --output DIR` generates an example dataset"


class ReadReport:
    """Base class of reader results, with counts of skipped or changed entries and notes."""

    def __init__(self) -> None:
        super().__init__()
        #: Number of entries skipped or changed, by kind.
        self.counts: dict[str, int] = {}
        #: Other messages for the user, as sentences.
        self.notes: list[str] = []
        #: Class names of the boxes, by index; empty if the boxes are named by phrases.
        self.classes: tuple[str, ...] = ()

    def skip(self, what: str, times: int = 1) -> None:
        """Count entries that are skipped or changed, such as "crowd boxes"."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times

    def add_report(self, other: Any) -> None:
        """Add the `counts` and `notes` of another report to this one."""
        for what, times in other.counts.items():
            self.skip(what, times)
        self.notes += other.notes


class RecordList(ReadReport, list[Record]):
    """List of records with the counts and notes of their reader."""


class EntryFile(ABC):
    """Base class of files with validated entries. Errors name the file and the current entry."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def where(self) -> str:
        """The file and the current entry, for messages."""

    def __str__(self) -> str:
        return self.where

    def error(self, problem: str) -> ValueError:
        """Return an error that names the file and the current entry."""
        return ValueError(f"{self.where} {problem}")

    def get(self, entry: Mapping[str, Any], key: str, *kinds: type) -> Any:
        """Return the value of a required key, which must have one of the given types.

        An integer must fit in 64 bits.
        """
        value = entry.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            if key not in entry:
                raise self.error(f"has no {key!r}; available keys: {shown_names(entry)}")
            names = " or ".join(kind.__name__ for kind in kinds)
            advice = type_advice(value, kinds)
            raise self.error(f"has {key!r} {shown(value)}; expected {names}{advice}")
        if type(value) is int and not -MAX_ID <= value <= MAX_ID:
            raise self.error(f"has {key!r} {shown(value)}; expected an integer below 2**63")
        return value

    def text(self, entry: Mapping[str, Any], key: str) -> str:
        """Return the value of a required key, which must be a nonempty string."""
        value = self.get(entry, key, str)
        if not value.strip():
            raise self.error(f"has an empty {key!r}")
        return value

    def optional_text(self, entry: Mapping[str, Any], key: str) -> str:
        """Return the value of an optional key, which must be a string; "" if it is missing."""
        return self.get(entry, key, str) if entry.get(key) is not None else ""

    def file_name(self, entry: Mapping[str, Any], key: str) -> str:
        """Return the value of a required key, which must be a name that a file can have."""
        name = self.text(entry, key)
        if (problem := file_name_problem(name)) is not None:
            raise self.error(f"has {key!r} {problem}")
        return name


class AnnotationFile(EntryFile):
    """The parsed content of an annotation file."""

    def __init__(self, path: Path, kind: str, data: dict[str, Any]) -> None:
        super().__init__(path)
        self.kind = kind
        self.data = data
        #: If True, invalid boxes are skipped or clipped, and counted, instead of raising an error.
        self.skips_errors = False
        #: Indices in the file of the entries of lists of which some were dropped.
        self._kept: dict[str, list[int]] = {}
        self._section = ""
        #: Index of the current entry, or else its id, if any.
        self._index: int | None = None
        self._id: Any = None

    @property
    def where(self) -> str:
        """The file and the current entry, for messages."""
        index = "" if self._index is None else f"[{self._index}]"
        if self._index is None and self._id is not None:
            index = f" entry {shown(self._id)}"
        return f"{self.path}: {self._section or 'the file'}{index}"

    def error(self, problem: str) -> ValueError:
        """Return an error that also names the kind of file."""
        return super().error(f"{problem} (read as {self.kind})")

    def at(self, section: str, entry: Mapping[str, Any], index: int | None = None) -> None:
        """Set the current entry for error messages."""
        self._section, self._index, self._id = section, index, entry.get("id")

    def require_list(self, section: str) -> AnnotationFile:
        """Check that the file has a list called `section`, and return the file."""
        self._section, self._index, self._id = "", None, None
        if not isinstance(self.data.get(section), list):
            raise self.error(f"has no list {section!r}; available keys: {shown_names(self.data)}")
        return self

    def walk(self, section: str) -> Iterator[dict[str, Any]]:
        """Iterate over a list, marking each entry as the current one for error messages."""
        for _, entry in self.numbered(section):
            yield entry

    def numbered(self, section: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Iterate over a list as `walk` does, with the index of each entry in the file."""
        entries = self.require_list(section).data[section]
        indices = self._kept.get(section, range(len(entries)))
        for index, entry in zip(indices, entries, strict=True):
            self._section, self._index = section, index
            if not isinstance(entry, dict):
                raise self.error(f"must be a JSON object, got {shown(entry)}")
            yield index, entry

    def keep(self, section: str, fits: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the entries of a list that do not fit. Errors still give the indices in the file."""
        kept = [(index, entry) for index, entry in self.numbered(section) if fits(entry)]
        self._kept[section] = [index for index, _ in kept]
        self.data[section] = [entry for _, entry in kept]

    def images(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of `images`, each with a unique `id` and a `file_name`."""
        seen: dict[Any, int | None] = {}
        for entry in self.walk("images"):
            number = self.get(entry, "id", int, str)
            before = seen.setdefault(id_key(number), self._index)
            if before != self._index:
                # Boxes refer to images by id.
                raise self.error(
                    f"has duplicate id {shown(number)}, already used by images[{before}]"
                )
            if "file_name" not in entry and "coco_url" in entry:
                # LVIS names images by the last two parts of their URL.
                entry["file_name"] = "/".join(self.text(entry, "coco_url").rsplit("/", 2)[-2:])
            self.file_name(entry, "file_name")
            yield entry

    def id_key(self, entry: Mapping[str, Any], key: str) -> str | int | bytes:
        """Return the value of a required key, an id, as the key of a dict (see `id_key`)."""
        return id_key(self.get(entry, key, int, str))

    def size(self, entry: Mapping[str, Any]) -> tuple[int, int]:
        """Return the (height, width) of an image entry, which are required."""
        height, width = (self.get(entry, side, int) for side in ("height", "width"))
        if not (is_integer(height, 1, MAX_SIDE) and is_integer(width, 1, MAX_SIDE)):
            raise self.error(
                f"has height {height} and width {width}; expected pixels from 1 to {MAX_SIDE:,}"
            )
        return height, width

    def number(self, entry: Mapping[str, Any], key: str) -> float:
        """Return the value of a required key, which must be a finite number of at most 2**53."""
        value = self.get(entry, key, int, float)
        if not is_number(value):
            raise self.error(
                f"has {key!r} {shown(value)}; expected a finite number of at most 2**53"
            )
        return float(value)

    def objects(self, entry: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a required list of objects."""
        for item in self.get(entry, key, list):
            if not isinstance(item, dict):
                raise self.error(f"has {shown(item)} in {key!r}; expected an object")
            yield item

    def look_up(
        self, table: Mapping[Any, Any], entry: Mapping[str, Any], key: str, where: str | Path
    ) -> Any:
        """Return the value of an id in a table by `id_key`. `where` names the table in errors."""
        value = self.get(entry, key, int, str)
        found = table.get(id_key(value), self)
        if found is self:
            raise self.error(
                f"has {key} {shown(value)}, which is not in {str(where)!r}{ids_of(table)}"
            )
        return found

    def record(self, number: int | str, image: str | tuple[str, ...], **fields: Any) -> Record:
        """Return a record with the key "<file>/<number>". Errors name the current entry.

        `image_id` is the image unless it is given or there are two images.
        """
        key = f"{self.path.stem}/{number}"
        if isinstance(image, str):
            fields.setdefault("image_id", image)
            image = (image,)
        try:
            return Record(key=key, images=image, **fields)
        except (ValueError, TypeError) as problem:
            raise self.error(f"is not a valid record: {problem}") from None


def ids_of(table: Collection[Any]) -> str:
    """List the first keys of a table by `id_key`, for messages."""
    first = (key.decode() if isinstance(key, bytes) else key for key in table)
    names = shown_names(list(itertools.islice(first, _MAX_IDS)))
    return f"; expected one of its ids, {names}{', ...' * (len(table) > _MAX_IDS)}"


@contextmanager
def named(where: str) -> Iterator[None]:
    """Prefix error messages with the location of a row or an entry."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as problem:
        raise ValueError(f"{where} {problem}") from None


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector. Used as a decorator of readers.

    Readers create many objects but no reference cycles, so repeated collection is wasted work.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_json(path: Path, kind: str) -> AnnotationFile:
    """Read a file with one JSON object."""
    return _read(path, kind, dict)


def read_json_array(path: Path, kind: str) -> AnnotationFile:
    """Read a file with one JSON array, called "entries" in error messages."""
    return _read(path, kind, list)


def _read(path: Path, kind: str, expected: type) -> AnnotationFile:
    text = read_text(path, kind)
    found = parse_json(text, path, expected, f" (read as {kind})")
    data = {"entries": found} if expected is list else found
    if may_have_surrogates(text):
        _check_surrogates(data, path, kind)
    return AnnotationFile(path, kind, data)


def read_json_lines(path: Path, kind: str) -> AnnotationFile:
    """Read a JSON Lines file as a list, called "lines" in error messages."""
    parsed = []
    # Not `splitlines`: JSON strings may contain Unicode line separators.
    for number, text in enumerate(read_text(path, kind).split("\n"), 1):
        if text.strip():
            where = f"{path}: line {number}"
            parsed.append(parse_json(text, where, note=f" (read as {kind})"))
            if may_have_surrogates(text) and (problem := surrogate_problem(parsed[-1])):
                raise ValueError(f"{where} {problem} (read as {kind})")
    return AnnotationFile(path, kind, {"lines": parsed})


def _check_surrogates(data: dict[str, Any], path: Path, kind: str) -> None:
    """Raise ValueError, with the place, if a JSON object has a lone surrogate."""
    for section, entries in data.items():
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if (problem := surrogate_problem(entry)) is not None:
                where = f"{path}: {shown_names([section])}[{index}]"
                raise ValueError(f"{where} {problem} (read as {kind})")
    if (problem := surrogate_problem(data)) is not None:
        raise ValueError(f"{path} {problem} (read as {kind})")


def read_text(path: Path, kind: str) -> str:
    """Read a UTF-8 file. The error for a missing file says where to get it."""
    try:
        check_regular_file(path)
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if splits := _splits_in_folder(path):
            hint = f"available splits: {shown_names(splits)}"
        else:
            # `fiber data` does not generate files in these layouts.
            others = ("original", "published", "SNLI-VE")
            generated = "" if any(name in kind for name in others) else f"; {TRY_WITH}"
            hint = f"expected a file of {kind}, from {where_to_get(kind)}{generated}"
        raise FileNotFoundError(f"{path} does not exist; {hint}") from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text: {problem} (read as {kind})") from None


def _splits_in_folder(path: Path) -> list[str]:
    """Return the splits that have a file of the same kind in the same folder."""
    patterns = [re.escape(name).replace(r"\{split\}", "(.+)") for name in FILES.values()]
    pattern = next((p for p in patterns if re.fullmatch(p, path.name)), None)
    if pattern is None or not path.parent.is_dir():
        return []
    matches = (re.fullmatch(pattern, other.name) for other in path.parent.iterdir())
    return sorted(match.group(1) for match in matches if match)


def annotation_path(folder: AnyPath, split: str, kind: str, path: AnyPath | None) -> Path:
    """Return `path` if given, otherwise the path of the file in `folder` that `FILES` names."""
    return Path(folder) / FILES[kind].format(split=split) if path is None else Path(path)


def images_folder(folder: AnyPath, images: AnyPath | None, name: str | None = None) -> str:
    """Return the image folder: `images` or, by default, "images" in the data folder.

    If the image folder has a subfolder `name`, the subfolder is returned instead. If `images` is
    None, the subfolder may also be in the data folder.

    Raises:
        FileNotFoundError: if the image folder does not exist.
    """
    root = Path(folder) / "images" if images is None else Path(images)
    if name is not None:
        for parent in (root, Path(folder)) if images is None else (root,):
            if is_folder(parent / name):
                return str(parent / name)
    if not root.is_dir():
        raise FileNotFoundError(
            f"image folder {root} does not exist; expected the images there, or a link to their"
            f" folder{f', or a folder {shown(name)} next to it' if name and not images else ''}"
        )
    return str(root)


def is_file(path: Path) -> bool:
    """Return whether there is a file at a path; False also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        # Names of more than 255 characters.
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at a path; False also for a name that none can have."""
    try:
        return path.is_dir()
    except OSError:
        return False


def find_images_folder(names: Sequence[str], folders: Iterable[Path]) -> Path | None:
    """Return the folder that contains the most images, based on a sample of their names.

    `folders` need not exist. If several folders tie, return the first of them. If no image is
    found, return None.
    """
    sample = names[:: max(1, -(-len(names) // _IMAGES_TO_FIND))]
    existing = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    counts = [sum(is_file(folder / name) for name in sample) for folder in existing]
    return existing[counts.index(max(counts))] if max(counts, default=0) else None
