"""Tables of tile sizes: the packaged one, and the user's table that `fiber tune` writes."""

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

#: Packaged table; see `tile`.
PACKAGED = Path(__file__).with_name("tiles.json")

#: Keys of a line and their types; only kernel and tile are required in the packaged table.
KEYS = {
    "kernel": str,
    "architecture": str,
    "triton": str,
    "window": int,
    "head_width": int,
    "dtype": str,
    "tile": dict,
}
#: A line fits a call if it has no other value for these keys; earlier keys rank higher.
RANKED = ("architecture", "triton", "window", "head_width", "dtype")

# Sizes by kernel inside `trying`; None outside.
_tried: Mapping[str, Mapping[str, int]] | None = None


def tile(
    kernel: str, *, window: int | None, head_width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Look up the tile sizes of a kernel.

    On a GPU, a matching line of the user's table (`users_table`) takes precedence over the packaged
    table. In a table the most specific line wins: architecture ranks first, then Triton's version,
    window, head width and dtype. A line without a key matches every value of it. A process reads a
    table once.

    Args:
        kernel: name of the kernel in the table.
        window: side of a window in tokens; None for a kernel without windows.
        head_width: d.
        dtype: dtype of the queries.
        device: device of the tensors; only CUDA devices have an architecture.

    Returns:
        Sizes by name, with `num_warps` and `num_stages`.

    Raises:
        LookupError: if no line matches; tests rule this out for the package's kernels.
        ValueError: if the user's table is invalid, with file and line.
    """
    if _tried is not None and kernel in _tried:
        return dict(_tried[kernel])
    # Every line of a user's table names an architecture, which only a GPU has.
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
    """Describe which table of tile sizes a device uses.

    Raises:
        ValueError: if the user's table is invalid, with file and line.
    """
    table = users_table()
    if not table.is_file():
        return "the package's table; `fiber tune` makes one for a GPU"
    lines, chip = users_lines(table), architecture(device)
    own = [
        line for line in lines if (line["architecture"], line["triton"]) == (chip, triton_minor())
    ]
    if device.type != "cuda" or not own:
        return f"the package's table; none of the {len(lines)} lines in {table} is for this machine"
    return f"{len(own)} lines in {table}, the package's table for other calls"


@contextmanager
def trying(sizes: Mapping[str, Mapping[str, int]]) -> Iterator[None]:
    """Use these sizes by kernel, and the packaged ones for other kernels, inside a `with` block."""
    global _tried
    before, _tried = _tried, sizes
    try:
        yield
    finally:
        _tried = before


def architecture(device: torch.device) -> str:
    """Return the compiler's name of a GPU, such as "sm_90" or "gfx942"; "none" for no GPU."""
    if device.type != "cuda":
        return "none"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@cache
def triton_minor() -> str:
    """Return Triton's major and minor version, such as "3.9"; "none" if not installed."""
    try:
        return ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        return "none"


def users_table() -> Path:
    """Return the path of the user's table: fiber/tiles.json in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fiber" / "tiles.json"


@cache
def packaged_lines() -> list[Line]:
    """Read the packaged table."""
    return json.loads(PACKAGED.read_text(encoding="utf-8"))


@cache
def users_lines(path: Path) -> list[Line]:
    """Read a user's table once per process; empty if there is none."""
    return read(path) if path.is_file() else []


def best(lines: Sequence[Line], kernel: str, wanted: Mapping[str, object]) -> Line | None:
    """Return the most specific line for a call; a line without a key matches every value of it.

    Args:
        lines: lines of a table.
        kernel: name of the kernel.
        wanted: values of the call by the keys in `RANKED`.
    """
    found, found_rank = None, (-1,) * len(RANKED)
    for line in lines:
        if line["kernel"] != kernel:
            continue
        if any(key in line and line[key] != wanted[key] for key in RANKED):
            continue
        rank = tuple(int(key in line) for key in RANKED)
        if rank > found_rank:
            found, found_rank = line, rank
    return found


def read(path: Path) -> list[Line]:
    """Read a user's table and check every line.

    Raises:
        ValueError: with file and line number, if the file is not a JSON list of objects, or a line
            has an unknown kernel, other sizes than that kernel, or no architecture or Triton.
    """
    lines = []
    for number, line in _entries(path):
        fault = _fault(line)
        if fault is not None:
            raise ValueError(f"{path}, line {number}: {fault}; {_REMEDY}")
        lines.append(line)
    return lines


_REMEDY = "remove the file, or run `fiber tune` again"


def _entries(path: Path) -> list[tuple[int, Any]]:
    """Parse a JSON list into (number of the entry's first line, entry)."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if not isinstance(json.loads(text), list):
            raise ValueError(f"{path}, line 1: expected a list of lines; {_REMEDY}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}; {_REMEDY}") from None
    decoder, entries = json.JSONDecoder(), []
    place = text.index("[") + 1
    while True:
        while text[place].isspace() or text[place] == ",":
            place += 1
        if text[place] == "]":
            return entries
        entry, end = decoder.raw_decode(text, place)
        entries.append((text.count("\n", 0, place) + 1, entry))
        place = end


def _fault(line: Any) -> str | None:
    """Return why a line is invalid, or None."""
    if not isinstance(line, dict):
        return f"expected an object, got {line!r}"
    for key, value in line.items():
        if key not in KEYS:
            return f"unknown key {key!r}; expected some of {', '.join(KEYS)}"
        if type(value) is not KEYS[key]:
            return f"{key} {value!r}; expected {KEYS[key].__name__}"
    for key in ("kernel", "architecture", "triton", "tile"):
        if key not in line:
            return f"no {key}, which every line of a user's table needs"
    sizes = {each["kernel"]: set(each["tile"]) for each in packaged_lines()}
    if line["kernel"] not in sizes:
        return f"unknown kernel {line['kernel']!r}; expected one of {', '.join(sorted(sizes))}"
    wanted = sizes[line["kernel"]]
    if set(line["tile"]) != wanted:
        return f"tile has {', '.join(line['tile'])}; expected {', '.join(sorted(wanted))}"
    for name, value in line["tile"].items():
        is_power = type(value) is int and value > 0 and value & (value - 1) == 0
        if not (is_power or (name == "num_stages" and value == 3)):
            return f"{name} {value!r}; expected a power of two"
    return None


def merged(old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Replace old lines by new lines for the same calls."""

    def calls(line: Line) -> tuple[Any, ...]:
        return (line["kernel"], *(line.get(key) for key in RANKED))

    fresh = {calls(line) for line in new}
    return [*(line for line in old if calls(line) not in fresh), *new]


def written(lines: Sequence[Line]) -> str:
    """Format a table as JSON, one entry per line."""
    body = ",\n".join(f"  {json.dumps({k: line[k] for k in KEYS if k in line})}" for line in lines)
    return f"[\n{body}\n]\n"
