"""Gates for compiled kernels: spills, shared memory, atomics, and regressions from the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from fiber.kernels.runtime.tiles import triton_minor
from tests.kernels.compiled.cases import Case
from tests.kernels.compiled.compile import Chip, compile_launch
from tests.kernels.compiled.resources import (
    Row,
    problems,
    read_table,
    regressions,
    resources,
)

#: Header of the lines that `check_resources` shows.
RESOURCES_HEAD = f"{'kernel':<26} {'case':<44} {'chip':<7} warps registers spilled shared"


def check_resources(
    cases: Iterable[Case], chips: Iterable[Chip], show: Callable[[str], None]
) -> tuple[list[str], list[Row]]:
    """Compile cases for chips and check their resources.

    Args:
        cases: what to compile.
        chips: chips to compile for; a case may skip some.
        show: called with each line of the report.

    Returns:
        Failed gates, and the rows of the table.
    """
    failures, rows = [], []
    chips = list(chips)
    for case in cases:
        for chip in case.chips(chips):
            names: Counter[str] = Counter()
            for launch in case.launches(chip):
                compiled = compile_launch(launch, chip)
                taken = resources(compiled)
                names[compiled.name] += 1
                number = names[compiled.name]
                name = compiled.name if number == 1 else f"{compiled.name} {number}"
                row = Row(
                    name,
                    case.name,
                    chip.name,
                    triton_minor(),
                    launch.num_warps,
                    taken.registers,
                    taken.shared_bytes,
                )
                rows.append(row)
                failures += [f"{case.name}: {each}" for each in problems(compiled, taken)]
                show(
                    f"{name:<26} {case.name:<44} {chip.name:<7} {launch.num_warps:>5}"
                    f" {taken.registers:>9} {taken.spill_bytes:>7} {taken.shared_bytes:>6}"
                )
    failures += regressions(rows, read_table())
    return failures, rows
