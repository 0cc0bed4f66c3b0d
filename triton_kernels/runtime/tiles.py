"""Tile size tables: the package's table, and the user's table written by `fiber tune`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Line = dict[str, Any]

PACKAGED = Path(__file__).with_name("tiles.json")

#: Keys of a table entry and their types; the package's table requires only kernel and tile.
KEYS = {
    "kernel": str,
    "architecture": str,
    "triton": str,
    "window": int,
    "head_width": int,
    "dtype": str,
    "tile": dict,
}
#: Keys that restrict an entry to certain calls; earlier keys are more specific.
RANKED = ("architecture", "triton", "window", "head_width", "dtype")

#: Tile sizes set by `trying`.
_tried: Mapping[str, Mapping[str, int]] | None = None


def tile(
    kernel: str, *, window: int | None, head_width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Look up the tile sizes of a kernel, including `num_warps` and `num_stages`.

    On a GPU, a matching entry in the user's table takes precedence over the package's table. If
    several entries of a table match, the most specific one is used; see `best`. Tables are read
    once per process.

    Args:
        kernel: name of the kernel in the table.
        window: window side length in tokens; None for kernels without windows.
        head_width: head dim.
        dtype: dtype of the queries.
        device: device of the tensors.

    Raises:
        LookupError: if no entry matches (tests ensure that every kernel of the package has one).
        ValueError: if the user's table is invalid; the message names the file and line.
    """
    if _tried is not None and kernel in _tried:
        return dict(_tried[kernel])
    users = users_table() if device.type == "cuda" and _tried is None else None
    return dict(_lookup(kernel, architecture(device), window, head_width, dtype, users))


@cache
def _lookup(
    kernel: str,
    chip: str,
    window: int | None,
    head_width: int,
    dtype: torch.dtype,
    users: Path | None,
) -> dict[str, int]:
    wanted = {
        "architecture": chip,
        "triton": triton_minor(),
        "window": window,
        "head_width": head_width,
        "dtype": str(dtype).removeprefix("torch."),
    }
    line = best(users_lines(users), kernel, wanted) if users is not None else None
    line = line or best(packaged_lines(), kernel, wanted)
    if line is None:
        raise LookupError(f"{PACKAGED.name}: no tile sizes for {kernel!r} with {wanted}")
    return line["tile"]


def describe_tables(device: torch.device) -> str:
    """Describe which tile size tables a device uses.

    Raises:
        ValueError: if the user's table is invalid; the message names the file and line.
    """
    table = users_table()
    if not table.is_file():
        return "the package's table; `fiber tune` creates one for your GPU"
    lines, chip = users_lines(table), architecture(device)
    own = [
        line for line in lines if (line["architecture"], line["triton"]) == (chip, triton_minor())
    ]
    if device.type != "cuda" or not own:
        return f"the package's table; none of the {len(lines)} entries in {table} apply here"
    return f"{table} (matching entries: {len(own)}); the package's table for all other calls"


@contextmanager
def trying(sizes: Mapping[str, Mapping[str, int]]) -> Iterator[None]:
    """Context manager that overrides the tile sizes of the given kernels."""
    global _tried
    before, _tried = _tried, sizes
    try:
        yield
    finally:
        _tried = before


def architecture(device: torch.device) -> str:
    """Return the compiler's name for a GPU, such as "sm_90" or "gfx942", or "none" for a CPU."""
    if device.type != "cuda":
        return "none"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@cache
def triton_minor() -> str:
    """Return the major and minor version of Triton, such as "3.9", or "none" if not installed."""
    try:
        return ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        return "none"


def users_table() -> Path:
    """Return the path of the user's table: fiber/tiles.json in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fiber" / "tiles.json"


@cache
def packaged_lines() -> list[Line]:
    """Read the package's table."""
    return json.loads(PACKAGED.read_text(encoding="utf-8"))


@cache
def users_lines(path: Path) -> list[Line]:
    """Read a user's table; return an empty list if the file does not exist."""
    return read(path) if path.is_file() else []


def best(lines: Sequence[Line], kernel: str, wanted: Mapping[str, object]) -> Line | None:
    """Return the most specific entry for `kernel` that matches `wanted`, or None.

    `wanted` has a value for each of the `RANKED` keys. An entry that lacks a key matches every
    value of that key.
    """
    matching = (
        line
        for line in lines
        if line["kernel"] == kernel
        and all(line.get(key, wanted[key]) == wanted[key] for key in RANKED)
    )
    return max(matching, key=lambda line: [key in line for key in RANKED], default=None)


def read(path: Path) -> list[Line]:
    """Read and validate a user's table.

    Raises:
        ValueError: if the file is not a JSON list of objects, or an entry has an unknown kernel,
            the wrong tile sizes for its kernel, or no architecture or Triton version.
    """

    def error(number: int, reason: str) -> ValueError:
        remedy = "delete the file, or rerun `fiber tune`"
        return ValueError(f"{path}, line {number}: {reason}; {remedy}")

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if not isinstance(table := json.loads(text), list):
            raise error(1, f"expected a JSON list, got {type(table).__name__}")
    except json.JSONDecodeError as invalid:
        raise error(invalid.lineno, invalid.msg) from None
    # Decode again, entry by entry, to find line numbers.
    decoder, lines = json.JSONDecoder(), []
    position = text.index("[") + 1
    while True:
        while text[position].isspace() or text[position] == ",":
            position += 1
        if text[position] == "]":
            return lines
        line, end = decoder.raw_decode(text, position)
        fault = _fault(line)
        if fault is not None:
            raise error(text.count("\n", 0, position) + 1, fault)
        lines.append(line)
        position = end


def _fault(line: Any) -> str | None:
    """Return why an entry is invalid, or None if it is valid."""
    if not isinstance(line, dict):
        return f"expected an object, got {line!r}"
    for key, value in line.items():
        if key not in KEYS:
            return f"unknown key {key!r}; expected one of {', '.join(KEYS)}"
        if type(value) is not KEYS[key]:
            return f"{key}: expected {KEYS[key].__name__}, got {value!r}"
    for key in ("kernel", "architecture", "triton", "tile"):
        if key not in line:
            return f"missing key {key!r}, which is required in a user's table"
    sizes = {each["kernel"]: set(each["tile"]) for each in packaged_lines()}
    if line["kernel"] not in sizes:
        return f"unknown kernel {line['kernel']!r}; expected one of {', '.join(sorted(sizes))}"
    wanted = sizes[line["kernel"]]
    if set(line["tile"]) != wanted:
        return f"tile: expected keys {', '.join(sorted(wanted))}, got {', '.join(line['tile'])}"
    for name, value in line["tile"].items():
        is_power = type(value) is int and value > 0 and value & (value - 1) == 0
        if not (is_power or (name == "num_stages" and value == 3)):
            return f"{name}: expected a power of two, got {value!r}"
    return None


def merged(old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Merge two tables. New entries replace old entries for the same calls."""

    def call(line: Line) -> tuple[Any, ...]:
        return (line["kernel"], *(line.get(key) for key in RANKED))

    replaced = {call(line) for line in new}
    return [*(line for line in old if call(line) not in replaced), *new]


def written(lines: Sequence[Line]) -> str:
    """Format a table as JSON, one entry per line."""
    body = ",\n".join(f"  {json.dumps({k: line[k] for k in KEYS if k in line})}" for line in lines)
    return f"[\n{body}\n]\n"
