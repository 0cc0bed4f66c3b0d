"""Train every task with every strategy and setting; losses and gradient norms of one process.

    python -m tests.strategies --steps 10 --strategies replicate shard hybrid --cases plain ema

Every task has `--steps` steps. Prints a line for each run: the largest relative difference of a
loss and of a gradient norm over all steps, and the limits. The exit code is 1 if one is exceeded.

A run with the queue, whose loss depends on the slices of the ranks, is compared with "replicate" on
as many ranks. Limits of float32 runs are those of sums in another order. For bfloat16 runs, whose
weights hardly move, the root mean square of the differences from float32 is compared, which may be
twice that of one process in bfloat16. A mean of gradients in bfloat16 is rounded once on each rank
and once as a sum, by half a unit of 8 bits each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.losses.two_ranks import run_on_ranks
from tests.training.distributed.strategy_runs import CASES, RANKS, config_of, trained_as
from tests.training.micro_runs import make_data

STAGES = ("coarse", "fine", "meter", "masks")
#: Relative limits of losses and gradient norms in float32.
FLOAT32_LIMITS = (1e-6, 1e-5)

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """Comparison of one run with the same run on one process."""

    strategy: str
    stage: str
    case: str
    #: Relative differences of losses and of gradient norms.
    found: tuple[float, float]
    limits: tuple[float, float]

    @property
    def is_ok(self) -> bool:
        return all(one <= limit for one, limit in zip(self.found, self.limits, strict=True))

    def __str__(self) -> str:
        numbers = "  ".join(
            f"{name} {value:.1e} (limit {limit:.1e})"
            for name, value, limit in zip(("losses", "norms"), self.found, self.limits, strict=True)
        )
        verdict = "" if self.is_ok else "  FAILED"
        return f"{self.strategy:9} {self.stage:6} {self.case:22} {numbers}{verdict}"


@dataclass
class Runs:
    """Runs of one stage, each trained once."""

    folder: Path
    pictures: str
    stage: str
    steps: int
    _finished: dict[tuple[str, int, str], Lines] = field(default_factory=dict)

    def train(self, strategy: str, ranks: int, case: str) -> Lines:
        """Losses and gradient norms of a run."""
        key = strategy, ranks, case
        if key not in self._finished:
            place = self.folder / str(len(self._finished))
            place.mkdir(parents=True)
            arguments = (strategy, str(place / "run"), self.pictures, self.stage, case, self.steps)
            if ranks == 1:
                self._finished[key] = trained_as(*arguments)
            else:
                # The machine may have other work.
                found = run_on_ranks(ranks, trained_as, place, *arguments, longest=3600.0)
                self._finished[key] = found[0]
        return self._finished[key]


def compare(
    folder: Path,
    strategies: Sequence[str],
    cases: Sequence[str],
    stages: Sequence[str] = STAGES,
    steps_per_task: int | None = None,
) -> Iterator[Result]:
    """Train in `folder`, and compare; by default, each run has ten steps in all."""
    make_data(folder / "pictures")
    for case in cases:
        for stage in (each for each in CASES[case][0] if each in stages):
            steps = 10
            if steps_per_task is not None:
                # Tasks of a larger share have more.
                steps = steps_per_task * len(config_of(stage).tasks.rotation())
            place = folder / f"{stage}-{case}".replace(" ", "-")
            runs = Runs(place, str(folder / "pictures"), stage, steps)
            for strategy in strategies:
                count = RANKS[strategy]
                # The queue's loss depends on the slices of the ranks, as in the published code.
                whole = "plain" if case == "passes" else case
                one = runs.train("replicate", count if case == "queue" else 1, whole)
                many = runs.train(strategy, count, case)
                limits, found = FLOAT32_LIMITS, differences(one, many)
                if case == "bfloat16":
                    exact = runs.train("replicate", 1, "float32 at the same weights")
                    losses, norms = differences(exact, one, root_mean_square)
                    limits, found = (
                        (2 * losses, 2 * norms),
                        differences(exact, many, root_mean_square),
                    )
                elif case == "reduced in bfloat16":
                    limits = ((count + 1) * 2**-9,) * 2
                yield Result(strategy, stage, case, found, limits)


def root_mean_square(values: Sequence[float]) -> float:
    return (sum(value**2 for value in values) / len(values)) ** 0.5


def differences(
    ours: Lines, theirs: Lines, summary: Callable[[Sequence[float]], float] = max
) -> tuple[float, float]:
    """Return the relative differences of losses and of gradient norms, by default the largest."""
    losses, norms = [], []
    for one, other in zip(ours, theirs, strict=True):
        if one.keys() != other.keys():
            raise ValueError(f"other losses: {sorted(one)} and {sorted(other)}")
        for name, value in one.items():
            difference = abs(other[name] - value) / max(abs(value), 1e-6)
            (norms if name == "gradient_norm" else losses).append(difference)
    return summary(losses), summary(norms)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--strategies", nargs="+", choices=list(RANKS), default=list(RANKS))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        runs = compare(Path(name), options.strategies, options.cases, options.stages, options.steps)
        for result in runs:
            print(result, flush=True)
            failed += not result.is_ok
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
