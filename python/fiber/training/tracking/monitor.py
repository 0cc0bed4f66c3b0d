"""What a run reports besides its losses: callbacks, time of steps, goodput, FLOP utilization."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fiber.training.config.run import RunConfig
from fiber.training.distributed.collectives import mean_over_ranks
from fiber.training.distributed.processes import Processes
from fiber.training.plan.gpus import peak_flops
from fiber.training.plan.step_cost import StepFlops
from fiber.training.tracking.callback import Callback, Callbacks, RunContext
from fiber.training.tracking.goodput import Attempt, Goodput
from fiber.training.tracking.step_time import PARTS, STEP_PARTS, StepClock


class RunMonitor:
    """Callbacks and performance of one run.

    `started` is the time in seconds since the epoch at which the monitor was created, which should
    be the beginning of the run.

    Raises:
        TypeError: if a callback is not an instance of `Callback`.
    """

    def __init__(self, processes: Processes, callbacks: Sequence[Callback] = ()) -> None:
        self.started = time.time()
        self.callbacks = Callbacks(callbacks, is_first=processes.is_first)
        self.clock = StepClock(processes.device)
        self._processes = processes
        self._goodput: Goodput | None = None
        self._flops: StepFlops | None = None
        self._peak: float | None = None
        self._done: float | None = 0.0
        self._last_step = 0

    def begin(self, config: RunConfig, attempt: Attempt | None) -> None:
        """Set the configuration, and on rank 0 the attempt of the run."""
        self._goodput = Goodput(attempt) if attempt is not None else None
        self._peak = peak_flops(self._processes.device, config.train.precision)
        if self._peak is not None:
            self._flops = StepFlops(config)
            # It takes seconds, which are not part of a step.
            self._flops.count_tasks()

    @contextmanager
    def running(self, run: RunContext) -> Iterator[None]:
        """Call the callbacks' `on_run_start` and `on_run_end`; the clock starts in between."""
        with self.callbacks.running(run):
            self.clock.reset()
            self._last_step = run.first_step
            yield

    def count(self, task: str, batch: Any) -> None:
        """Count the FLOPs of a micro-batch's forward and backward pass."""
        if self._flops is not None and self._done is not None:
            flops = self._flops.of_batch(task, batch)
            self._done = None if flops is None else self._done + flops

    def performance(self, step: int, images_per_second: float) -> dict[str, Any]:
        """Return the field "performance" of a line of metrics; all ranks must call this.

        Args:
            step: number of finished steps.
            images_per_second: images of all ranks per second.
        """
        steps, self._last_step = step - self._last_step, step
        seconds = self.clock.close()
        local_seconds = torch.tensor([seconds[part] for part in PARTS], dtype=torch.float64)
        means = mean_over_ranks(local_seconds.to(self._processes.device), self._processes).tolist()
        mean = dict(zip(PARTS, means, strict=True))
        in_steps = sum(mean[part] for part in STEP_PARTS)
        fields: dict[str, Any] = {
            "step_seconds": {part: round(mean[part] / steps, 6) for part in PARTS},
            "images_per_second_per_rank": round(images_per_second / self._processes.world_size, 2),
        }
        if self._peak is not None and self._done is not None:
            utilization = self._done / max(in_steps, 1e-9) / self._peak
            fields["model_flops_utilization"] = round(utilization, 6)
        self._done = 0.0
        if self._goodput is not None:
            fields |= self._goodput.fields(in_steps)
        return fields
