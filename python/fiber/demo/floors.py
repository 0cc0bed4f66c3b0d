"""Floors of the demo's metrics: minimum values for a run to pass.

A floor is the larger of two values: the run's best blind baseline, and the worst of three or more
seeds minus two standard deviations (of at least `LEAST_DEVIATION`). A metric has no floor if its
worst seed does not beat the blind baseline ("not learned"), or if a seed reaches the floor with
permuted images ("not from the image"), since a model may read the text better than the blind
baseline does. A model that ignores the images therefore falls below every floor.

Results depend on rounding, which differs between processors, so the same seed on a different
processor counts as a separate run. `python -m fiber.demo.floors` writes `floors.json` from finished
runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

FLOORS_FILE = Path(__file__).with_name("floors.json")

#: Least standard deviation of a metric. A few seeds may agree by chance, although a rate of .6 of
#: 150 records has a sampling error of .04.
LEAST_DEVIATION = 0.03

#: Verdict for a metric whose floor is also reached with permuted images.
TEXT_ALONE = "not from the image"
#: Verdict for a metric without recorded seeds.
UNRECORDED = "no seeds recorded"

_PAIRS, _QUESTIONS = ("retrieval", "matching"), ("vqa",)
_BOXES = ("phrases", "referring", "detection")

#: Groups of metrics, by kind of data and mode. At least one metric of each group must have a floor.
#: A demo of a few minutes does not learn hundreds of nouns from captions, so stamps require boxes
#: only.
REQUIRED = {
    ("scenes", "default"): (_PAIRS, _QUESTIONS, _BOXES),
    ("scenes", "fast"): (_PAIRS, _BOXES),
    ("stamps", "default"): (_BOXES,),
    ("stamps", "fast"): (_BOXES,),
}


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric on one split, with its baselines and its floor."""

    #: Task and metric, as in "vqa/accuracy"; `REQUIRED` lists tasks.
    metric: str
    #: Display name.
    name: str
    #: "val" or "novel".
    split: str
    model: float
    #: Score of random guessing; None where undefined.
    chance: float | None
    #: Best baseline without the image, estimated from the training split.
    blind: float | None
    #: Score of the model on permuted images.
    permuted: float | None = None
    floor: float | None = None
    #: "ok" or "FELL"; without a floor, "not learned", `TEXT_ALONE` or `UNRECORDED`.
    verdict: str = ""
    #: Number of records that were scored; for matching, of pairs.
    count: int = 0

    @property
    def key(self) -> str:
        """Key in `floors.json`."""
        return f"{self.metric}/{self.split}"


class Seeds(NamedTuple):
    """Values of a metric for three or more seeds."""

    values: Sequence[float]
    #: Values of the same models when evaluated on permuted images.
    permuted: Sequence[float] = ()


def floor_of(
    seed_values: Sequence[float], blind: float | None, permuted: Sequence[float] = ()
) -> float | None:
    """Compute a metric's floor from its values on three or more seeds.

    `permuted` contains the values on permuted images. Returns None if the metric was not learned,
    or if a permuted value reaches the floor.

    Raises:
        ValueError: if there are fewer than three values.
    """
    if len(seed_values) < 3:
        raise ValueError(
            f"a floor requires values for at least three seeds, got {len(seed_values)}"
        )
    worst = min(seed_values)
    if blind is not None and worst <= blind:
        return None
    floor = worst - 2 * max(statistics.stdev(seed_values), LEAST_DEVIATION)
    if blind is not None:
        floor = max(floor, blind)
    return None if any(value >= floor for value in permuted) else floor


def judge(rows: Sequence[MetricRow], recorded: Mapping[str, Seeds]) -> list[MetricRow]:
    """Return the rows with floors and verdicts. `recorded` maps `MetricRow.key` to seeds."""
    judged = []
    for row in rows:
        seeds = recorded.get(row.key)
        floor = floor_of(seeds.values, row.blind, seeds.permuted) if seeds else None
        if floor is not None:
            verdict = "ok" if row.model >= floor else "FELL"
        elif seeds is None:
            verdict = UNRECORDED
        elif floor_of(seeds.values, row.blind) is not None:
            verdict = TEXT_ALONE
        else:
            verdict = "not learned"
        judged.append(replace(row, floor=floor, verdict=verdict))
    return judged


def failures(rows: Sequence[MetricRow], data: str, mode: str) -> list[str]:
    """List reasons for failure: metrics below their floor, and groups without any floor."""
    problems = [
        f"{row.name} on {row.split} fell below its floor: {row.model:.3f} < {row.floor:.3f}"
        for row in rows
        if row.verdict == "FELL" and row.floor is not None
    ]
    if rows and all(row.verdict == UNRECORDED for row in rows):
        return ["no seeds are recorded for this kind of demo, so its metrics have no floors"]
    for group in REQUIRED[data, mode]:
        if not any(row.floor is not None and row.metric.split("/")[0] in group for row in rows):
            problems.append(f"no metric of {' or '.join(group)} has a floor: nothing was learned")
    return problems


def permuted_survivors(rows: Sequence[MetricRow]) -> list[str]:
    """List metrics that reach their floor with permuted images."""
    return [
        f"{row.name} on {row.split} reaches its floor with permuted images:"
        f" {row.permuted:.3f} >= {row.floor:.3f}"
        for row in rows
        if row.floor is not None and row.permuted is not None and row.permuted >= row.floor
    ]


def load_floors(data: str, mode: str) -> dict[str, Seeds]:
    """Read the recorded seeds for a kind of data ("scenes" or "stamps") and a mode."""
    if not FLOORS_FILE.is_file():
        return {}
    entry = json.loads(FLOORS_FILE.read_text()).get(f"{data}/{mode}", {})
    permuted = entry.get("permuted", {})
    return {
        key: Seeds(values=values, permuted=permuted.get(key, ()))
        for key, values in entry.get("values", {}).items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `floors.json` from the `rows.json` of finished demo runs with at least three seeds."""
    parser = argparse.ArgumentParser(prog="python -m fiber.demo.floors", description=main.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="demo folders, one per seed")
    parser.add_argument(
        "--add",
        action="store_true",
        help="add to the recorded values instead of replacing them"
        " (for runs of the same plan on a different machine)",
    )
    options = parser.parse_args(arguments)
    runs = [json.loads((run / "rows.json").read_text()) for run in options.runs]
    seeds = {run["seed"] for run in runs}
    if len(seeds) < 3:
        print(f"expected runs with three or more seeds, got {len(seeds)}", file=sys.stderr)
        return 2
    names = {f"{run['data']}/{run['mode']}" for run in runs}
    if len(names) != 1:
        print(f"expected runs of the same kind, got {', '.join(sorted(names))}", file=sys.stderr)
        return 2
    recorded = json.loads(FLOORS_FILE.read_text()) if FLOORS_FILE.is_file() else {}
    name = names.pop()
    entry: dict[str, Any] = {"plan": runs[0]["plan"], "runs": [], "values": {}, "permuted": {}}
    if options.add:
        entry |= recorded.get(name, {})
    for folder, run in zip(options.runs, runs, strict=True):
        if run["plan"] != entry["plan"]:
            print(
                f"{folder}: expected the plan {entry['plan']}, got {run['plan']}", file=sys.stderr
            )
            return 2
        entry["runs"].append({key: run[key] for key in ("seed", "commit", "machine")})
        for row in run["rows"]:
            metric = f"{row['metric']}/{row['split']}"
            for values, value in (("values", row["model"]), ("permuted", row["permuted"])):
                if value is not None:
                    entry[values].setdefault(metric, []).append(round(value, 6))
    recorded[name] = entry
    FLOORS_FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    print(f"wrote {FLOORS_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
