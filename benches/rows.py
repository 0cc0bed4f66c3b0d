"""Interleaved timing of benches, and CSV rows with the machine that they were measured on."""

import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from fiber import _core
from fiber.benchmarks.csv_rows import append_rows, p20_p80, spread_columns, today
from fiber.env import describe_machine

RESULTS = Path(__file__).with_name("results")


def refuse_debug_build() -> None:
    """Exit with an error if the extension is not a release build."""
    if _core.build_profile != "release":
        sys.exit(
            f"the extension is a {_core.build_profile} build; expected a release build"
            " (`maturin develop --release`)"
        )


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once per round, so that a change of the machine's speed affects all.

    Args:
        sides: by name, a function that returns one measurement.
        rounds: number of rounds, after one round of warmup.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            value = measure()
            if number:
                values[name].append(value)
    return values


def report(
    bench: str,
    unit: str,
    values: Mapping[str, list[float]],
    peer: str,
    results: Path | None = None,
) -> None:
    """Print median, 20th and 80th percentile and ratio to the peer; append them as rows.

    Args:
        bench: name of the CSV file in `benches/results`, without suffix.
        unit: of the values.
        values: by side; two or more each.
        peer: the side that the others are compared with.
        results: another directory for the CSV file.

    Raises:
        ValueError: if a side has fewer than two values, or the CSV file other columns.
    """
    short = [side for side, found in values.items() if len(found) < 2]
    if short:
        raise ValueError(f"{', '.join(short)}: expected two or more values of each side")
    machine = describe_machine()
    base = statistics.median(values[peer])
    rows = []
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}")
    for side, found in values.items():
        low, high = p20_p80(found)
        ratio = statistics.median(found) / base
        print(
            f"{side:32} {statistics.median(found):10.2f} {unit} ({low:.2f} to {high:.2f}),"
            f" {ratio:.3f} of {peer}"
        )
        row = {"date": today(), "side": side, "unit": unit, **spread_columns(found)}
        rows.append({**row, "peer": peer, "ratio_to_peer": f"{ratio:.4g}", **machine})
    file = (results or RESULTS) / f"{bench}.csv"
    append_rows(file, list(rows[0]), rows)
    print(f"rows: {file}")
