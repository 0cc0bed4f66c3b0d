"""The tables of `python -m tests.kernels.compiled`, each with what is wrong in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from fiber.kernels.runtime.launch import Launch
from fiber.kernels.runtime.tiles import triton_minor
from tests.kernels.compiled.block import FIRST_STAGE, count_all
from tests.kernels.compiled.cases import GATED, Case, planned
from tests.kernels.compiled.compile import CHIPS, Chip, compile_launch
from tests.kernels.compiled.instructions import forbidden, work
from tests.kernels.compiled.resources import (
    Row,
    problems,
    read_table,
    regressions,
    resources,
)

#: Warp instructions of one window and head that fit into the time its bytes take on an H100, and
#: the part of them that a pass may take: spec/kernels.md, section 3.4.
BUDGETS = {"forward": (11_400, 1.0), "backward": (20_000, 1.25)}
#: Bytes of our block at most, of those of the other formulations, forward.
BYTES = {"fused": 0.55, "eager": 0.22}


#: Above the lines of `resources_report`.
RESOURCES_HEAD = f"{'kernel':<26} {'case':<44} {'chip':<7} warps registers spilled shared"


@dataclass
class Report:
    """Lines to print and, in words, every gate that failed."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def resources_report(
    cases: Iterable[Case], chips: Iterable[Chip], show: Callable[[str], None]
) -> tuple[Report, list[Row]]:
    """Compile cases for chips; fails on spills, too much memory, and growth over the table.

    Args:
        cases: what to compile.
        chips: for which, where a case is for all of them.
        show: called with each line as soon as it is known.
    """
    report, rows = Report(), []
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
                report.failures += [f"{case.name}: {each}" for each in problems(compiled, taken)]
                show(
                    f"{name:<26} {case.name:<44} {chip.name:<7} {launch.num_warps:>5}"
                    f" {taken.registers:>9} {taken.spill_bytes:>7} {taken.shared_bytes:>6}"
                )
    report.failures += regressions(rows, read_table())
    return report, rows


def instructions_report() -> Report:
    """Count the gated call's warp instructions; fails above the budget or on forbidden ones."""
    report = Report()
    chip = CHIPS["sm_90"]
    items = GATED.batch * GATED.windows * GATED.heads
    report.lines.append(f"{'pass':<9} {'kernel':<26} warp instructions per window and head, sm_90")
    for name, launches in gated_passes(chip).items():
        total = 0.0
        for launch in launches:
            compiled = compile_launch(launch, chip)
            each = work(compiled).total / items
            total += each
            report.lines.append(f"{name:<9} {compiled.name:<26} {each:>10.1f}")
            report.failures += [f"{name}: {wrong}" for wrong in forbidden(compiled)]
        budget, part = BUDGETS[name]
        report.lines.append(f"{name:<9} {'all':<26} {total:>10.1f} = {total / budget:.2f} budgets")
        if total > part * budget:
            report.failures.append(
                f"{name}: {total:.0f} warp instructions per window and head,"
                f" {total / budget:.2f} of {budget}; expected at most {part}"
            )
    return report


def gated_passes(chip: Chip) -> dict[str, list[Launch]]:
    """Plan the gated call, bfloat16."""
    return {
        "forward": planned(lambda: GATED.forward(torch.bfloat16), chip),
        "backward": planned(lambda: GATED.backward(torch.bfloat16), chip),
    }


def bytes_report() -> Report:
    """Count the bytes of a whole shifted block; fails above the other formulations' parts."""
    report = Report()
    found = count_all(FIRST_STAGE, CHIPS["sm_90"])
    report.lines.append(
        f"{'block':<6} forward GB   (ops) backward GB    saved GB   bias read again GB"
    )
    for name, counts in found.items():
        again = " + ".join(f"{each / 1e9:.2f}" for each in counts.bias_again)
        report.lines.append(
            f"{name:<6} {counts.forward / 1e9:>10.3f} {counts.forward_operations:>7}"
            f" {counts.backward / 1e9:>11.3f} {counts.saved / 1e9:>11.3f}   {again}"
        )
    for name, part in BYTES.items():
        ratio = found["ours"].forward / found[name].forward
        report.lines.append(f"ours / {name}, forward: {ratio:.3f} (at most {part})")
        if ratio > part:
            report.failures.append(
                f"bytes: our block moves {ratio:.3f} of what {name} moves; expected {part} at most"
            )
    return report
