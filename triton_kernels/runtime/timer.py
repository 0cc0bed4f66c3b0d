"""GPU timer that excludes launch overhead."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Bytes written before every measurement to flush the L2 cache (at most 60 MB on training GPUs).
FLUSHED_BYTES = 256 * 2**20
#: Clock cycles that the GPU waits while work is queued: initial and maximum value.
FIRST_WAIT, LONGEST_WAIT = 1_000_000, 64_000_000


class GpuTimer:
    """Times calls on the current stream of a device.

    The GPU waits until all work is queued, so that gaps between launches are not measured: they
    depend on the machine, and a CUDA graph has none. Work that takes longer to queue than
    `LONGEST_WAIT` is timed with its gaps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._scratch = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
        self._cycles = FIRST_WAIT

    def __call__(self, run: Callable[[], object]) -> float:
        """Call `run`, which queues work without waiting for it, and return milliseconds."""
        with torch.cuda.device(self._device):
            while True:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._scratch.zero_()
                torch.cuda._sleep(self._cycles)
                begin.record()
                run()
                end.record()
                started_early = begin.query()
                end.synchronize()
                if not started_early or self._cycles >= LONGEST_WAIT:
                    return begin.elapsed_time(end)
                self._cycles *= 2
