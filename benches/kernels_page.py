"""The section of the results page on attention on a CPU: every call, the means and their gates."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from bench_kernels import EAGER_CALL, EAGER_MEAN, SDPA_MEAN, SIDES
from page_parts import machines, table

#: A call is judged by itself where the eager formulation takes longer, in milliseconds.
JUDGED_ABOVE = 1.0


def section(rows: Sequence[dict[str, str]]) -> list[str]:
    """Write the newest rows of `bench_kernels.py`; nothing where there are none."""
    if not rows:
        return []
    last = max(row["date"] for row in rows)
    used = [row for row in rows if row["date"] == last]
    times: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for row in used:
        side, operation, what, call = row["side"].split(", ", 3)
        times[operation, call, what][side] = float(row["median"])
    lines = [
        [operation, call, what, *(f"{found[side]:.3g}" for side in SIDES), *ratios(found)]
        for (operation, call, what), found in times.items()
    ]
    return [
        "## Attention on a CPU\n\nEvery call of the base model in float32, each shape once: medians"
        " of interleaved rounds in one process, in milliseconds, and how many times ours the peers"
        " take. Peers: the published eager formulation, and one with"
        " `scaled_dot_product_attention` (`benches/plain_kernels.py`).\n",
        table(["means over the calls", "pass", "peer / ours", "gate"], _means(times)),
        _single_calls(times),
        table(["operation", "call", "pass", *SIDES, "eager / ours", "sdpa / ours"], lines),
        f"{machines(used)}.\n",
    ]


def ratios(found: dict[str, float]) -> list[str]:
    """How many times ours each peer takes."""
    return [f"{found[peer] / found['fiber']:.2f}" for peer in SIDES[1:]]


def _means(times: dict[tuple[str, str, str], dict[str, float]]) -> list[list[str]]:
    """Geometric means: all calls beside eager, each operation beside SDPA."""
    of: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (operation, _, what), found in times.items():
        of["all beside eager", what].append(found["eager"] / found["fiber"])
        of[f"{operation} beside SDPA", what].append(found["sdpa"] / found["fiber"])
    gates = {"all beside eager": EAGER_MEAN}
    gates |= {f"{operation} beside SDPA": least for operation, least in SDPA_MEAN.items()}
    lines = []
    for (name, what), values in of.items():
        mean = math.exp(statistics.fmean(math.log(value) for value in values))
        verdict = "met" if mean >= gates[name] else "missed"
        lines.append([name, what, f"{mean:.2f}", f"{gates[name]}: {verdict}"])
    return lines


def _single_calls(times: dict[tuple[str, str, str], dict[str, float]]) -> str:
    """Say which single calls are slower than the eager formulation."""
    judged = {
        name: found["eager"] / found["fiber"]
        for name, found in times.items()
        if found["eager"] > JUDGED_ABOVE
    }
    slow = [
        f"{', '.join(name)} ({ratio:.2f})" for name, ratio in judged.items() if ratio < EAGER_CALL
    ]
    said = (
        f"Of the {len(judged)} calls where the eager formulation takes more than a millisecond each"
        f" should take at most 1 / {EAGER_CALL} of its time"
    )
    if not slow:
        return f"{said}; all do (the least ratio is {min(judged.values()):.2f}).\n"
    return f"{said}; missed: {'; '.join(slow)}.\n"
