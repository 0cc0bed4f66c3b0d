"""Milliseconds of work on a GPU, without the time that Python takes to ask for it."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Written before every measurement, so that nothing is found in the second cache (60 MB at most on
#: the GPUs that train).
FLUSHED_BYTES = 256 * 2**20
#: Clock cycles that the GPU waits while work is queued behind it, at first and at most.
FIRST_WAIT, LONGEST_WAIT = 1_000_000, 64_000_000


class GpuTimer:
    """Times what it is called with, on the current stream of one device.

    The GPU is kept waiting until all is queued, so that gaps in which it would wait for Python are
    not counted: they are not there in a CUDA graph, and differ from machine to machine. Work that
    takes longer to queue than `LONGEST_WAIT` is timed with its gaps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._scratch = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
        self._cycles = FIRST_WAIT

    def __call__(self, run: Callable[[], object]) -> float:
        """Run once; gives milliseconds.

        Args:
            run: queues work and waits for none of it.
        """
        with torch.cuda.device(self._device):
            while True:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._scratch.zero_()
                torch.cuda._sleep(self._cycles)
                begin.record()
                run()
                end.record()
                # The GPU got there before the last of it was queued.
                waited = begin.query()
                end.synchronize()
                if not waited or self._cycles >= LONGEST_WAIT:
                    return begin.elapsed_time(end)
                self._cycles *= 2
