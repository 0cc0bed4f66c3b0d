"""The machine code of a kernel for NVIDIA chips, as instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

from tests.kernels.compiled.compile import Compiled, remembered

_LABEL = re.compile(r"^(\.L_x_\d+):")
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P[0-9T]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_REGISTER = re.compile(r"U?R(?:\d+|Z)$")
_PREDICATE = re.compile(r"U?P(?:\d+|T|R)$")

#: Instructions whose first operand is read, not written, although it may be a register.
_WRITES_NOTHING = frozenset(
    [
        "BAR",
        "BRA",
        "BRX",
        "BSSY",
        "BSYNC",
        "BREAK",
        "CALL",
        "CCTL",
        "DEPBAR",
        "ERRBAR",
        "EXIT",
        "JMP",
        "JMX",
        "LDGDEPBAR",
        "MEMBAR",
        "NANOSLEEP",
        "NOP",
        "RED",
        "RET",
        "ST",
        "STG",
        "STL",
        "STS",
        "STSM",
        "SYNCS",
        "WARPSYNC",
        "YIELD",
        "UTMACMDFLUSH",
        "UTMASTG",
    ]
)


@dataclass(frozen=True)
class Instruction:
    """One line of disassembly."""

    address: int
    #: With all its parts, such as "ISETP.GE.AND".
    opcode: str
    operands: tuple[str, ...]
    #: (predicate, value with which the instruction runs); None: it always runs.
    guard: tuple[str, bool] | None
    text: str

    @cached_property
    def name(self) -> str:
        """The opcode's first part."""
        return self.opcode.partition(".")[0]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The opcode's other parts."""
        return tuple(self.opcode.split(".")[1:])

    @cached_property
    def width(self) -> int:
        """Registers that the result fills, from the first one on."""
        parts = set(self.parts)
        if self.name == "HGMMA":
            # 64xNxK: N / 2 values of a thread, at most one register each
            return int(self.parts[0].split("x")[1]) // 2
        if self.name == "LDSM":
            return int(self.parts[-1]) if self.parts[-1].isdigit() else 1
        if "128" in parts or self.name in {"IMMA", "QMMA"}:
            return 4
        if self.name == "HMMA":
            return 4 if "F32" in parts else 2
        if self.name == "CS2R":
            return 1 if "32" in parts else 2
        return 2 if parts & {"64", "WIDE", "F64"} or self.name in {"DADD", "DFMA", "DMUL"} else 1

    @cached_property
    def results(self) -> tuple[str, ...]:
        """Registers and predicates that the instruction writes."""
        return tuple(
            name
            for operand in self.operands[: self.operands_written]
            for name in _names(operand, self.width)
        )

    @cached_property
    def operands_written(self) -> int:
        """How many operands are results: predicates, one register, and its carries."""
        if self.name in _WRITES_NOTHING or self.name.startswith("UTMA"):
            return 0
        if self.name in {"P2R", "UP2UR"}:
            return 1
        count, seen_register = 0, False
        for operand in self.operands:
            if _PREDICATE.match(operand):
                count += 1
            elif _REGISTER.match(operand) and not seen_register:
                count, seen_register = count + 1, True
            else:
                break
        if self.name in {"ISETP", "UISETP", "FSETP", "DSETP", "HSETP2", "PLOP3", "UPLOP3"}:
            return 2
        return count

    @cached_property
    def target(self) -> str | None:
        """Label that a branch or a call goes to."""
        found = re.search(r"`\((\.L_x_\d+)\)", self.text)
        return found[1] if found else None


def _names(operand: str, width: int) -> tuple[str, ...]:
    if operand == "PR":
        return tuple(f"P{number}" for number in range(7))
    if operand in {"RZ", "URZ", "PT", "UPT"}:
        return ()
    if _PREDICATE.match(operand):
        return (operand,)
    letters, number = re.match(r"(U?R)(\d+)", operand).groups()  # type: ignore[union-attr]
    return tuple(f"{letters}{int(number) + offset}" for offset in range(width))


@dataclass(frozen=True)
class Program:
    """The instructions of a kernel and the places that branches go to."""

    instructions: tuple[Instruction, ...]
    #: Index of the instruction behind each label.
    labels: dict[str, int]


def disassemble(compiled: Compiled) -> Program:
    """Take a kernel's binary apart.

    Raises:
        RuntimeError: if the disassembler's lines are not those known here.
    """
    binary = compiled.stages["cubin"]
    return parse(remembered("nvdisasm", binary, lambda: _listing(binary)))


def touches_local_memory(compiled: Compiled) -> bool:
    """Whether an instruction of a kernel for an NVIDIA chip reads or writes local memory."""
    binary = compiled.stages["cubin"]
    listing = remembered("nvdisasm", binary, lambda: _listing(binary))
    return re.search(r"\b(?:LDL|STL)\b", listing) is not None


def _listing(binary: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run(
            [tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout


def tool(name: str) -> str:
    """Find one of the programs for binaries that come with Triton."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def parse(listing: str) -> Program:
    """Read what `nvdisasm -c` prints.

    Raises:
        RuntimeError: if a line looks like an instruction and is none, or there is none at all.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(instructions)
            continue
        found = _LINE.match(line)
        if found is None:
            if re.match(r"^\s*/\*[0-9a-f]{4,}\*/", line):
                raise RuntimeError(f"nvdisasm printed an instruction that is not known: {line!r}")
            continue
        address, negated, predicate, opcode, rest = found.groups()
        operands = tuple(part.strip().removesuffix(".reuse") for part in rest.split(",") if part)
        instructions.append(
            Instruction(
                int(address, 16),
                opcode,
                operands,
                (predicate, negated != "!") if predicate else None,
                line.strip(),
            )
        )
    if not instructions:
        raise RuntimeError("nvdisasm printed no instruction")
    return Program(tuple(instructions), labels)
