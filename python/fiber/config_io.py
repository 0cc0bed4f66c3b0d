"""Fields of configuration dataclasses by name: to and from plain values, changed, checked.

The dataclasses are the truth; what reads JSON or a command line goes through here, so that a wrong
name or value is met by the nearest right names and the expected type.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

ConfigT = TypeVar("ConfigT")


def require(condition: bool, message: str) -> None:
    """Raise ValueError with a message unless a condition holds."""
    if not condition:
        raise ValueError(message)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Say which known names look most like `name`, for error messages."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config dataclass into plain dicts, lists, numbers and strings, ready for JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    return plain(config)


def from_dict(cls: type[ConfigT], values: dict[str, Any], *, where: str = "") -> ConfigT:
    """Build a config dataclass from `to_dict`'s output; absent fields keep their defaults.

    Raises:
        ValueError: for an unknown field (with the nearest right names) or a value of the wrong
            type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"unknown field {where + name!r}: {nearest(name, sorted(known))}")
        arguments[name] = _convert(hints[name], value, where + name)
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a field's type; turn lists into tuples and dicts into dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, dict):
            return from_dict(hint, value, where=where + ".")
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            if option is not type(None):
                try:
                    return _convert(option, value, where)
                except ValueError:
                    continue
    elif origin is Literal:
        if value in arguments:
            return value
        raise ValueError(
            f"{where}: expected one of {', '.join(map(str, arguments))}, got {value!r}"
        )
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                item_hints = [arguments[0]] * len(value)
            else:
                item_hints = list(arguments)
            if len(item_hints) == len(value):
                return tuple(
                    _convert(item_hint, item, f"{where}[{index}]")
                    for index, (item_hint, item) in enumerate(zip(item_hints, value, strict=True))
                )
    elif origin is dict:
        if isinstance(value, dict):
            return {
                key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()
            }
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, but "true" is no count.
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or not isinstance(value, bool))
    ):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where}: expected {name}, got {value!r} ({type(value).__name__})")


def replace_fields(config: ConfigT, changes: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Copy a config with fields changed by dotted name, as `--set train.steps=100` does.

    Values given as strings are read as the field's type ("0.1", "true", "1,2,3"). The changes take
    effect together: what the dataclasses check of several fields holds for the result only, in
    whatever order they are named.

    Args:
        config: a dataclass.
        changes: new values by dotted name.
        where: dotted name of `config` itself with a final dot, for messages.

    Raises:
        ValueError: for a name that does not exist (with the nearest right ones) or a value that
            does not fit.
    """
    hints = typing.get_type_hints(type(config))
    new: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        name, _, rest = dotted.partition(".")
        if name not in hints:
            known = [where + known for known in field_names(config)]
            raise ValueError(f"unknown field {where + dotted!r}: {nearest(where + dotted, known)}")
        if rest:
            deeper.setdefault(name, {})[rest] = value
        else:
            parsed = _parse(hints[name], value) if isinstance(value, str) else value
            new[name] = _convert(hints[name], parsed, where + name)
    for name, inner in deeper.items():
        old = new.get(name, getattr(config, name))
        if not dataclasses.is_dataclass(old):
            dotted = f"{where}{name}.{next(iter(inner))}"
            raise ValueError(f"unknown field {dotted!r}: {name!r} has no fields")
        new[name] = replace_fields(old, inner, where=f"{where}{name}.")
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def field_names(config: Any, prefix: str = "") -> list[str]:
    """List every field of a config by dotted name, nested ones included."""
    names = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        names.append(prefix + f.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names += field_names(value, prefix + f.name + ".")
    return names


def _parse(hint: Any, text: str) -> Any:
    """Read a command-line string as the type of a field; what it cannot read, the check refuses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), text)
    if origin is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        return [_parse(arguments[0], item) for item in items]
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if hint is number:
            try:
                return number(text)
            except ValueError:
                return text
    return text
