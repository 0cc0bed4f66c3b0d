"""Small YAML files of texts, lists and mappings, in time and memory that are linear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fiber.data.formats.folders.rows import read_small
from fiber.messages import shown

#: libyaml's parser, which wheels of PyYAML have, is ten times as fast.
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
#: Maximum number of values, lists and mappings in one another, and characters of a reason.
_MAX_VALUES, _MAX_DEPTH, _MAX_REASON = 300_000, 32, 300


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping, whose values are texts, lists and mappings.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file: it has an alias, which could repeat a part endlessly, a
            key twice or that is no text, too many values, or values too deep in one another.
    """
    try:
        found = _value(path, yaml.parse(read_small(path), _Loader))
    except yaml.YAMLError as problem:
        said = " ".join(str(problem).split())[:_MAX_REASON]
        raise ValueError(f"{path} is not valid YAML: {said}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must have names of fields, such as names; got {shown(found)}")
    return found


def _value(path: Path, events: Iterator[yaml.Event]) -> Any:
    """Build the value of the first document from the events of a parser."""
    # Open lists and mappings, the latter each with a key that waits for its value.
    stack: list[list[Any] | dict[str, Any]] = []
    keys: list[str | None] = []
    count = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            found: Any = stack.pop()
            keys.pop()
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) == _MAX_DEPTH:
                raise _error(path, event, f"has more than {_MAX_DEPTH} levels; expected fewer")
            stack.append({} if isinstance(event, yaml.MappingStartEvent) else [])
            keys.append(None)
            continue
        elif isinstance(event, yaml.ScalarEvent):
            found = event.value
        elif isinstance(event, yaml.AliasEvent):
            raise _error(path, event, "has an alias (*name); expected plain values")
        else:
            continue
        count += 1
        if count > _MAX_VALUES:
            raise _error(path, event, f"has more than {_MAX_VALUES:,} values; expected fewer")
        if not stack:
            return found
        outer, key = stack[-1], keys[-1]
        if isinstance(outer, list):
            outer.append(found)
        elif key is not None:
            outer[key], keys[-1] = found, None
        elif not isinstance(found, str) or found in outer:
            reason = "twice" if isinstance(found, str) else "which is no text"
            raise _error(path, event, f"has the key {shown(found)} {reason}; expected names")
        else:
            keys[-1] = found
    return None


def _error(path: Path, event: yaml.Event, said: str) -> ValueError:
    return ValueError(f"{path}: line {event.start_mark.line + 1} {said}")
