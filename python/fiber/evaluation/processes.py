"""Evaluation on several processes: each computes some of the batches, and all get all results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def _only_own(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class EvalProcesses:
    """Processes that evaluate a model together, of which this is one.

    Batches are dealt out whole, in turn: process r of W computes batches r, r + W, and so on. A
    batch has the records that it has on one process, so results and metrics are equal bit for bit.
    Results must be picklable and on the CPU.
    """

    rank: int = 0
    world_size: int = 1
    #: Collective that returns the values of all processes, by rank. It waits for the slowest one.
    all_gather: Callable[[Any], list[Any]] = _only_own

    @property
    def own(self) -> slice:
        """Positions of this process's batches among all batches."""
        return slice(self.rank, None, self.world_size)

    def map(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
        """Return function(item) of each item. A process calls it for its own items only."""
        return list(self.in_order(function(item) for item in items[self.own]))

    def in_order(self, results: Iterable[ResultT]) -> Iterator[ResultT]:
        """Yield the results of all processes in the order of the batches.

        On one process, results are not kept. All processes must call this, also those without
        batches.
        """
        if self.world_size == 1:
            yield from results
            return
        found = self.all_gather(list(results))
        for number in range(sum(map(len, found))):
            yield found[number % self.world_size][number // self.world_size]


#: This process alone.
ONE_PROCESS = EvalProcesses()
