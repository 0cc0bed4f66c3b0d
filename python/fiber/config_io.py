"""Convert config dataclasses to and from plain values, and override fields by dotted name.

These functions are used for JSON files and the command line. Errors suggest similar names for an
unknown field and give the expected type of an invalid value.

The metadata of a dataclass field may have two functions. `READ`: of (value, name of the field),
makes the field from a plain value in place of its type; raises ValueError. `IS_STORED`: of the
field, tells whether it is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from fiber.messages import printable, shown, shown_names

ConfigT = TypeVar("ConfigT")

#: Keys of the metadata of a field.
READ, IS_STORED = "fiber.read", "fiber.is_stored"

#: Longer integers overflow in arithmetic with floats.
_MAX_INT = 2**128
#: Maximum number of characters of a name that is compared with others.
_MAX_SIMILAR = 80
#: Maximum number of characters of a key.
_MAX_KEY = 512
#: Maximum number of known names in a hint.
_MAX_KNOWN = 40
#: Types of the fields of a class. Annotations are strings, which `typing` compiles at each call.
_type_hints = functools.cache(typing.get_type_hints)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def check_ranges(config: Any, name: str, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Check that numbers of a config dataclass are in range, including those in tuples.

    Raises:
        ValueError: if one is not; the message gives the field, after `name`, and the range.
    """
    for field, (least, most) in ranges.items():
        value = getattr(config, field)
        # NaN is in no range.
        for each in value if isinstance(value, tuple) else (value,):
            if not least <= each <= most:
                raise ValueError(f"{name}{field}: expected {least} to {most}, got {shown(value)}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return a hint for an error message: similar known names, or all names if none is similar."""
    known = list(known)
    # The search takes quadratic time in the length of a name.
    short = [each for each in known if max(len(name), len(each)) <= _MAX_SIMILAR]
    by_lower = {each.lower(): each for each in reversed(short)}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    if close:
        names = (printable(by_lower[each], _MAX_SIMILAR) for each in close)
        return f"did you mean {' or '.join(names)}?"
    return f"expected one of {shown_names(known, _MAX_KNOWN)}"


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to a JSON-serializable dict."""
    return json.loads(json.dumps(_plain(config)))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in _names(value, only_stored=True)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _names(config: Any, *, only_stored: bool) -> list[str]:
    """List the fields of a config, without those of nested ones."""
    names = []
    for each in dataclasses.fields(config):
        is_stored = each.metadata.get(IS_STORED)
        if not only_stored or is_stored is None or is_stored(getattr(config, each.name)):
            names.append(each.name)
    return names


def from_dict(cls: type[ConfigT], values: dict[str, Any], *, where: str = "") -> ConfigT:
    """Build a config dataclass from the output of `to_dict`. Missing fields get their defaults.

    Raises:
        ValueError: if a field is unknown (similar names are suggested) or a value has the wrong
            type.
    """
    hints = _type_hints(cls)
    known = {f.name: f.metadata.get(READ) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"{where or 'config'}: expected names of fields, got {shown(name)}")
        if name not in known:
            raise ValueError(f"unknown field {shown(where + name)}: {nearest(name, sorted(known))}")
        read = known[name] or functools.partial(_convert, hints[name])
        arguments[name] = read(value, where + name)
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        is_required = each.default is each.default_factory is dataclasses.MISSING
        if each.init and is_required and each.name not in arguments:
            raise ValueError(f"missing field {shown(where + each.name)}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert lists to tuples, dicts to dataclasses and ints to floats, as a type requires."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, where=where + ".")
    if origin in (typing.Union, types.UnionType):
        # So that an error names the field of a section which may be None.
        if isinstance(value, dict) and (section := _section_of(arguments)):
            return _convert(section, value, where)
        for option in arguments:
            with contextlib.suppress(ValueError):
                return _convert(option, value, where)
    elif origin is Literal:
        if value in arguments:
            return value
        raise ValueError(
            f"{where}: expected one of {', '.join(map(repr, arguments))}, got {shown(value)}"
        )
    elif origin is tuple and isinstance(value, (list, tuple)):
        any_length = len(arguments) == 2 and arguments[1] is Ellipsis
        item_hints = arguments[:1] * len(value) if any_length else arguments
        if len(item_hints) == len(value):
            items = enumerate(zip(item_hints, value, strict=True))
            return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in items)
    elif origin is dict and isinstance(value, dict):
        kind = arguments[1]
        for key in value:
            if not isinstance(key, str) or len(key) > _MAX_KEY:
                raise ValueError(f"{where}: expected keys that are short strings, got {shown(key)}")
        return {
            key: _convert(kind, item, f"{where}.{printable(key, _MAX_SIMILAR)}")
            for key, item in value.items()
        }
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        # float() of a longer integer is an OverflowError.
        return float(value) if abs(value) < 2**1023 else math.inf
    elif hint is int and isinstance(value, int) and abs(value) >= _MAX_INT:
        raise ValueError(f"{where}: expected an integer below 2**128, got {shown(value)}")
    # bool is a subclass of int, but True is not a count.
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or not isinstance(value, bool))
    ):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where}: expected {name}, got {shown(value)} ({type(value).__name__})")


def _section_of(hints: typing.Iterable[Any]) -> type[Any] | None:
    """Return the config dataclass among the types of a field, if any."""
    return next((h for h in hints if isinstance(h, type) and dataclasses.is_dataclass(h)), None)


def replace_fields(config: ConfigT, changes: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Return a copy of a config with fields overridden by dotted name, as in `--set train.steps=9`.

    Strings are parsed as the field's type ("0.1", "true", "1,2,3"). All changes are applied
    together, so cross-field checks see only the final values. `where` is prepended to names in
    errors.

    Raises:
        ValueError: if a name is unknown (similar names are suggested) or a value is invalid.
    """
    hints = _type_hints(type(config))
    readers = {f.name: f.metadata.get(READ) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    new: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        name, _, rest = dotted.partition(".")
        if name not in hints:
            known = [where + known for known in field_names(config)]
            asked = where + dotted
            raise ValueError(f"unknown field {shown(asked)}: {nearest(asked, known)}")
        if rest:
            deeper.setdefault(name, {})[rest] = value
        else:
            parsed = _parse(hints[name], value) if isinstance(value, str) else value
            read = readers[name] or functools.partial(_convert, hints[name])
            new[name] = read(parsed, where + name)
    for name, inner in deeper.items():
        old = new.get(name, getattr(config, name))
        if old is None and (section := _section_of(typing.get_args(hints[name]))):
            # A section that is not given starts from its defaults.
            old = section()
        if not dataclasses.is_dataclass(old):
            dotted = f"{where}{name}.{next(iter(inner))}"
            raise ValueError(f"unknown field {shown(dotted)}: {name!r} has no fields")
        new[name] = replace_fields(old, inner, where=f"{where}{name}.")
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def field_names(config: Any, prefix: str = "", *, only_stored: bool = False) -> list[str]:
    """List the fields of a config by dotted name, including nested ones: all, or those written."""
    names = []
    for name in _names(config, only_stored=only_stored):
        value = getattr(config, name)
        names.append(prefix + name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names += field_names(value, f"{prefix}{name}.", only_stored=only_stored)
    return names


def _parse(hint: Any, text: str) -> Any:
    """Parse a command-line string as a field's type; return it unchanged if that fails."""
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
    if hint in (int, float):
        with contextlib.suppress(ValueError):
            return hint(text)
    return text
