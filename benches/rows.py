"""What every bench shares: interleaved timing, and a row with what it was measured on."""

import csv
import datetime
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from fiber import _core
from fiber.env import describe_machine

RESULTS = Path(__file__).with_name("results")


def refuse_debug_build() -> None:
    """Stop, with the reason, if the extension was built without optimisation."""
    if _core.build_profile != "release":
        sys.exit(
            f"the extension is a {_core.build_profile} build, whose times mean nothing;"
            " build it with `maturin develop --release`"
        )


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once a round, so that a change of the machine's speed meets all of them.

    Args:
        sides: by name, what returns its own measurement.
        rounds: how many times; one more round before them is not counted.
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
        bench: name of the file in `benches/results`, without its ending.
        unit: of the values.
        values: by side; every side needs at least two.
        peer: the side that the others are compared with.
        results: another folder for that file.
    """
    machine = describe_machine()
    base = statistics.median(values[peer])
    rows = []
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}")
    for side, found in values.items():
        fifths = statistics.quantiles(found, n=5, method="inclusive")
        median = statistics.median(found)
        ratio = median / base
        print(
            f"{side:32} {median:10.2f} {unit} ({fifths[0]:.2f} to {fifths[-1]:.2f}),"
            f" {ratio:.3f} of {peer}"
        )
        rows.append(
            {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "side": side,
                "unit": unit,
                "median": f"{median:.4g}",
                "p20": f"{fifths[0]:.4g}",
                "p80": f"{fifths[-1]:.4g}",
                "rounds": len(found),
                "peer": peer,
                "ratio_to_peer": f"{ratio:.4g}",
                **machine,
            }
        )
    file = (results or RESULTS) / f"{bench}.csv"
    is_new = not file.exists()
    if not is_new:
        with file.open(newline="") as known:
            header = next(csv.reader(known))
        if header != list(rows[0]):
            sys.exit(f"{file} has the columns {header}; expected {list(rows[0])}")
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"rows: {file}")
