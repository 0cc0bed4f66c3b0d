"""GPU timer that excludes launch overhead."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Bytes written before each measurement to flush the L2 cache (at most 60 MB on training GPUs).
FLUSHED_BYTES = 256 * 2**20
#: Initial and maximum number of clock cycles that the GPU waits while work is queued.
FIRST_WAIT, LONGEST_WAIT = 1_000_000, 64_000_000


class GpuTimer:
    """Times calls on a device's current stream.

    The GPU waits until all work is queued, so gaps between launches are not measured. They depend
    on the host, and CUDA graphs have none. If queuing takes longer than `LONGEST_WAIT`, the gaps
    are measured as well.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._scratch = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
        self._cycles = FIRST_WAIT

    def __call__(self, run: Callable[[], object]) -> float:
        """Time one call to `run`, which launches GPU work asynchronously; return milliseconds."""
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
