"""Counters of the server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

#: Upper bounds of the buckets of batch sizes, and of seconds.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Requests, time, batches and the queue of a server, and memory and time of its process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "fiber_requests",
            "Requests by method of the model and HTTP status; 499 is a client that hung up",
            ["method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fiber_request_seconds",
            "Seconds from the start of a request to its reply",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "fiber_batch_size",
            "Requests computed together",
            ["method"],
            buckets=_SIZES,
            registry=self.registry,
        )
        self._open = Gauge(
            "fiber_open_requests",
            "Requests that are received, wait or are computed",
            registry=self.registry,
        )

    def watch_open(self, count: Callable[[], float]) -> None:
        """Set the function that counts the open requests."""
        self._open.set_function(count)

    def start_batch(self, method: str, size: int) -> None:
        """Count a batch."""
        self._batches.labels(method).observe(size)

    def end_request(self, method: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(method, str(status)).inc()
        self._seconds.labels(method).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)
