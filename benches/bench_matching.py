"""Match 100 queries with the 40 masks of an image, after each of ten layers.

Command: python benches/bench_matching.py
Peer: `scipy.optimize.linear_sum_assignment` on the same costs. Both start from float64 arrays in
memory, and must find the same pairs. Costs are those of random masks and classes; in a second case
they are small integers, so that many pairs cost the same.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from rows import interleave, refuse_debug_build, report
from scipy.optimize import linear_sum_assignment

from fiber import _core

QUERIES, MASKS, LAYERS = 100, 40, 10
CALLS = 50
PEER = "scipy"


def drawn(ties: bool) -> list[np.ndarray]:
    """Costs of all layers: 2 x class, 5 x BCE and 5 x dice of random values, or integers."""
    draws = np.random.default_rng(0)
    if ties:
        return [draws.integers(0, 20, (QUERIES, MASKS)).astype(np.float64) for _ in range(LAYERS)]
    size = (LAYERS, QUERIES, MASKS)
    costs = -2 * draws.random(size) ** 4 + 5 * draws.gamma(2, 0.4, size) + 5 * draws.random(size)
    return list(costs)


def milliseconds(match: Callable[[np.ndarray], object], layers: list[np.ndarray]) -> float:
    """Time of all layers, a mean over some calls."""
    began = time.perf_counter()
    for _ in range(CALLS):
        for costs in layers:
            match(costs)
    return 1e3 * (time.perf_counter() - began) / CALLS


def ours(costs: np.ndarray) -> np.ndarray:
    """Pairs as an array."""
    return np.asarray(_core.linear_sum_assignment(costs))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    refuse_debug_build()
    for name, ties in (("matching", False), ("matching_ties", True)):
        layers = drawn(ties)
        for costs in layers:
            if not np.array_equal(ours(costs), np.stack(linear_sum_assignment(costs))):
                raise SystemExit(f"{name}: the pairs differ from scipy's")
        sides = {
            "fiber": lambda layers=layers: milliseconds(ours, layers),
            PEER: lambda layers=layers: milliseconds(linear_sum_assignment, layers),
        }
        report(name, "ms", interleave(sides, options.rounds), peer=PEER)


if __name__ == "__main__":
    main()
