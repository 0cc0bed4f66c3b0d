"""Warp instructions of a launch: what its kernel runs, in all warps of all programs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.kernels.compiled.compile import Compiled
from tests.kernels.compiled.control import execute
from tests.kernels.compiled.sass import disassemble

#: Instructions that use local memory, and those that change memory atomically.
LOCAL = frozenset({"LDL", "STL"})
ATOMIC = frozenset({"ATOM", "ATOMG", "RED", "REDG", "UTMAREDG"})

#: Threads of a warp.
_THREADS = 32


@dataclass(frozen=True)
class Work:
    """What the warps of one launch run."""

    #: Warp instructions by name, over the whole grid.
    by_name: dict[str, int]
    #: Bytes of global memory that loads and stores touch; a predicate that hangs on the thread or
    #: on data counts as true.
    loaded_bytes: int
    stored_bytes: int

    @property
    def total(self) -> int:
        """Warp instructions of the whole grid."""
        return sum(self.by_name.values())


def work(compiled: Compiled, loaded: int | None = None) -> Work:
    """Count the instructions of a launch.

    Args:
        compiled: for an NVIDIA chip.
        loaded: see `control.execute`.

    Raises:
        ValueError: for a chip of another maker.
    """
    if "cubin" not in compiled.stages:
        raise ValueError(f"{compiled.name}: no machine code of {compiled.chip.name} is read here")
    key = (
        compiled.stages["cubin"],
        compiled.launch.grid,
        tuple(argument_words(compiled).items()),
    )
    if (key, loaded) not in _COUNTED:
        _COUNTED[key, loaded] = _work(compiled, loaded)
    return _COUNTED[key, loaded]


#: What was counted before in this process.
_COUNTED: dict[Any, Work] = {}


def _work(compiled: Compiled, loaded: int | None) -> Work:
    program = disassemble(compiled)
    launch = compiled.launch
    executions = execute(program, launch.grid, argument_words(compiled), loaded)
    by_name: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for index, count in executions.counts.items():
        op = program.instructions[index]
        by_name[op.name] += count * launch.num_warps
        if op.name in _GLOBAL:
            count -= executions.idle[index]
            moved[_GLOBAL[op.name]] += count * launch.num_warps * _THREADS * _bytes(op.parts)
    return Work(dict(by_name), moved["loaded"], moved["stored"])


def forbidden(compiled: Compiled, *, atomics: bool = False) -> list[str]:
    """Say which instructions of a kernel have no place in it.

    Args:
        compiled: for an NVIDIA chip.
        atomics: whether the kernel may change memory atomically.
    """
    names = Counter(op.name for op in disassemble(compiled).instructions)
    wrong = LOCAL if atomics else LOCAL | ATOMIC
    return [
        f"{compiled.name} on {compiled.chip.name}: {names[name]} {name}; expected none"
        for name in sorted(wrong)
        if names[name]
    ]


_GLOBAL = {"LDG": "loaded", "LDGSTS": "loaded", "STG": "stored"}


def _bytes(parts: tuple[str, ...]) -> int:
    for part, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if part in parts:
            return size
    return 4


def argument_words(compiled: Compiled) -> dict[int, int]:
    """Lay out the first constant bank: 32-bit words by their offset, the arguments among them.

    Pointers stay out: no address is known, and no loop hangs on one.

    Raises:
        RuntimeError: if the kernel's parameters are not those that were handed in.
    """
    kinds = re.findall(
        rf"\.param \.([a-z]\d+)(?: \.ptr[^,)]*?)? {re.escape(compiled.name)}_param_\d+",
        compiled.stages["ptx"],
    )
    names = compiled.parameters
    if len(kinds) < len(names):
        raise RuntimeError(f"{compiled.name}: {len(kinds)} parameters for {names}")
    grid = (*compiled.launch.grid, 1, 1)
    # Threads of a program and programs of the grid along each axis come first.
    words = {0x0: compiled.launch.num_warps * _THREADS, 0x4: 1, 0x8: 1}
    words |= {0xC + 4 * axis: grid[axis] for axis in range(3)}
    offset = _PARAMETERS[compiled.chip.name]
    for name, kind in zip(names, kinds, strict=False):
        size = int(kind[1:]) // 8
        offset += -offset % size
        value = compiled.launch.arguments[name]
        if isinstance(value, int):
            for word in range(max(1, size // 4)):
                words[offset + 4 * word] = value >> (32 * word) & 0xFFFFFFFF
        offset += size
    return words


#: Offset of the parameters in the first constant bank.
_PARAMETERS = {"sm_80": 0x160, "sm_89": 0x160, "sm_90": 0x210}
