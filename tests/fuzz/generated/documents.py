"""A document that a reader parses: its content, how it is written, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fiber.data import open_source
from tests.fuzz.generated.encodings import to_json
from tests.fuzz.generated.trees import Pairs, tree_of


@dataclass(frozen=True)
class Document:
    """A document and its reader."""

    #: Kind of reader, as in `python -m tests.hostile_files --only KIND`.
    kind: str
    name: str
    #: Makes the content of a sound document with that many entries.
    tree: Callable[[int], Any]
    #: Writes a content into a folder in which `prepare` has written what goes with it.
    write: Callable[[Any, Path], object]
    #: Reads it from the folder.
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    #: Whether the content is written as a pickle, or else as JSON or text.
    is_pickle: bool = False
    #: Other contents that grow with a number of entries, by name; they need not be sound.
    growing: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)


def json_document(
    kind: str,
    file: str,
    tree: Callable[[int], Any],
    read: Callable[[Path], object],
    prepare: Callable[[Path], object] = lambda folder: None,
    name: str | None = None,
) -> Document:
    """A document in JSON, or in JSON Lines if the file is called so."""

    def write(content: Any, folder: Path) -> None:
        path = folder / file
        if path.suffix == ".jsonl" and isinstance(content, list) and not isinstance(content, Pairs):
            text = "".join(f"{to_json(line)}\n" for line in content)
        else:
            text = to_json(content)
        path.write_text(text, encoding="utf-8")

    return Document(kind, name or file, lambda n: tree_of(tree(n)), write, read, prepare)


def reads(source: str, file: str, split: str = "train", **options: Any) -> Callable[[Path], object]:
    """Return a function that reads all records of a file."""
    return lambda folder: list(open_source(source, folder / file, split, **options))
