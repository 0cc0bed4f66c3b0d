"""Thread that reads records ahead of the Rust workers and replaces bad ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from fiber import _core
from fiber.data.sampler import SampleRef
from fiber.data.storage.file_pool import ChangedFileError
from fiber.messages import shown

#: Number of replacements to try for a bad sample before the loader fails.
ATTEMPTS = 10

#: (key, status, reason) of a bad sample.
BadSample = tuple[str, str, str]


@dataclass
class SubmittedBatch:
    """A batch that was submitted to the session."""

    #: Samples as requested.
    samples: list[SampleRef] = field(default_factory=list)
    #: Number of replacements tried, by position.
    attempts: dict[int, int] = field(default_factory=dict)
    #: Key and sample of each record that was read: the requested sample or its replacement.
    records: list[tuple[str, SampleRef]] = field(default_factory=list)

    def of_keys(self, keys: Iterable[str]) -> list[tuple[int, int]]:
        """Return (epoch, record index) of the samples that the session kept, by their keys.

        They are in the submitted order.
        """
        records = iter(self.records)
        return [
            next((each.epoch, each.record_index) for own, each in records if own == key)
            for key in keys
        ]


@dataclass
class Prefetcher:
    """Submit batches of records to a session, at most `prefetch` batches ahead."""

    session: _core.Session
    #: Samples of each batch, and the position of the first one in an endless stream.
    batches: Iterable[tuple[list[SampleRef], int | None]]
    #: Reads a record and converts it for Rust.
    read: Callable[[SampleRef], _core.LoaderRecord]
    #: Returns the replacement for a sample in a given attempt (from 0).
    replacement: Callable[[SampleRef, int], SampleRef]
    prefetch: int
    on_error: str
    #: Exception raised by the record set that stops the loader.
    error: BaseException | None = None
    #: Samples that the record set failed to return.
    skipped: deque[BadSample] = field(default_factory=deque)

    def __post_init__(self) -> None:
        # Not a semaphore: Ctrl-C while releasing it would leave its lock held.
        self._slots = SimpleQueue[None]()
        for _ in range(self.prefetch):
            self._slots.put(None)
        self._stopped = False
        self._in_flight: deque[SubmittedBatch] = deque()
        # The thread waits only in Python code, so the interpreter can exit meanwhile.
        self._thread = threading.Thread(target=self._run, name="fiber-prefetch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        try:
            self._thread.start()
        except RuntimeError as error:
            # Ctrl-C inside `Thread.start` makes it release a lock that it does not hold.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise

    def stop(self) -> None:
        """Stop the thread, without waiting for a busy record set."""
        self._stopped = True
        self._slots.put(None)
        self.session.close()
        # If Ctrl-C interrupted `start`, the thread is not alive and ends by itself.
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def next(self) -> dict[str, Any] | None:
        """Wait for the next batch; return None after the last one.

        Its "samples" are (epoch, record index) of each sample.

        Raises:
            ValueError: if no readable replacement for a bad record is found.
        """
        bad: list[BadSample] = []
        while isinstance(found := self.session.next(), list):
            bad += [(key, status, reason) for _, key, status, reason in found]
            batch = self._in_flight[0]
            replaced = []
            for position, *_ in found:
                requested, attempts = batch.samples[position], batch.attempts
                other, record = self._replace(requested, attempts, position, bad)
                batch.records[position] = (record.key, other)
                replaced.append((position, record))
            self.session.replace(replaced)
        if found is not None:
            found["samples"] = self._in_flight.popleft().of_keys(found["keys"])
            self._slots.put(None)
        return found

    def _replace(
        self, sample: SampleRef, attempts: dict[int, int], position: int, bad: list[BadSample]
    ) -> tuple[SampleRef, _core.LoaderRecord]:
        """Read a replacement for the sample at a given position in the batch."""
        while (attempt := attempts.get(position, 0)) < ATTEMPTS:
            attempts[position] = attempt + 1
            other = self.replacement(sample, attempt)
            try:
                return other, self.read(other)
            except (OSError, ValueError) as error:
                fault = _bad_sample(other, error)
                self.skipped.append(fault)
                bad.append(fault)
        key, _, reason = bad[-1]
        raise ValueError(
            f"none of {ATTEMPTS} replacements for record {sample.record_index} can be read;"
            f" the last one was record {shown(key)}: {reason}"
        )

    def _run(self) -> None:
        try:
            for batch, first_sample in self.batches:
                self._slots.get()
                if self._stopped:
                    return
                submitted, records = SubmittedBatch(), []
                for position, sample in enumerate(batch):
                    if (found := self._read(sample, submitted.attempts, position)) is not None:
                        other, record = found
                        # Drop the record of an iterable, whose memory Rust owns from here on.
                        submitted.samples.append(sample._replace(record=None))
                        submitted.records.append((record.key, other._replace(record=None)))
                        records.append(record)
                self._in_flight.append(submitted)
                self.session.submit(records, first_sample=first_sample)
        except BaseException as error:
            self.error = error
        finally:
            self.session.finish()

    def _read(
        self, sample: SampleRef, attempts: dict[int, int], position: int
    ) -> tuple[SampleRef, _core.LoaderRecord] | None:
        """Read a record, handling a bad record according to `on_error`."""
        try:
            return sample, self.read(sample)
        except (OSError, ValueError) as error:
            if self.on_error == "raise":
                raise
            fault = _bad_sample(sample, error)
            self.skipped.append(fault)
            if self.on_error == "skip":
                return None
            return self._replace(sample, attempts, position, [fault])


def _bad_sample(sample: SampleRef, error: OSError | ValueError) -> BadSample:
    """Describe a record that the record set failed to return and whose key is thus unknown."""
    status = "invalid"
    if isinstance(error, _core.DecodeError | ChangedFileError):
        status = error.status
    # An OSError without errno comes from Pillow (undecodable image), not from the OS.
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno):
        status = "missing"
    return (f"#{sample.record_index}", status, f"{type(error).__name__}: {error}")
