"""Split the wall time of training steps into data, compute, reduce, validation and checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")

#: Parts of a step. "data" waits for batches, "reduce" sums gradients over the ranks (as far as it
#: does not overlap with the backward pass), and "compute" is everything else.
PARTS = ("data", "compute", "reduce", "validation", "checkpoint")
#: Parts that make up the steps themselves.
STEP_PARTS = PARTS[:3]


class StepClock:
    """Measures how long each part takes between two lines of metrics.

    Kernels of a GPU run after the call that starts them. "reduce" is therefore measured by CUDA
    events; other parts are measured on the host, which in them waits for data, files or the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Start an interval now."""
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the time of the block as a part other than "compute"."""
        if part == "reduce" and self._is_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
            return
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def iterate(self, part: str, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """Yield items, and count the time that each takes to arrive as a part."""
        iterator = iter(items)
        while True:
            with self.measure(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def close(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, and start the next interval.

        The sum is the wall time. With CUDA, this waits for the kernels of the last reduction.
        """
        for start, end in self._events:
            end.synchronize()
            self._seconds["reduce"] += start.elapsed_time(end) / 1000
        now = time.perf_counter()
        seconds = self._seconds
        seconds["compute"] = max(0.0, now - self._began - sum(seconds.values()))
        self.reset()
        self._began = now
        return seconds
