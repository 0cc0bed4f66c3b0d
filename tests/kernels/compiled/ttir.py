"""Loads and stores of a compiled kernel, read from Triton's own text of it.

That text (TTIR) is what Triton has left after inlining, moving loads out of loops and joining equal
ones, and before a chip's layouts double anything: each line that loads or stores says how many
elements it moves, and each loop has its bounds.

Elements under a mask count as moved; branches that hang on unknown values count on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from tests.kernels.compiled.compile import Compiled

#: A value of every program of the grid, or None where it is unknown.
Number = Any


@dataclass(frozen=True)
class Access:
    """One line that moves data between memory and the chip, in the whole launch."""

    #: Name of the kernel's parameter that the pointer comes from.
    argument: str
    #: "load", "store" or "atomic".
    kind: str
    #: Bytes that the line moves in the whole grid; an atomic change reads and writes.
    moved_bytes: int
    line: str


@dataclass
class _Region:
    """A loop, a branch, or anything else in braces, and how often each program enters it."""

    kind: str
    times: Number
    #: Whether a branch is taken, where it is known.
    condition: Number = None
    carried: list[str] = field(default_factory=list)


def accesses(compiled: Compiled, loaded: int | None = None) -> list[Access]:
    """Read what a launch moves.

    Args:
        compiled: the launch.
        loaded: what every number is that is loaded from memory and bounds a loop, such as the
            length of all keys; None: such a loop is an error.

    Raises:
        RuntimeError: for text that is not understood, or a loop with unknown bounds.
    """
    return _Reader(compiled, loaded).run()


class _Reader:
    def __init__(self, compiled: Compiled, loaded: int | None) -> None:
        self.compiled, self.loaded = compiled, loaded
        grid = (*compiled.launch.grid, 1, 1)[:3]
        self.grid = dict(zip("xyz", grid, strict=True))
        self.programs = prod(grid)
        places = np.indices(grid, dtype=np.int64).reshape(3, -1)
        self.places = dict(zip("xyz", places, strict=True))
        self.numbers: dict[str, Number] = {}
        self.pointers: dict[str, str] = {}
        self.stack: list[_Region] = []
        self.found: list[Access] = []

    def run(self) -> list[Access]:
        for line in _lines(self.compiled.stages["ttir"]):
            try:
                self._line(line)
            except (KeyError, ValueError, AttributeError, TypeError) as error:
                raise RuntimeError(f"{self.compiled.name}: not understood: {line}") from error
        if self.stack:
            raise RuntimeError(f"{self.compiled.name}: {len(self.stack)} braces left open")
        return self.found

    def _line(self, line: str) -> None:
        if line.startswith("tt.func"):
            self._arguments(line)
            self.stack.append(_Region("function", 1))
        elif line.startswith(("module", "^bb")) or line.endswith("({"):
            if not line.startswith("^bb"):
                self.stack.append(_Region("region", self._times()))
        elif line.startswith("} else {"):
            region = self.stack.pop()
            taken = None if region.condition is None else 1 - region.condition
            self.stack.append(self._branch(taken))
        elif line.startswith("}"):
            self.stack.pop()
        elif " scf.for " in f" {line}":
            self._loop(line)
        elif " scf.if " in f" {line}":
            found = re.search(r"scf\.if %([\w#]+)", line)
            self.stack.append(self._branch(self.numbers.get(found[1])))  # type: ignore[index]
        elif line.endswith("{"):
            raise ValueError(line)
        else:
            self._operation(line)

    def _times(self) -> Number:
        return self.stack[-1].times if self.stack else 1

    def _branch(self, condition: Number) -> _Region:
        times = self._times() if condition is None else self._times() * condition
        return _Region("branch", times, condition)

    def _arguments(self, line: str) -> None:
        for name, kind in re.findall(r"%(\w+): (!?[\w.]+(?:<[^>]*>)?)", line):
            value = self.compiled.launch.arguments.get(name)
            if kind.startswith("!tt.ptr"):
                self.pointers[name] = name
            elif isinstance(value, int):
                self.numbers[name] = value

    def _loop(self, line: str) -> None:
        found = re.search(
            r"scf\.for (?:unsigned )?%([\w#]+) = %([\w#]+) to %([\w#]+) step %([\w#]+)", line
        )
        assert found is not None
        variable, *bounds = found.groups()
        first, end, step = (self.numbers.get(name) for name in bounds)
        if first is None or end is None or step is None:
            raise RuntimeError(
                f"{self.compiled.name}: a loop from %{bounds[0]} to %{bounds[1]} step %{bounds[2]}"
                f" has unknown bounds: {line}"
            )
        trips = np.maximum(0, -((first - end) // step))
        self.stack.append(_Region("loop", self._times() * trips))
        self.numbers.pop(variable, None)
        for name, start in re.findall(r"%([\w#]+) = %([\w#]+)(?=[,)])", line):
            # A pointer that moves along stays inside its argument; a number changes.
            if start in self.pointers:
                self.pointers[name] = self.pointers[start]

    def _operation(self, line: str) -> None:
        found = re.match(r'(?:%([\w#]+)(?::(\d+))? = )?"?([a-z_]+\.[\w.]+|call)"?\s*(.*)', line)
        assert found is not None
        result, _, name, rest = found.groups()
        operands = re.findall(r"%([\w#]+)", rest.partition(" : ")[0])
        if name in _MEMORY:
            self._access(name, operands[0], rest, line)
        elif name.startswith(("tt.descriptor", "tt.experimental", "tt.call", "scf.while")):
            raise ValueError(name)
        if result is None:
            return
        if name in _KEEPS_POINTER:
            origin = {self.pointers[each] for each in operands if each in self.pointers}
            if len(origin) == 1:
                (self.pointers[result],) = origin
        value = self._number(name, operands, rest)
        if value is not None:
            self.numbers[result] = value
        else:
            self.numbers.pop(result, None)

    def _access(self, name: str, pointer: str, rest: str, line: str) -> None:
        kind = _MEMORY[name]
        shape, element = re.search(  # type: ignore[union-attr]
            r"(?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)>", rest.rpartition(" : ")[2]
        ).groups()
        elements = reduce(lambda count, side: count * int(side), (shape or "1").split("x"), 1)
        each = elements * _BYTES[element] * (2 if kind == "atomic" else 1)
        times = np.broadcast_to(self._times(), (self.programs,)).sum()
        argument = self.pointers.get(pointer)
        if argument is None:
            raise ValueError(f"%{pointer} comes from no single argument")
        self.found.append(Access(argument, kind, int(times) * each, line))

    def _number(self, name: str, operands: list[str], rest: str) -> Number:
        if "tensor<" in rest:
            return None
        if name == "arith.constant":
            found = re.match(r"(-?\d+|true|false)(?: : [iu]\w*)?$", rest.strip())
            return None if found is None else int({"true": 1, "false": 0}.get(found[1], found[1]))
        if name == "tt.get_program_id":
            return self.places[rest.strip()[0]]
        if name == "tt.get_num_programs":
            return self.grid[rest.strip()[0]]
        if name == "tt.load":
            return self.loaded if re.search(r"ptr<i\d+>", rest) else None
        values = [self.numbers.get(operand) for operand in operands]
        if name not in _ARITHMETIC or any(value is None for value in values):
            return None
        if name == "arith.cmpi":
            return _COMPARED[rest.split(",")[0].strip()](*values).astype(np.int64)
        return _ARITHMETIC[name](*values)


def _lines(text: str) -> Iterator[str]:
    """Give the text line by line, without where in the source a line comes from."""
    for line in text.splitlines():
        bare = _without_places(line).strip()
        if bare and not bare.startswith(("#", "//")):
            yield bare


def _without_places(line: str) -> str:
    while True:
        # `loc(...)` may hold others: the innermost goes first.
        shorter = re.sub(r'\s*loc\((?:"(?:[^"\\]|\\.)*")?[^()]*\)', "", line)
        if shorter == line:
            return line
        line = shorter


def _rounded_to_zero(a: Number, b: Number) -> Number:
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_MEMORY = {
    "tt.load": "load",
    "tt.store": "store",
    "tt.atomic_rmw": "atomic",
    "tt.atomic_cas": "atomic",
}
_KEEPS_POINTER = frozenset(
    [
        "tt.addptr",
        "tt.splat",
        "tt.broadcast",
        "tt.expand_dims",
        "tt.reshape",
        "tt.trans",
        "arith.select",
        "tt.bitcast",
    ]
)
_BYTES: Mapping[str, int] = {
    "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8,
}  # fmt: skip
_COMPARED: Mapping[str, Any] = {
    "eq": lambda a, b: np.asarray(a == b),
    "ne": lambda a, b: np.asarray(a != b),
    "slt": lambda a, b: np.asarray(a < b),
    "sle": lambda a, b: np.asarray(a <= b),
    "sgt": lambda a, b: np.asarray(a > b),
    "sge": lambda a, b: np.asarray(a >= b),
    "ult": lambda a, b: np.asarray(a < b),
    "ule": lambda a, b: np.asarray(a <= b),
    "ugt": lambda a, b: np.asarray(a > b),
    "uge": lambda a, b: np.asarray(a >= b),
}
_ARITHMETIC: Mapping[str, Any] = {
    "arith.cmpi": None,
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.divsi": _rounded_to_zero,
    "arith.divui": lambda a, b: a // b,
    "arith.ceildivsi": lambda a, b: -(-a // b),
    "arith.floordivsi": lambda a, b: a // b,
    "arith.remsi": lambda a, b: a - _rounded_to_zero(a, b) * b,
    "arith.remui": lambda a, b: a % b,
    "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.minui": np.minimum,
    "arith.maxui": np.maximum,
    "arith.andi": lambda a, b: a & b,
    "arith.ori": lambda a, b: a | b,
    "arith.xori": lambda a, b: a ^ b,
    "arith.shli": lambda a, b: a << b,
    "arith.shrsi": lambda a, b: a >> b,
    "arith.shrui": lambda a, b: a >> b,
    "arith.extsi": lambda a: a,
    "arith.extui": lambda a: a,
    "arith.trunci": lambda a: a,
    "arith.index_cast": lambda a: a,
    "arith.select": np.where,
}
