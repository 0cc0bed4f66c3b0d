"""Annotation files as they are on disk, checked entry by entry, with errors that say where."""

from __future__ import annotations

import functools
import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from fiber.atomic_io import JSON_ERRORS
from fiber.data.record import Record

# Pictures that are looked for to tell in which folder they lie.
_LOOKED_FOR = 20

#: Soft score of an answer that this many of ten annotators gave (VQAv2, as published).
ANSWER_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)

# The first name that a kind begins with counts.
_HOW_TO_GET = {
    "COCO, Karpathy": "caption_datasets.zip of Karpathy and Fei-Fei (2015), its pictures from"
    " https://cocodataset.org",
    "COCO": "https://cocodataset.org",
    "Flickr30k, Karpathy": "caption_datasets.zip of Karpathy and Fei-Fei (2015)",
    "Flickr30k Entities, original": "https://github.com/BryanPlummer/flickr30k_entities",
    "Flickr30k": "MDETR's mdetr_annotations (final_flickr_separateGT_*.json)",
    "MDETR's mixed set": "MDETR's mdetr_annotations (final_mixed_train_no_coco.json)",
    "Objects365": "the page of Objects365 (Shao et al. 2019), packed as GLIP's DATA.md says",
    "RefCOCO": "MDETR's mdetr_annotations (finetune_refcoco_*.json)",
    "VQAv2": "https://visualqa.org",
    "NLVR2": "https://lil.nlp.cornell.edu/nlvr",
    "Winoground": "https://huggingface.co/datasets/facebook/winoground",
    "Visual Genome": "the official page of Visual Genome (Krishna et al. 2017)",
    "SBU": "the official page of the SBU Captioned Photo Dataset (Ordonez et al. 2011)",
    "Conceptual Captions": "the official page of Conceptual Captions (Sharma et al. 2018)",
    "published Arrow": "the published code's write_*.py, which make it of the original downloads",
}
AnyPath = str | PathLike[str]

#: How to get a file of a form that `fiber data` makes, in messages.
TRY_WITH = "`fiber data scenes --output DIR` makes a data set to try with"
# Kinds of which `fiber data` makes no file.
_NOT_GENERATED = {
    "COCO, Karpathy's splits",
    "Flickr30k, Karpathy's splits",
    "Flickr30k Entities, original files",
    "Visual Genome's region descriptions",
    "SBU captions",
    "Conceptual Captions",
    "VQAv2 annotations, original files",
    "MDETR's mixed set",
    "Objects365, the published TSV files",
}


class RecordList(list[Record]):
    """Records, and how often the reader left something out or changed it."""

    def __init__(self) -> None:
        super().__init__()
        #: What was left out or changed -> how many times.
        self.counts: dict[str, int] = {}
        #: What else a user should be told of how the data were read, in sentences.
        self.notes: list[str] = []
        #: Names of the classes that boxes may have, by id; empty where boxes have phrases.
        self.classes: tuple[str, ...] = ()

    def count(self, what: Any) -> int:
        """Return how often something was left out or changed, such as "crowd boxes"."""
        return self.counts.get(what, 0)

    def add(self, what: str, times: int = 1) -> None:
        """Count something that was left out or changed."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times


class SourceFile:
    """One annotation file, and the entry that is being read."""

    def __init__(self, path: Path, kind: str, data: dict[str, Any]) -> None:
        self.path = path
        self.kind = kind
        self.data = data
        #: Whether a box that does not fit is left out or cut, and counted, instead of an error.
        self.skips_errors = False
        self._where = ""
        self._index: int | None = None

    @property
    def where(self) -> str:
        """The entry that is being read, in words."""
        where = self._where or "the file"
        return where if self._index is None else f"{where}[{self._index}]"

    def error(self, problem: str) -> ValueError:
        """Return an error that names the file and the entry."""
        return ValueError(f"{self.path}: {self.where} {problem} (read as {self.kind})")

    def at(self, section: str, entry: Mapping[str, Any], index: int | None = None) -> None:
        """Say which entry is being read."""
        self._index = index
        self._where = section if index is not None else f"{section} entry {entry.get('id')!r}"

    def having(self, section: str) -> SourceFile:
        """Refuse a file without a list; gives the file."""
        self._where, self._index = "", None
        if not isinstance(self.data.get(section), list):
            have = ", ".join(repr(key) for key in list(self.data)[:8]) or "nothing"
            raise self.error(f"has no list {section!r}; it has {have}")
        return self

    def walk(self, section: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list of the file."""
        entries = self.having(section).data[section]
        for index, entry in enumerate(entries):
            self._where, self._index = section, index
            if not isinstance(entry, dict):
                raise self.error(f"is {str(entry)[:40]!r}; expected an object")
            yield entry

    def pictures(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of `images`; each has an `id` of its own and a `file_name`."""
        seen: dict[int | str, int | None] = {}
        for entry in self.walk("images"):
            number = self.get(entry, "id", int, str)
            if number in seen:
                # Boxes could be those of either.
                raise self.error(
                    f"has the id {number!r}, as images[{seen[number]}] has; expected each id once"
                )
            seen[number] = self._index
            if "file_name" not in entry and "coco_url" in entry:
                # LVIS names pictures by the last two parts of their address.
                entry["file_name"] = "/".join(str(entry["coco_url"]).split("/")[-2:])
            self.text(entry, "file_name")
            yield entry

    def get(self, entry: Mapping[str, Any], key: str, *kinds: type) -> Any:
        """Return a needed value of one of the kinds given."""
        value = entry.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            if key not in entry:
                have = ", ".join(map(repr, entry)) or "nothing"
                raise self.error(f"has no {key!r}; it has {have}")
            names = " or ".join(kind.__name__ for kind in kinds)
            raise self.error(f"has {key!r} {str(value)[:40]!r}; expected {names}")
        return value

    def text(self, entry: Mapping[str, Any], key: str) -> str:
        """Return a needed text that is not empty."""
        value = self.get(entry, key, str)
        if not value.strip():
            raise self.error(f"has an empty {key!r}")
        return value

    def look_up(
        self, table: Mapping[Any, Any], entry: Mapping[str, Any], key: str, where: str | Path
    ) -> Any:
        """Return table[entry[key]]; `where` names the table in the error."""
        value = self.get(entry, key, int, str)
        if value not in table:
            raise self.error(f"has {key} {value!r}, which is not in {str(where)!r}")
        return table[value]

    def record(self, **fields: Any) -> Record:
        """Return a record; what it finds wrong is reported with the file's name."""
        try:
            return Record(**fields)
        except ValueError as problem:
            raise self.error(f"cannot be a record: {problem}") from None


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_garbage_collection(
    reader: Callable[Arguments, Result],
) -> Callable[Arguments, Result]:
    """Pause the garbage collector while a reader runs.

    A reader makes a great many objects and no cycles; the collector would walk all of them again
    and again and find nothing.
    """

    @functools.wraps(reader)
    def read(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return reader(*args, **kwargs)
        finally:
            if was_on:
                gc.enable()

    return read


def read_json(path: Path, kind: str) -> SourceFile:
    """Read a file that is one JSON object."""
    text = read_text(path, kind)
    try:
        data = json.loads(text)
    except JSON_ERRORS as problem:
        raise ValueError(f"{path} is not JSON ({problem}); expected {kind}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {_in_words(data)}; expected the object of {kind}")
    return SourceFile(path, kind, data)


def read_json_lines(path: Path, kind: str) -> SourceFile:
    """Read a file with one JSON object a line; they become its list "lines"."""
    lines = []
    for number, line in enumerate(read_text(path, kind).split("\n"), 1):
        if line.strip():
            try:
                lines.append(json.loads(line))
            except JSON_ERRORS as problem:
                raise ValueError(
                    f"{path}: line {number} is not JSON ({problem}); expected {kind}"
                ) from None
    return SourceFile(path, kind, {"lines": lines})


def read_json_array(path: Path, kind: str) -> SourceFile:
    """Read a file that is one JSON array; its items become its list "entries"."""
    text = read_text(path, kind)
    try:
        data = json.loads(text)
    except JSON_ERRORS as problem:
        raise ValueError(f"{path} is not JSON ({problem}); expected {kind}") from None
    if not isinstance(data, list):
        raise ValueError(f"{path} holds {_in_words(data)}; expected the list of {kind}")
    return SourceFile(path, kind, {"entries": data})


def _in_words(data: Any) -> str:
    return f"a {type(data).__name__}" if isinstance(data, dict | list) else f"{data!r:.40}"


def read_text(path: Path, kind: str) -> str:
    """Read a whole file of text; a missing one is named with where to get it."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        splits = _splits_beside(path)
        if splits:
            raise FileNotFoundError(
                f"{path} does not exist; expected one of the splits whose files are there:"
                f" {', '.join(splits)}"
            ) from None
        made = "" if kind in _NOT_GENERATED else f"; {TRY_WITH}"
        raise FileNotFoundError(
            f"{path} does not exist; expected a file of {kind}. It comes from"
            f" {where_to_get(kind)}{made}"
        ) from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not text ({problem}); expected {kind}") from None


def where_to_get(kind: str) -> str:
    """Say where files of a kind come from."""
    return next((how for name, how in _HOW_TO_GET.items() if kind.startswith(name)), "")


def _splits_beside(path: Path) -> list[str]:
    """Return the splits for which a file of the same kind lies in the same folder."""
    patterns = [re.escape(name).replace(r"\{split\}", "(.+)") for name in FILES.values()]
    pattern = next((p for p in patterns if re.fullmatch(p, path.name)), None)
    if pattern is None or not path.parent.is_dir():
        return []
    matches = (re.fullmatch(pattern, other.name) for other in path.parent.iterdir())
    return sorted(match.group(1) for match in matches if match)


def annotation_file(
    folder: str | PathLike[str], split: str, kind: str, path: str | PathLike[str] | None
) -> Path:
    """Return the path of an annotation file: the one named, else that of `FILES`."""
    return Path(folder) / FILES[kind].format(split=split) if path is None else Path(path)


def images_folder(folder: str | PathLike[str], images: str | PathLike[str] | None) -> str:
    """Return the folder where file names start; it must exist."""
    root = Path(folder) / "images" if images is None else Path(images)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is no folder; expected the pictures there (name another one with `images`)"
        )
    return str(root)


def folder_with(names: Sequence[str], places: Iterable[Path]) -> Path | None:
    """Find the folder that has most of some pictures; of long lists a few are looked for.

    Args:
        names: of the pictures, below the folder.
        places: folders, the likelier ones first; those that do not exist are passed over.

    Returns:
        The first of the folders with most of them; None where none has any.
    """
    looked_for = names[:: max(1, -(-len(names) // _LOOKED_FOR))]
    there = [place for place in dict.fromkeys(places) if place.is_dir()]
    counts = [sum((place / name).is_file() for name in looked_for) for place in there]
    return there[counts.index(max(counts))] if max(counts, default=0) else None


def picture_folder(
    folder: str | PathLike[str], images: str | PathLike[str] | None, name: str
) -> str:
    """Return the folder of this name below that of the pictures or below the data folder.

    If there is none, the folder of pictures itself, which must exist.
    """
    roots = [Path(folder) / "images", Path(folder)] if images is None else [Path(images)]
    found = next((root / name for root in roots if (root / name).is_dir()), None)
    return str(found) if found else images_folder(folder, images)


class Votes(NamedTuple):
    """What people answered to one question."""

    #: Soft score of each answer, None where nobody was asked.
    scores: dict[str, float] | None
    #: What each person said.
    answers: tuple[str, ...]
    question_type: str


NO_VOTES = Votes(None, (), "")


def read_answers(file: SourceFile) -> dict[Any, Votes]:
    """Return what people answered, by question_id."""
    found: dict[Any, Votes] = {}
    # A few thousand answers are given millions of times.
    known: dict[str, str] = {}
    for entry in file.walk("annotations"):
        number = file.get(entry, "question_id", int, str)
        said = []
        for vote in file.get(entry, "answers", list):
            if not isinstance(vote, dict) or not isinstance(vote.get("answer"), str):
                raise file.error(f"has {vote!r} in 'answers'; expected an object with 'answer'")
            said.append(known.setdefault(vote["answer"], vote["answer"]))
        scores = {answer: ANSWER_SCORES[min(n, 4)] for answer, n in Counter(said).items()}
        found[number] = Votes(scores, tuple(said), entry.get("question_type", ""))
    return found


#: File of each kind for a split.
FILES = {
    "captions": "captions_{split}.json",
    "phrases": "flickr_{split}.json",
    "referring": "refcoco_{split}.json",
    "questions": "vqa_questions_{split}.json",
    "answers": "vqa_annotations_{split}.json",
    "detection": "instances_{split}.json",
    "reasoning": "nlvr2_{split}.jsonl",
    "swapped": "winoground_{split}.jsonl",
}
