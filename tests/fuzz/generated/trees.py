"""Documents as trees of values, and changes of one place in them.

A tree consists of plain values, lists and tuples, `Pairs` for the items of a dict, and nodes for
what a pickle creates. Changes return a new tree and share what they leave alone, so that a value
that occurs at several places is stored once where the format can refer to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

#: Steps from the root to a place: an index, an index and 0 (key) or 1 (value), or a field's name.
Path = tuple[Any, ...]

#: Of a container with more than `_MAX_ITEMS` items, only so many that are of one type are places.
#: Configs have fewer.
_MAX_ITEMS, _MAX_ALIKE = 24, 2


class Pairs(list[tuple[Any, Any]]):
    """Items of a dict, with keys of any type and in any number."""


@dataclass(frozen=True, eq=False)
class Node:
    """Base class of nodes, which are compared by identity."""


@dataclass(frozen=True, eq=False)
class Raw(Node):
    """A value in both encodings; None for one that the format cannot express."""

    opcodes: bytes
    text: str | None


@dataclass(frozen=True, eq=False)
class Global(Node):
    """A class or function, by the names of its module and of itself."""

    module: Any
    name: Any


@dataclass(frozen=True, eq=False)
class Call(Node):
    """The result of a call, which REDUCE or, for a new object, NEWOBJ makes."""

    callee: Any
    arguments: Any
    is_new: bool = False


@dataclass(frozen=True, eq=False)
class Filled(Node):
    """A result of a call to which items are added, such as an OrderedDict."""

    target: Any
    items: Any


@dataclass(frozen=True, eq=False)
class Built(Node):
    """An object whose state is set by BUILD."""

    target: Any
    state: Any


@dataclass(frozen=True, eq=False)
class Persistent(Node):
    """A reference to something outside of the pickle: of torch.save, a storage."""

    identity: Any


@dataclass(frozen=True, eq=False)
class Dropped(Node):
    """A value before which others are made and popped."""

    values: list[Any]
    result: Any


def tree_of(value: Any) -> Any:
    """Return plain values as a tree: dicts become `Pairs`."""
    if isinstance(value, dict):
        return Pairs((key, tree_of(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value)(map(tree_of, value))
    return value


def children(node: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a node, each with the step that leads to it."""
    if isinstance(node, Pairs):
        return [((i, j), pair[j]) for i, pair in enumerate(node) for j in (0, 1)]
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    if isinstance(node, Dropped):
        return [("result", node.result)]
    if isinstance(node, Node) and not isinstance(node, Raw):
        return [(field.name, getattr(node, field.name)) for field in fields(node)]
    return []


def places(node: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every place, the root first; of items that are alike, the first ones."""
    yield path
    found, seen = children(node), dict[Any, int]()
    has_many = isinstance(node, list | tuple) and len(node) > _MAX_ITEMS
    for step, child in found:
        # Settings differ in type; tensors and records do not.
        kind = (type(child), step[1] if isinstance(node, Pairs) else None)
        seen[kind] = seen.get(kind, 0) + 1
        is_alike = isinstance(child, Node | list | tuple) or isinstance(node, list | tuple)
        if seen[kind] <= _MAX_ALIKE or not (is_alike and has_many):
            yield from places(child, (*path, step))


def at(node: Any, path: Path) -> Any:
    """Return what is at a place."""
    for step in path:
        node = _child(node, step)
    return node


def changed(node: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """Return a tree with `change` applied at a place; the nodes on the path are copied."""
    if not path:
        return change(node)
    step, *rest = path
    return _with(node, step, changed(_child(node, step), tuple(rest), change))


def put(tree: Any, path: Path, value: Any) -> Any:
    """Replace what is at a place."""
    return changed(tree, path, lambda _: value)


def repeated(tree: Any, path: Path, value: Any, count: int) -> Any:
    """Replace the item of the innermost container around a place by many with `value` there.

    Each item is a new object, as other items of a file are; `value` is one object in all of them.
    Without a container the tree is returned as it is.
    """
    return _filled(tree, path, [value] * count, lambda node: isinstance(node, list | tuple))


def filled(tree: Any, path: Path, values: Sequence[Any]) -> Any:
    """Replace the item of the innermost list around a place by one for each value, with it there.

    Items of dicts are none of a list.
    """
    return _filled(tree, path, values, _is_list)


def is_in_list(tree: Any, path: Path) -> bool:
    """Return whether a place is in a list, at any depth."""
    return any(_is_list(at(tree, path[:length])) for length in range(len(path)))


def _is_list(node: Any) -> bool:
    return isinstance(node, list) and not isinstance(node, Pairs)


def _filled(
    tree: Any, path: Path, values: Sequence[Any], is_container: Callable[[Any], bool]
) -> Any:
    for length in range(len(path) - 1, -1, -1):
        container = at(tree, path[:length])
        if is_container(container):
            break
    else:
        return tree
    step, rest = path[length], path[length + 1 :]
    _check_step(container, step)
    index = step[0] if isinstance(step, tuple) else step
    new: list[Any] = []
    for value in values:
        if isinstance(step, tuple):
            pair = list(container[index])
            pair[step[1]] = put(pair[step[1]], rest, value)
            new.append(tuple(pair))
        else:
            new.append(put(container[index], rest, value))
    items = [*container[:index], *new, *container[index + 1 :]]
    return put(tree, path[:length], type(container)(items))


def dropped(tree: Any, path: Path, value: Any, count: int) -> Any:
    """Make the node around a place many times before it, with `value` there, and pop it."""
    *outer, step = path
    around = at(tree, tuple(outer))
    values = [_with(around, step, value) for _ in range(count)]
    return put(tree, tuple(outer), Dropped(values, around))


def _child(node: Any, step: Any) -> Any:
    _check_step(node, step)
    if isinstance(step, tuple):
        return node[step[0]][step[1]]
    return getattr(node, step) if isinstance(step, str) else node[step]


def _with(node: Any, step: Any, child: Any) -> Any:
    _check_step(node, step)
    if isinstance(step, str):
        return replace(node, **{step: child})
    items: Sequence[Any] = node
    if isinstance(step, tuple):
        index, part = step
        pair = list(items[index])
        pair[part] = child
        return Pairs([*items[:index], tuple(pair), *items[index + 1 :]])
    return type(node)([*items[:step], child, *items[step + 1 :]])


def _check_step(node: Any, step: Any) -> None:
    """Check that a step is one of a node of this type.

    Raises:
        TypeError: if it is not; an earlier change has replaced the node.
    """
    kind = {str: Node, tuple: Pairs, int: (list, tuple)}[type(step)]
    if not isinstance(node, kind) or (isinstance(node, Pairs) and not isinstance(step, tuple)):
        raise TypeError(f"{type(node).__name__} has no place {step!r}")
