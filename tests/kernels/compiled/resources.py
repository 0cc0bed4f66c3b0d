"""Resources of a compiled kernel: registers, spilled registers, shared memory."""

from __future__ import annotations

import csv
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

from tests.kernels.compiled.compile import Compiled, remembered

#: Registers of every kernel; `python -m tests.kernels.compiled --write` updates it.
TABLE = Path(__file__).with_name("registers.csv")
COLUMNS = ("kernel", "case", "chip", "triton", "warps", "registers", "shared_bytes")


#: Atomic instructions in PTX and in AMD's assembly.
_ATOMIC = re.compile(r"\b(?:atom|red)\.[a-z.]*\w+|\b(?:global|buffer|flat|ds)_atomic_\w+")


@dataclass(frozen=True)
class Resources:
    """Resources of one program (shared memory) and of one thread (the others)."""

    registers: int
    #: Bytes of spill stores and spill loads.
    spill_bytes: int
    #: Local memory in bytes, spilled registers included.
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Row:
    """Table line: a kernel of a case, compiled for a chip by a version of Triton."""

    kernel: str
    case: str
    chip: str
    triton: str
    warps: int
    registers: int
    shared_bytes: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Key of the table line."""
        return self.kernel, self.case, self.chip, self.triton


def resources(compiled: Compiled) -> Resources:
    """Return the resources of a kernel.

    Raises:
        RuntimeError: if the assembler's log has an unknown format, or describes a different
            binary than Triton's.
    """
    if compiled.chip.backend == "hip":
        return _of_amd(compiled)
    log = remembered("ptxas", _key(compiled), lambda: _assembler_log(compiled))
    found = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    registers = re.search(r"Used (\d+) registers", log)
    if found is None or registers is None:
        raise RuntimeError(f"{compiled.name}: no resources in the log of ptxas:\n{log}")
    stack, stored, loaded = map(int, found.groups())
    return Resources(int(registers[1]), stored + loaded, stack, compiled.shared_bytes)


def problems(compiled: Compiled, taken: Resources) -> list[str]:
    """Return problems of a kernel that do not depend on the table."""
    found = []
    name = f"{compiled.name} on {compiled.chip.name}"
    text = compiled.stages["amdgcn" if compiled.chip.backend == "hip" else "ptx"]
    atomic = _ATOMIC.search(text)
    if atomic:
        found.append(f"{name}: {atomic[0]}; expected no atomics")
    if taken.spill_bytes:
        found.append(f"{name}: {taken.spill_bytes} bytes of registers spilled; expected none")
    # The assembler may reserve a stack frame that no instruction uses.
    if taken.stack_bytes and (compiled.chip.backend == "hip" or _uses_local_memory(compiled)):
        found.append(f"{name}: {taken.stack_bytes} bytes of local memory; expected none")
    if taken.shared_bytes > compiled.chip.shared_bytes:
        found.append(
            f"{name}: {taken.shared_bytes} bytes of shared memory; the chip has"
            f" {compiled.chip.shared_bytes}"
        )
    return found


def regressions(rows: Iterable[Row], table: Iterable[Row]) -> list[str]:
    """Return the rows that exceed their table line or have no line."""
    lines = {line.key: line for line in table}
    found = []
    for row in rows:
        name = ", ".join(row.key[:3]) + f", Triton {row.triton}"
        line = lines.get(row.key)
        if line is None:
            found.append(f"{name}: not in {TABLE.name}; {WRITE} adds it")
            continue
        for unit in ("registers", "shared_bytes"):
            now, then = getattr(row, unit), getattr(line, unit)
            if now > then:
                found.append(
                    f"{name}: {now} {unit.replace('_', ' ')}, {then} in {TABLE.name};"
                    f" {WRITE} accepts the new value"
                )
    return found


WRITE = "`python -m tests.kernels.compiled --write`"


def read_table(path: Path = TABLE) -> list[Row]:
    """Read the committed table; empty if there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                line["kernel"],
                line["case"],
                line["chip"],
                line["triton"],
                *(int(line[column]) for column in COLUMNS[4:]),
            )
            for line in csv.DictReader(file)
        ]


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Replace the lines with the same case and Triton version; keep all others."""
    rows = list(rows)
    done = {(row.case, row.triton) for row in rows}
    kept = [line for line in read_table(path) if (line.case, line.triton) not in done]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in sorted([*kept, *rows], key=lambda row: row.key):
            writer.writerow([getattr(row, column) for column in COLUMNS])


def _uses_local_memory(compiled: Compiled) -> bool:
    """Return True if a kernel for an NVIDIA chip reads or writes local memory."""
    binary = compiled.stages["cubin"]
    listing = remembered("nvdisasm", binary, lambda: _disassemble(binary))
    return re.search(r"\b(?:LDL|STL)\b", listing) is not None


def _disassemble(binary: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run(
            [_tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout


def _tool(name: str) -> str:
    """Return the path of a program that ships with Triton."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _key(compiled: Compiled) -> bytes:
    return compiled.chip.name.encode() + compiled.stages["cubin"] + compiled.stages["ptx"].encode()


def _assembler_log(compiled: Compiled) -> str:
    """Assemble again with Triton's options, and return the assembler's log."""
    architecture = compiled.chip.architecture
    assert isinstance(architecture, int)
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(compiled.stages["ptx"], encoding="utf-8")
        done = subprocess.run(
            [
                get_ptxas(architecture).path,
                "-lineinfo",
                "-v",
                "--regAllocOptLevel=2",
                f"--gpu-name={sm_arch_from_capability(architecture)}",
                str(source),
                "-o",
                str(binary),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{compiled.name}: ptxas failed: {done.stderr}")
        # The log is valid for Triton's own binary if cuobjdump reports the same numbers.
        binary.write_bytes(compiled.stages["cubin"])
        usage_text = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", str(binary)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", usage_text)
    logged = re.search(r"(\d+) bytes stack frame[\s\S]*?Used (\d+) registers", done.stderr)
    if usage is None or logged is None or usage.groups() != logged.groups()[::-1]:
        raise RuntimeError(
            f"{compiled.name} on {compiled.chip.name}: ptxas and Triton's binary disagree; expected"
            f" the options of Triton's make_cubin: {done.stderr}{usage_text}"
        )
    return done.stderr


def _of_amd(compiled: Compiled) -> Resources:
    text = compiled.stages["amdgcn"]

    def value(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{compiled.name}: no .{name} in the assembly")
        return int(found[1])

    # Registers are four bytes. Scalar registers are spilled to lanes of vector registers, whose
    # own spills then increase.
    spilled = 4 * value("vgpr_spill_count")
    return Resources(
        value("vgpr_count"), spilled, value("private_segment_fixed_size"), compiled.shared_bytes
    )
