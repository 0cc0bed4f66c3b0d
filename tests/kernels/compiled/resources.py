"""What a compiled kernel takes of a chip: registers, memory for spilled ones, shared memory."""

from __future__ import annotations

import csv
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

from tests.kernels.compiled.compile import Compiled, remembered
from tests.kernels.compiled.sass import tool, touches_local_memory

#: Registers of every kernel; `python -m tests.kernels.compiled resources --write` makes it.
TABLE = Path(__file__).with_name("registers.csv")
COLUMNS = ("kernel", "case", "chip", "triton", "warps", "registers", "shared_bytes")


#: An instruction that changes memory atomically, as the assemblers of both makers spell it.
_ATOMIC = re.compile(r"\b(?:atom|red)\.[a-z.]*\w+|\b(?:global|buffer|flat|ds)_atomic_\w+")


@dataclass(frozen=True)
class Resources:
    """What one program (shared memory) and one thread (the rest) of a kernel take."""

    registers: int
    #: Bytes that registers are written to and read from, for want of registers.
    spill_bytes: int
    #: Local memory in bytes, spilled registers included.
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Row:
    """A line of the table: a kernel of a case on a chip, compiled by a Triton."""

    kernel: str
    case: str
    chip: str
    triton: str
    warps: int
    registers: int
    shared_bytes: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the line."""
        return self.kernel, self.case, self.chip, self.triton


def resources(compiled: Compiled) -> Resources:
    """Read what a kernel takes.

    Raises:
        RuntimeError: if the assembler says something else than it used to, or does not make the
            binary that Triton made.
    """
    if compiled.chip.backend == "hip":
        return _of_amd(compiled)
    log = remembered("ptxas", _key(compiled), lambda: _assembler_log(compiled))
    found = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    registers = re.search(r"Used (\d+) registers", log)
    if found is None or registers is None:
        raise RuntimeError(f"{compiled.name}: no resources in what ptxas said:\n{log}")
    stack, stored, loaded = map(int, found.groups())
    return Resources(int(registers[1]), stored + loaded, stack, compiled.shared_bytes)


def problems(compiled: Compiled, taken: Resources) -> list[str]:
    """Say what is wrong with a kernel whatever the table holds."""
    found = []
    name = f"{compiled.name} on {compiled.chip.name}"
    text = compiled.stages["amdgcn" if compiled.chip.backend == "hip" else "ptx"]
    atomic = _ATOMIC.search(text)
    if atomic:
        found.append(f"{name}: {atomic[0]}; expected no atomics")
    if taken.spill_bytes:
        found.append(f"{name}: {taken.spill_bytes} bytes of registers spilled; expected none")
    # The assembler may reserve a frame that no instruction touches.
    if taken.stack_bytes and (compiled.chip.backend == "hip" or touches_local_memory(compiled)):
        found.append(f"{name}: {taken.stack_bytes} bytes of local memory; expected none")
    if taken.shared_bytes > compiled.chip.shared_bytes:
        found.append(
            f"{name}: {taken.shared_bytes} bytes of shared memory; the chip has"
            f" {compiled.chip.shared_bytes}"
        )
    return found


def regressions(rows: Iterable[Row], table: Iterable[Row]) -> list[str]:
    """Say which rows take more than the table's line of the same name, or have none."""
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
                    f" if that is meant, {WRITE} takes it over"
                )
    return found


WRITE = "`python -m tests.kernels.compiled resources --write`"


def read_table(path: Path = TABLE) -> list[Row]:
    """Read the committed table; empty where there is none."""
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
    """Put rows in the place of those of the same case and Triton; all other lines stay."""
    rows = list(rows)
    done = {(row.case, row.triton) for row in rows}
    kept = [line for line in read_table(path) if (line.case, line.triton) not in done]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in sorted([*kept, *rows], key=lambda row: row.key):
            writer.writerow([getattr(row, column) for column in COLUMNS])


def _key(compiled: Compiled) -> bytes:
    return compiled.chip.name.encode() + compiled.stages["cubin"] + compiled.stages["ptx"].encode()


def _assembler_log(compiled: Compiled) -> str:
    """Assemble once more as Triton does, this time listening to the assembler."""
    architecture = compiled.chip.architecture
    assert isinstance(architecture, int)
    with tempfile.TemporaryDirectory() as folder:
        # The binary holds the source's length of name, not the name.
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
        # The log speaks of Triton's own binary only if that one says the same of itself.
        binary.write_bytes(compiled.stages["cubin"])
        said = subprocess.run(
            [tool("cuobjdump"), "-res-usage", str(binary)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", said)
    logged = re.search(r"(\d+) bytes stack frame[\s\S]*?Used (\d+) registers", done.stderr)
    if usage is None or logged is None or usage.groups() != logged.groups()[::-1]:
        raise RuntimeError(
            f"{compiled.name} on {compiled.chip.name}: ptxas and Triton's binary disagree; expected"
            f" the options of Triton's make_cubin: {done.stderr}{said}"
        )
    return done.stderr


def _of_amd(compiled: Compiled) -> Resources:
    text = compiled.stages["amdgcn"]

    def value(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{compiled.name}: no .{name} in the assembly")
        return int(found[1])

    # Counted as registers of four bytes. Scalar registers are spilled into the lanes of vector
    # registers, not into memory: what of them does not fit shows among these.
    spilled = 4 * value("vgpr_spill_count")
    return Resources(
        value("vgpr_count"), spilled, value("private_segment_fixed_size"), compiled.shared_bytes
    )
