"""Read and validate annotation files. Errors name the file and the entry."""

from __future__ import annotations

import gc
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS
from fiber.data.record import AnyPath, Record

# Number of images to look up when searching for their folder.
_IMAGES_TO_FIND = 20

# Where to get a kind of file, by prefix of the kind; the first match is used.
_HOW_TO_GET = {
    "COCO, Karpathy": "caption_datasets.zip of Karpathy and Fei-Fei (2015), its images from"
    " https://cocodataset.org",
    "COCO": "https://cocodataset.org",
    "Flickr30k, Karpathy": "caption_datasets.zip of Karpathy and Fei-Fei (2015)",
    "Flickr30k Entities, original": "https://github.com/BryanPlummer/flickr30k_entities",
    "Flickr30k": "MDETR's mdetr_annotations (final_flickr_separateGT_*.json)",
    "MDETR's mixed set": "MDETR's mdetr_annotations (final_mixed_train_no_coco.json)",
    "Objects365": "the page of Objects365 (Shao et al. 2019), converted as in GLIP's DATA.md",
    "RefCOCO": "MDETR's mdetr_annotations (finetune_refcoco_*.json)",
    "VQAv2": "https://visualqa.org",
    "NLVR2": "https://lil.nlp.cornell.edu/nlvr",
    "SNLI-VE": "https://github.com/necla-ml/SNLI-VE",
    "Winoground": "https://huggingface.co/datasets/facebook/winoground",
    "Visual Genome": "the official page of Visual Genome (Krishna et al. 2017)",
    "SBU": "the official page of the SBU Captioned Photo Dataset (Ordonez et al. 2011)",
    "Conceptual Captions": "the official page of Conceptual Captions (Sharma et al. 2018)",
    "published Arrow": "the published code's write_*.py, which convert the downloaded datasets",
}

#: Command that generates data, for messages.
TRY_WITH = "`fiber data scenes --output DIR` generates an example dataset"
#: Name of the annotation file for each task, in a folder written by `fiber data`.
FILES = {
    "captions": "captions_{split}.json",
    "phrases": "flickr_{split}.json",
    "referring": "refcoco_{split}.json",
    "questions": "vqa_questions_{split}.json",
    "answers": "vqa_annotations_{split}.json",
    "detection": "instances_{split}.json",
    "reasoning": "nlvr2_{split}.jsonl",
    "entailment": "snli_ve_{split}.jsonl",
    "swapped": "winoground_{split}.jsonl",
}
#: Those of them that `fiber data scenes` writes.
GENERATED_FILES = tuple(name for task, name in FILES.items() if task != "entailment")


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

    def error(self, problem: str) -> ValueError:
        """Return an error that names the file and the current entry."""
        return ValueError(f"{self.where} {problem}")

    def get(self, entry: Mapping[str, Any], key: str, *kinds: type) -> Any:
        """Return the value of a required key, which must have one of the given types."""
        value = entry.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            if key not in entry:
                have = ", ".join(map(repr, entry)) or "none"
                raise self.error(f"has no {key!r}; available keys: {have}")
            names = " or ".join(kind.__name__ for kind in kinds)
            raise self.error(f"has {key!r} {value!r:.40}; expected {names}")
        return value

    def text(self, entry: Mapping[str, Any], key: str) -> str:
        """Return the value of a required key, which must be a nonempty string."""
        value = self.get(entry, key, str)
        if not value.strip():
            raise self.error(f"has an empty {key!r}")
        return value


class AnnotationFile(EntryFile):
    """The parsed content of an annotation file."""

    def __init__(self, path: Path, kind: str, data: dict[str, Any]) -> None:
        super().__init__(path)
        self.kind = kind
        self.data = data
        #: If True, invalid boxes are skipped or clipped, and counted, instead of raising an error.
        self.skips_errors = False
        self._section = ""
        self._index: int | None = None

    @property
    def where(self) -> str:
        """The file and the current entry, for messages."""
        index = "" if self._index is None else f"[{self._index}]"
        return f"{self.path}: {self._section or 'the file'}{index}"

    def error(self, problem: str) -> ValueError:
        """Return an error that also names the kind of file."""
        return super().error(f"{problem} (read as {self.kind})")

    def at(self, section: str, entry: Mapping[str, Any], index: int | None = None) -> None:
        """Set the current entry for error messages."""
        self._index = index
        self._section = section if index is not None else f"{section} entry {entry.get('id')!r}"

    def require_list(self, section: str) -> AnnotationFile:
        """Check that the file has a list called `section`, and return the file."""
        self._section, self._index = "", None
        if not isinstance(self.data.get(section), list):
            have = ", ".join(repr(key) for key in list(self.data)[:8]) or "none"
            raise self.error(f"has no list {section!r}; available keys: {have}")
        return self

    def walk(self, section: str) -> Iterator[dict[str, Any]]:
        """Iterate over a list, marking each entry as the current one for error messages."""
        entries = self.require_list(section).data[section]
        for index, entry in enumerate(entries):
            self._section, self._index = section, index
            if not isinstance(entry, dict):
                raise self.error(f"must be a JSON object, got {entry!r:.40}")
            yield entry

    def images(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of `images`, each with a unique `id` and a `file_name`."""
        seen: dict[int | str, int | None] = {}
        for entry in self.walk("images"):
            number = self.get(entry, "id", int, str)
            if number in seen:
                # Boxes refer to images by id.
                raise self.error(
                    f"has duplicate id {number!r}, already used by images[{seen[number]}]"
                )
            seen[number] = self._index
            if "file_name" not in entry and "coco_url" in entry:
                # LVIS names images by the last two parts of their URL.
                entry["file_name"] = "/".join(str(entry["coco_url"]).split("/")[-2:])
            self.text(entry, "file_name")
            yield entry

    def objects(self, entry: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a required list of objects."""
        for item in self.get(entry, key, list):
            if not isinstance(item, dict):
                raise self.error(f"has {item!r:.40} in {key!r}; expected an object")
            yield item

    def look_up(
        self, table: Mapping[Any, Any], entry: Mapping[str, Any], key: str, where: str | Path
    ) -> Any:
        """Return `table[entry[key]]`. `where` names the table in errors."""
        value = self.get(entry, key, int, str)
        if value not in table:
            raise self.error(f"has {key} {value!r}, which is not in {str(where)!r}")
        return table[value]

    def record(self, number: int | str, image: str, **fields: Any) -> Record:
        """Return a record with the key "<file>/<number>". Errors name the current entry."""
        key = f"{self.path.stem}/{number}"
        try:
            return Record(key=key, images=(image,), image_id=image, **fields)
        except ValueError as problem:
            raise self.error(f"is not a valid record: {problem}") from None


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
    return AnnotationFile(path, kind, _parse(read_text(path, kind), path, kind, dict))


def read_json_array(path: Path, kind: str) -> AnnotationFile:
    """Read a file with one JSON array, called "entries" in error messages."""
    return AnnotationFile(path, kind, {"entries": _parse(read_text(path, kind), path, kind, list)})


def read_json_lines(path: Path, kind: str) -> AnnotationFile:
    """Read a JSON Lines file as a list, called "lines" in error messages."""
    lines = enumerate(read_text(path, kind).split("\n"), 1)
    parsed = [_parse(text, f"{path}: line {n}", kind) for n, text in lines if text.strip()]
    return AnnotationFile(path, kind, {"lines": parsed})


def _parse(text: str, where: object, kind: str, expected: type = object) -> Any:
    """Parse JSON and check the type of the value. Errors begin with the location `where`."""
    try:
        data = json.loads(text)
    except JSON_ERRORS as problem:
        raise ValueError(f"{where} is not valid JSON: {problem} (read as {kind})") from None
    if not isinstance(data, expected):
        names = {list: "a JSON array", dict: "a JSON object"}
        got = names.get(type(data)) or f"{data!r:.40}"
        raise ValueError(f"{where} must contain {names[expected]} ({kind}), got {got}")
    return data


def read_text(path: Path, kind: str) -> str:
    """Read a UTF-8 file. The error for a missing file says where to get it."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if splits := _splits_in_folder(path):
            hint = f"available splits: {', '.join(splits)}"
        else:
            # `fiber data` does not generate files in these layouts.
            others = ("original", "published", "SNLI-VE")
            generated = "" if any(name in kind for name in others) else f"; {TRY_WITH}"
            hint = f"expected a file of {kind}, from {where_to_get(kind)}{generated}"
        raise FileNotFoundError(f"{path} does not exist; {hint}") from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text: {problem} (read as {kind})") from None


def where_to_get(kind: str) -> str:
    """Return where to get a kind of file, or "" if unknown."""
    return next((how for name, how in _HOW_TO_GET.items() if kind.startswith(name)), "")


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
            if (parent / name).is_dir():
                return str(parent / name)
    if not root.is_dir():
        raise FileNotFoundError(
            f"image folder {root} does not exist; expected the images there, or a link to their"
            f" folder{f', or a folder {name} next to it' if name and images is None else ''}"
        )
    return str(root)


def find_images_folder(names: Sequence[str], folders: Iterable[Path]) -> Path | None:
    """Return the folder that contains the most images, based on a sample of their names.

    `folders` need not exist. If several folders tie, return the first of them. If no image is
    found, return None.
    """
    sample = names[:: max(1, -(-len(names) // _IMAGES_TO_FIND))]
    existing = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    counts = [sum((folder / name).is_file() for name in sample) for folder in existing]
    return existing[counts.index(max(counts))] if max(counts, default=0) else None
