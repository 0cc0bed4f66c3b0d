"""The section of the results page on attention on a CPU: every call, the means and their gates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from bench_kernels import EAGER_CALL, JUDGED_ABOVE, SIDES, Medians, judged_calls, means
from page_parts import machines, table


def section(rows: Sequence[dict[str, str]]) -> list[str]:
    """Write the newest rows of `bench_kernels.py`, of each side the last; nothing without rows."""
    if not rows:
        return []
    last = max(row["date"] for row in rows)
    used = list({row["side"]: row for row in rows if row["date"] == last}.values())
    times: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for row in used:
        side, operation, what, call = row["side"].split(", ", 3)
        times[operation, what, call][side] = float(row["median"])
    lines = [
        [operation, call, what, *(f"{found[side]:.3g}" for side in SIDES), *ratios(found)]
        for (operation, what, call), found in times.items()
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


def _means(times: Medians) -> list[list[str]]:
    lines = []
    for mean in means(times):
        name = f"{mean.operation} beside {'SDPA' if mean.peer == 'sdpa' else mean.peer}"
        verdict = "met" if mean.value >= mean.least else "missed"
        lines.append([name, mean.what, f"{mean.value:.2f}", f"{mean.least}: {verdict}"])
    return lines


def _single_calls(times: Medians) -> str:
    """Say which single calls are slower than the eager formulation."""
    judged = judged_calls(times)
    slow = [
        f"{', '.join(name)} ({ratio:.2f})" for name, ratio in judged.items() if ratio < EAGER_CALL
    ]
    said = (
        f"Of the {len(judged)} calls where the eager formulation takes more than"
        f" {JUDGED_ABOVE:g} ms each should take at most 1 / {EAGER_CALL} of its time"
    )
    if not slow:
        return f"{said}; all do (the least ratio is {min(judged.values()):.2f}).\n"
    return f"{said}; missed: {'; '.join(slow)}.\n"
