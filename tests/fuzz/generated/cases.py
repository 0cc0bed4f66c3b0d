"""Cases: a document with hostile values at some of its places, systematically or at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.fuzz.generated import (
    annotations,
    archives,
    bulk_folders,
    checkpoints,
    json_files,
    mask_files,
    model_folders,
    runs,
    text_tables,
    trees,
)
from tests.fuzz.generated.documents import Document
from tests.fuzz.generated.trees import Built, Global, Node, Pairs
from tests.fuzz.generated.values import (
    ALL,
    GROWING,
    LARGE,
    ODD,
    REFERRED,
    SHARED,
    HostileValue,
    probing_integers,
)

#: Entries of a document whose other parts are of interest.
_FEW = 1


@dataclass(frozen=True)
class Case:
    """A content of a document; it grows linearly with the size that it is made with."""

    document: Document
    name: str
    make: Callable[[int], Any]

    def write(self, folder: Path, size: int) -> None:
        """Write the file and what goes with it, which `Document.prepare` has begun."""
        self.document.write(self.make(size), folder)


@cache
def documents() -> tuple[Document, ...]:
    """All documents."""
    found = [*checkpoints.documents(), *runs.documents(), *json_files.documents()]
    found += [*annotations.documents(), *text_tables.documents(), *archives.documents()]
    found += [*archives.packs(), *mask_files.documents(), *model_folders.documents()]
    found += bulk_folders.documents()
    return tuple(found)


def growing_cases(document: Document) -> Iterator[Case]:
    """Yield cases whose size matters: many entries, and long values at every place."""
    yield Case(document, "entries", document.tree)
    for name, make in document.growing.items():
        yield Case(document, name, make)
    sound = document.tree(_FEW)
    for path in trees.places(sound):
        where = _name(sound, path)
        for value in GROWING:
            if _fits(document, value):
                yield Case(document, f"{where} = {value.name}", _put(document, path, value))
        found = trees.at(sound, path)
        if isinstance(found, list | tuple):
            yield Case(document, f"{where} has many items", _widened(document, path))
        if not path:
            continue
        yield Case(document, f"{where} many times", _many(document, path, None))
        if document.is_pickle:
            for value in REFERRED:
                name = f"{where} = one {value.name}"
                yield Case(document, f"{name}, many times", _many(document, path, value))
                yield Case(document, f"{name}, popped", _popped(document, path, value))


def probing_cases(document: Document) -> Iterator[Case]:
    """Yield cases with integers that probe the same slots of a dict, at every place of a list.

    Whoever uses such integers as keys takes quadratic time, which no counter of work sees.
    """
    sound = document.tree(_FEW)
    for path in trees.places(sound):
        if trees.is_in_list(sound, path) and type(trees.at(sound, path)) is int:
            name = f"{_name(sound, path)} = integers that probe"
            yield Case(document, name, _probing(document, path))


def small_cases(document: Document) -> Iterator[Case]:
    """Yield cases of one value: odd, shared and large ones at every place."""
    sound = document.tree(_FEW)
    for path in trees.places(sound):
        for value in (*SHARED, *ODD, *LARGE):
            if _fits(document, value):
                name = f"{_name(sound, path)} = {value.name}"
                yield Case(document, name, _put(document, path, value))
        if document.kind == "runs" and document.is_pickle:
            yield from _states(document, path, _name(sound, path))


def sample(found: Iterable[Case], count: int, always: Collection[str] = ()) -> list[Case]:
    """Choose the first case, those with given names, and `count` others, always the same ones.

    Raises:
        ValueError: if there is no case of a given name.
    """
    first, *others = found
    by_name = {case.name: case for case in (first, *others)}
    if missing := [name for name in always if name not in by_name]:
        raise ValueError(f"{first.document.name} has no case {missing[0]!r}")
    chosen = random.Random(0).sample(others, min(count, len(others)))
    names = dict.fromkeys((first.name, *always, *(case.name for case in chosen)))
    return [by_name[name] for name in names]


#: Attributes of paths, sizes and of classes of an index, which BUILD may try to set.
_ATTRIBUTES = ("exists", "name", "__class__", "__eq__", "numel", "relative_path", "x")


def _states(document: Document, path: trees.Path, where: str) -> Iterator[Case]:
    """Yield cases in which BUILD sets attributes of a value or of a class."""
    value = Global("torch", "Size")
    classes = (("pathlib", "PosixPath"), ("torch.distributed.checkpoint.metadata", "Metadata"))
    for attribute in _ATTRIBUTES:
        state = (None, Pairs([(attribute, value)]))
        yield Case(
            document,
            f"BUILD sets {attribute} of {where}",
            lambda _, state=state: trees.changed(
                document.tree(_FEW), path, lambda node: Built(node, state)
            ),
        )
        if not path:
            for names in classes:
                yield Case(
                    document,
                    f"BUILD sets {attribute} of {names[1]}",
                    lambda _, names=names, state=state: trees.Dropped(
                        [Built(Global(*names), state)], document.tree(_FEW)
                    ),
                )


def random_case(draw: random.Random, document: Document) -> Case:
    """Draw a case of up to three changes; a generator of zeros draws the sound document.

    The number of entries or one of the changes grows with the size, so that the file is linear.
    """
    changes = draw.choice((0, 1, 1, 1, 2, 3))
    entries = draw.choice((_FEW, _FEW, 0, 3))
    growing = draw.choice(range(-1, changes))
    tree, names, steps = document.tree(entries), [], []
    for _ in range(changes):
        kind = draw.choice(("put", "put", "many", "popped", "widened", "moved", "built"))
        path, other = (draw.choice(list(trees.places(tree))) for _ in range(2))
        value = draw.choice([each for each in ALL if _fits(document, each)])
        steps.append(
            partial(_step, document=document, kind=kind, path=path, value=value, other=other)
        )
        names.append(f"{kind} {value.name} at {_name(tree, path)}")
        tree = steps[-1](tree, size=1)

    def make(size: int) -> Any:
        found = document.tree(entries * size if growing < 0 else entries)
        for number, step in enumerate(steps):
            found = step(found, size=size if number == growing else 1)
        return found

    return Case(document, "; ".join(names) or "sound", make)


def _step(
    tree: Any,
    document: Document,
    kind: str,
    path: trees.Path,
    value: HostileValue,
    other: trees.Path,
    size: int,
) -> Any:
    """Apply a drawn change; without effect at a place that an earlier one removed."""
    try:
        if kind == "many":
            # Without sharing the copies of a value are as long as all of it.
            shared = value.make(size if document.is_pickle else 1)
            return trees.repeated(tree, path, shared, size)
        if kind == "popped" and path and document.is_pickle:
            return trees.dropped(tree, path, value.make(size), size)
        if kind == "widened" and isinstance(trees.at(tree, path), list):
            return trees.changed(tree, path, lambda found: _wider(found, size))
        if kind == "moved":
            return trees.put(tree, path, trees.at(tree, other))
        if kind == "built" and document.is_pickle:
            return trees.changed(tree, path, lambda node: Built(node, value.make(size)))
        return trees.put(tree, path, value.make(size))
    except (IndexError, KeyError, AttributeError, TypeError):
        return tree


def _put(document: Document, path: trees.Path, value: HostileValue) -> Callable[[int], Any]:
    return lambda size: trees.put(document.tree(_FEW), path, value.make(size))


def _many(document: Document, path: trees.Path, value: HostileValue | None) -> Callable[[int], Any]:
    def make(size: int) -> Any:
        tree = document.tree(_FEW)
        shared = trees.at(tree, path) if value is None else value.make(size)
        return trees.repeated(tree, path, shared, size)

    return make


def _probing(document: Document, path: trees.Path) -> Callable[[int], Any]:
    return lambda size: trees.filled(document.tree(_FEW), path, probing_integers(32 * size))


def _popped(document: Document, path: trees.Path, value: HostileValue) -> Callable[[int], Any]:
    return lambda size: trees.dropped(document.tree(_FEW), path, value.make(size), size)


def _widened(document: Document, path: trees.Path) -> Callable[[int], Any]:
    return lambda size: trees.changed(document.tree(_FEW), path, lambda found: _wider(found, size))


def _wider(container: Any, size: int) -> Any:
    """Add items that differ, of the type of the last one."""
    names = [f"key{number}" for number in range(size)]
    if isinstance(container, Pairs):
        last = container[-1][1] if container else 1
        return Pairs([*container, *((name, last) for name in names)])
    is_text = bool(container) and isinstance(container[-1], str)
    # Ones leave the product of sizes as it is.
    return type(container)([*container, *(names if is_text else [1] * size)])


def _fits(document: Document, value: HostileValue) -> bool:
    """Whether the format of a document can express a value."""
    return document.is_pickle or not _is_only_of_pickles(value)


@cache
def _is_only_of_pickles(value: HostileValue) -> bool:
    return _is_of_pickles(value.make(1))


def _is_of_pickles(value: Any) -> bool:
    if isinstance(value, trees.Raw):
        return value.text is None
    if isinstance(value, Pairs):
        return any(_is_of_pickles(each) for pair in value for each in pair if pair[0] is not None)
    return isinstance(value, Node | bytes | tuple)


def _name(tree: Any, path: trees.Path) -> str:
    """A place for messages: names of fields and keys, and numbers of items."""
    parts = []
    for length, step in enumerate(path):
        if isinstance(step, tuple):
            key = trees.at(tree, (*path[:length], (step[0], 0)))
            shown = key if isinstance(key, str) else f"[{step[0]}]"
            parts.append(shown if step[1] else f"key {shown}")
        else:
            parts.append(str(step))
    return ".".join(parts) or "all"
