"""Fields with functions of their own for reading and writing."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest

from fiber.config_io import IS_STORED, READ, field_names, from_dict, replace_fields, to_dict


def read_even(value: Any, where: str) -> int:
    if not isinstance(value, int) or value % 2:
        raise ValueError(f"{where}: expected an even number, got {value!r}")
    return value


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    even: Any = field(default=2, metadata={READ: read_even})
    optional: Inner = field(
        default_factory=Inner, metadata={IS_STORED: lambda inner: inner.sizes != (1, 2)}
    )
    named: dict[str, Inner] = field(default_factory=dict)


def test_a_reader_takes_the_place_of_the_type():
    assert from_dict(Outer, {"even": 4}).even == 4
    assert replace_fields(Outer(), {"even": 6}).even == 6
    for make in (
        lambda: from_dict(Outer, {"even": 3}, where="run."),
        lambda: replace_fields(Outer(), {"even": 3}, where="run."),
    ):
        with pytest.raises(ValueError, match=r"run\.even: expected an even number, got 3"):
            make()


def test_a_field_is_written_only_if_it_is_stored():
    assert to_dict(Outer()) == {"even": 2, "named": {}}
    assert field_names(Outer(), only_stored=True) == ["even", "named"]
    assert field_names(Outer()) == ["even", "optional", "optional.sizes", "named"]
    changed = Outer(optional=Inner((3,)), named={"a": Inner()})
    stored = {"even": 2, "optional": {"sizes": [3]}, "named": {"a": {"sizes": [1, 2]}}}
    assert to_dict(changed) == stored
    assert from_dict(Outer, stored) == changed
    assert "optional.sizes" in field_names(changed, only_stored=True)


def test_what_has_no_such_functions_is_written_like_asdict():
    config = Inner((4, 5))
    assert to_dict(config) == {"sizes": list(dataclasses.asdict(config)["sizes"])}


def test_keys_of_a_file_are_printable_in_messages():
    @dataclass(frozen=True)
    class Lengths:
        names: dict[str, str]

    for key, printed in (("\x1b[2J", r"names\.\\x1b\[2J: "), ("\ud800", r"names\.\\ud800: ")):
        with pytest.raises(ValueError, match=rf"^{printed}expected str, got 3"):
            from_dict(Lengths, {"names": {key: 3}})
