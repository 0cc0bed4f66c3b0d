"""Queue of requests, and the thread that computes them in batches."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fiber.data import load_image
from fiber.env import usable_cores
from fiber.serve.errors import RequestError, as_request_error, one_line
from fiber.serve.metrics import Metrics
from fiber.serve.requests import Asked, Request

#: Maximum number of pixels of the images of a batch, unless a single request has more.
PIXELS_AT_ONCE = 64_000_000

log = logging.getLogger("fiber")


@dataclass(frozen=True, eq=False)
class QueuedRequest:
    """A request in the queue."""

    request: Request
    #: Requests with the same key may share a batch; one with None is computed alone.
    key: str | None
    names: Sequence[str | None]
    #: Encoded images.
    images: Sequence[bytes]
    #: Total number of pixels of the images.
    pixels: int
    #: Set to the JSON value of the result; cancelled if the client no longer waits for it.
    result: asyncio.Future[Any]


class Batcher:
    """Compute requests one batch at a time, first come, first served.

    The first request takes with it those behind it that have the same `batch_key`, so batches form
    while another one is computed, and a request never waits for company. If a batch fails, each of
    its requests is computed alone, so that only those at fault fail.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        limits: limits of decoding an image; see `fiber.data.load_image`.
        max_batch: maximum number of requests of a batch.
        metrics: counters of batches.
    """

    def __init__(
        self, model: Any, name: str, limits: dict[str, Any], max_batch: int, metrics: Metrics
    ) -> None:
        self.model, self.name, self.max_batch, self.metrics = model, name, max_batch, metrics
        self._limits = limits
        self._queue: deque[QueuedRequest] = deque()
        self._filled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fiber-model")
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="fiber-decode")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to compute requests, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the present batch, and cancel what is in the queue."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for job in self._queue:
            job.result.cancel()
        self._thread.shutdown()
        self._decoders.shutdown()

    @property
    def is_running(self) -> bool:
        """Whether requests are computed."""
        return self._task is not None and not self._task.done()

    def submit(self, job: QueuedRequest) -> None:
        """Add a request to the end of the queue."""
        self._queue.append(job)
        self._filled.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled.clear()
                continue
            self.metrics.start_batch(batch[0].request.method, len(batch))
            results = await loop.run_in_executor(self._thread, self._compute, batch)
            for job, result in zip(batch, results, strict=True):
                # A client may have left, or its time may have ended, in the meantime.
                if job.result.done():
                    continue
                if isinstance(result, Exception):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)

    def _take(self) -> list[QueuedRequest]:
        """Take the first request whose client waits, and those that may share its batch."""
        batch: list[QueuedRequest] = []
        others: deque[QueuedRequest] = deque()
        pixels = 0
        for job in self._queue:
            if job.result.done():
                continue
            if not batch:
                batch, pixels = [job], job.pixels
                continue
            fits = len(batch) < self.max_batch and pixels + job.pixels <= PIXELS_AT_ONCE
            if fits and job.key is not None and job.key == batch[0].key:
                batch.append(job)
                pixels += job.pixels
            else:
                others.append(job)
        self._queue = others
        return batch

    def _compute(self, jobs: Sequence[QueuedRequest]) -> list[Any]:
        """Return the result of each request, or the exception that it ends with."""
        results: dict[QueuedRequest, Any] = {}
        asked: dict[QueuedRequest, Asked] = {}
        decoded = self._decoders.map(self._decode, jobs)
        for job, images in zip(jobs, decoded, strict=True):
            if isinstance(images, Exception):
                results[job] = images
            else:
                asked[job] = Asked(job.request, job.names, images)
        with warnings.catch_warnings(record=True) as caught:
            # "always" keeps no record of the texts of warnings.
            warnings.simplefilter("always")
            # Of other threads.
            warnings.simplefilter("ignore", ResourceWarning)
            groups = [list(asked)] if asked else []
            while groups:
                group = groups.pop()
                found = self._compute_together([asked[job] for job in group])
                if not isinstance(found, Exception):
                    results.update(zip(group, found, strict=True))
                elif len(group) == 1:
                    results[group[0]] = found
                else:
                    groups += [[job] for job in group]
        for each in caught:
            log.warning("%s: %s", jobs[0].request.method, one_line(each.message))
        return [results[job] for job in jobs]

    def _compute_together(self, asked: Sequence[Asked]) -> list[Any] | Exception:
        try:
            results = asked[0].request.compute(self.model, asked)
            return [
                each.request.as_json(result, each.names, each.images, self.name)
                for each, result in zip(asked, results, strict=True)
            ]
        # Whatever happens to a request, the server goes on.
        except Exception as error:
            return self._for_client(error)

    def _decode(self, job: QueuedRequest) -> list[np.ndarray] | Exception:
        try:
            return [load_image(data, keep_alpha=True, **self._limits) for data in job.images]
        except Exception as error:
            return self._for_client(error)

    def _for_client(self, error: Exception) -> RequestError:
        """Return the error that the client gets; log one that is a fault of the server."""
        if (known := as_request_error(error)) is not None:
            return known
        log.error("request failed", exc_info=error)
        return RequestError(500, "internal error; the log of the server has it")
