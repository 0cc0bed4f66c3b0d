"""The thread that reads records ahead of the Rust threads, and finds others for bad ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from fiber import _core
from fiber.data.sampler import Wanted
from fiber.data.storage.file_pool import ChangedFileError

#: Other records that are tried in the place of a bad one before the loader gives up.
ATTEMPTS = 10

#: (key, status, reason) of a bad sample.
Bad = tuple[str, str, str]


@dataclass
class Feeder:
    """Hands the records of batch after batch to a session, at most `prefetch` batches ahead."""

    session: _core.Session
    #: What each batch holds.
    batches: Iterable[list[Wanted]]
    #: Gives the plain parts of a record.
    plain: Callable[[Wanted], tuple[Any, ...]]
    #: Gives what to take instead of a sample, by attempt (from 0).
    replacement: Callable[[Wanted, int], Wanted]
    prefetch: int
    on_error: str
    #: What the record set raised, but for faults of the data that are left out.
    error: BaseException | None = None
    #: Samples that the record set could not give.
    skipped: deque[Bad] = field(default_factory=deque)

    def __post_init__(self) -> None:
        # Not a semaphore: Ctrl-C in the middle of its release would leave its lock held.
        self._slots = SimpleQueue[None]()
        for _ in range(self.prefetch):
            self._slots.put(None)
        self._stopped = False
        #: For each batch under way, what stands at each of its places, and how many other records
        #: were tried for those that needed one.
        self._under_way: deque[tuple[list[Wanted], dict[int, int]]] = deque()
        # It waits in Python only, so that the interpreter can end while it waits.
        self._thread = threading.Thread(target=self._feed, name="fiber-feeder", daemon=True)

    def start(self) -> None:
        """Begin."""
        try:
            self._thread.start()
        except RuntimeError as error:
            # Ctrl-C between two steps of `threading` leaves it a lock that it does not hold.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise

    def stop(self) -> None:
        """Let everything go; a record set that is in the middle of something is not waited for."""
        self._stopped = True
        self._slots.put(None)
        self.session.close()
        # Where Ctrl-C came while it was being started, it is not alive yet, and ends by itself.
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def next(self) -> dict[str, Any] | None:
        """Wait for the next batch; None after the last one.

        Raises:
            ValueError: if no record that can be read was found in the place of a bad one.
        """
        bad: list[Bad] = []
        while isinstance(found := self.session.next(), list):
            bad += [(key, status, reason) for _, key, status, reason in found]
            others = []
            wanted, attempts = self._under_way[0]
            for place, *_ in found:
                others.append((place, self._other(wanted[place], attempts, place, bad)))
            self.session.replace(others)
        if found is not None:
            self._under_way.popleft()
            self._slots.put(None)
        return found

    def _other(
        self, wanted: Wanted, attempts: dict[int, int], place: int, bad: list[Bad]
    ) -> tuple[Any, ...]:
        """Find another record for a place of a batch."""
        while (attempt := attempts.get(place, 0)) < ATTEMPTS:
            attempts[place] = attempt + 1
            other = self.replacement(wanted, attempt)
            try:
                return self.plain(other)
            except (OSError, ValueError) as error:
                fault = _fault(other, error)
                self.skipped.append(fault)
                bad.append(fault)
        key, _, reason = bad[-1]
        raise ValueError(
            f"none of {ATTEMPTS} other records can be read in the place of record {wanted.number};"
            f" the last one: record {key!r}: {reason}"
        )

    def _feed(self) -> None:
        try:
            for batch in self.batches:
                self._slots.get()
                if self._stopped:
                    return
                taken, records, attempts = [], [], dict[int, int]()
                for place, wanted in enumerate(batch):
                    plain = self._plain(wanted, attempts, place)
                    if plain is not None:
                        # Without the record of a stream, whose memory is Rust's business now.
                        taken.append(wanted._replace(record=None))
                        records.append(plain)
                self._under_way.append((taken, attempts))
                self.session.submit(records)
        except BaseException as error:
            self.error = error
        finally:
            self.session.finish()

    def _plain(
        self, wanted: Wanted, attempts: dict[int, int], place: int
    ) -> tuple[Any, ...] | None:
        """Ask for a record; faults of the data are treated as the loader is told to."""
        try:
            return self.plain(wanted)
        except (OSError, ValueError) as error:
            if self.on_error == "raise":
                raise
            fault = _fault(wanted, error)
            self.skipped.append(fault)
            if self.on_error == "skip":
                return None
            return self._other(wanted, attempts, place, [fault])


def _fault(wanted: Wanted, error: OSError | ValueError) -> Bad:
    """Say what became of a record that the record set could not give; its key is not known."""
    status = "invalid"
    if isinstance(error, _core.DecodeError | ChangedFileError):
        status = error.status
    # An error without a number is no word of the system: Pillow says so of pictures that it cannot
    # decode.
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno):
        status = "missing"
    return (f"#{wanted.number}", status, f"{type(error).__name__}: {error}")
