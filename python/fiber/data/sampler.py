"""Which records each batch of a rank holds: of collections, which can be counted, and of streams.

Both share the samples out alike: step k of W ranks with batches of B covers the positions
[k * B * W, (k + 1) * B * W), and rank r takes the r-th slice of B; what is left at the end of an
epoch is shared out evenly, so that a rank may have a batch less (`drop_last` leaves it out).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from fiber import _core
from fiber.data.fingerprint import Fingerprint, fingerprint_of
from fiber.data.record import Record, RecordSet, record_in_epoch


class Wanted(NamedTuple):
    """One sample of a batch."""

    epoch: int
    #: Its place in the collection, or in the stream's epoch, from 0.
    number: int
    #: The record itself where it is a stream's; a collection is asked for it.
    record: Record | None = None


class Step(NamedTuple):
    """A batch of this rank, and where all ranks together are behind it."""

    wanted: list[Wanted]
    #: Samples of the epoch that are taken then.
    end: int
    #: Whether the epoch ends there.
    is_last: bool
    #: A stream's fingerprint of what was taken.
    passed: str = ""


@dataclass(frozen=True)
class Sharing:
    """How samples are shared out between ranks."""

    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    @property
    def step(self) -> int:
        """Samples of all ranks' next batches."""
        return self.batch_size * self.world_size

    def share(self, count: int) -> range:
        """Places among `count` samples that are this rank's, as even as can be."""
        rank, ranks = self.rank, self.world_size
        return range(rank * count // ranks, (rank + 1) * count // ranks)

    def count(self, samples: int, start: int = 0) -> int:
        """Batches of this rank in an epoch of so many samples, from `start` on."""
        steps, left = divmod(max(samples - start, 0), self.step)
        return steps + (not self.drop_last and len(self.share(left)) > 0)


class Passes(Protocol):
    """What a loader asks of its records."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def steps(self, epoch: int, start: int, passed: str) -> Iterator[Step]:
        """Give an epoch from a position on, where `passed` was its fingerprint."""
        ...

    def endless(self, start: int) -> Iterator[list[Wanted]]:
        """Give batches of epochs laid end to end, from a number of samples on.

        Raises:
            ValueError: if there are no records.
        """
        ...

    def whole(self, epoch: int) -> Iterator[list[Wanted]]:
        """Give this rank's consecutive share of an epoch."""
        ...

    def record(self, wanted: Wanted) -> Record:
        """Give a record."""
        ...

    def replacement(self, wanted: Wanted, attempt: int) -> Wanted:
        """Draw another sample to take in the place of a bad one."""
        ...

    def fingerprint(self, passed: str) -> str:
        """Give a hash of the data where all ranks are at a step's `passed`."""
        ...

    def check(self, sample: int, fingerprint: str) -> None:
        """Refuse a position that cannot be one of these records.

        Raises:
            ValueError: naming it and what these have.
        """
        ...


class CollectionPasses:
    """Passes over records that can be counted and read in any order."""

    def __init__(self, records: RecordSet, sharing: Sharing, *, shuffle: bool, seed: int) -> None:
        self._records, self._sharing = records, sharing
        self._shuffle, self._seed = shuffle, seed
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return self._sharing.count(len(self._records))

    def steps(self, epoch: int, start: int, passed: str) -> Iterator[Step]:
        """See `Passes`."""
        count, sharing, order = len(self._records), self._sharing, self._order(epoch)
        for number in range(sharing.count(count, start)):
            first = start + number * sharing.step
            size = min(sharing.step, count - first)
            places = [int(order[first + place]) for place in sharing.share(size)]
            end = first + size
            yield Step([Wanted(epoch, index) for index in places], end, end == count)

    def endless(self, start: int) -> Iterator[list[Wanted]]:
        """See `Passes`."""
        if not len(self._records):
            raise ValueError("no records; expected 1 or more for an endless stream")
        return self._endless(start)

    def _endless(self, start: int) -> Iterator[list[Wanted]]:
        count, sharing = len(self._records), self._sharing
        position = start + sharing.rank * sharing.batch_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            batch = []
            for p in range(position, position + sharing.batch_size):
                if p // count != epoch:
                    epoch = p // count
                    order = self._order(epoch)
                batch.append(Wanted(epoch, int(order[p % count])))
            yield batch
            position += sharing.step

    def whole(self, epoch: int) -> Iterator[list[Wanted]]:
        """See `Passes`."""
        order, share = self._order(epoch), self._sharing.share(len(self._records))
        for start in range(share.start, share.stop, self._sharing.batch_size):
            stop = min(start + self._sharing.batch_size, share.stop)
            yield [Wanted(epoch, int(index)) for index in order[start:stop]]

    def record(self, wanted: Wanted) -> Record:
        """See `Passes`."""
        return record_in_epoch(self._records, wanted.epoch, wanted.number)

    def replacement(self, wanted: Wanted, attempt: int) -> Wanted:
        """See `Passes`."""
        epoch, index, _ = wanted
        other = _core.draw_below(len(self._records), self._seed, epoch, index, attempt)
        return Wanted(epoch, other)

    def fingerprint(self, passed: str) -> str:
        """See `Passes`: of every record, made when it is first asked for."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self._records)
        return self._fingerprint

    def check(self, sample: int, fingerprint: str) -> None:
        """See `Passes`."""
        if fingerprint != (own := self.fingerprint("")):
            raise _other_data(fingerprint, f"this loader's is {own!r}")
        if sample > len(self._records):
            raise ValueError(
                f"the state's sample is {sample}; expected 0 to {len(self._records)}, the records"
            )

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self._records)
        if not self._shuffle:
            return np.arange(count)
        return np.asarray(_core.permutation(count, self._seed, epoch))


class StreamPasses:
    """Passes over an iterable: each epoch iterates anew, on every rank over all of it."""

    def __init__(self, records: Iterable[Record], sharing: Sharing) -> None:
        self._records, self._sharing = records, sharing
        self._is_used_up = False

    def __len__(self) -> int:
        if not isinstance(self._records, Sized):
            kind = type(self._records).__name__
            raise TypeError(f"the records are an iterable of type {kind}, which has no len()")
        return self._sharing.count(len(self._records))

    def steps(self, epoch: int, start: int, passed: str) -> Iterator[Step]:
        """See `Passes`; what comes before `start` is iterated over and must be what it was."""
        records, taken_so_far = self._begin(epoch), Fingerprint()
        index = 0
        for record in islice(records, start):
            taken_so_far.add(record)
            index += 1
        if index < start:
            raise ValueError(
                f"the state's sample is {start}, and the records end after {index}; expected a"
                " state of the same data"
            )
        if start and passed != (own := taken_so_far.text()):
            raise _other_data(passed, f"the first {start} records give {own!r}")
        sharing, is_last = self._sharing, False
        while not is_last:
            # No record more: the next one may be long in coming. So a full step is never the last.
            taken = list(islice(records, sharing.step))
            is_last = len(taken) < sharing.step
            if is_last and sharing.drop_last:
                return
            for record in taken:
                taken_so_far.add(record)
            own = [
                Wanted(epoch, index + place, taken[place]) for place in sharing.share(len(taken))
            ]
            index += len(taken)
            if own:
                passed = taken_so_far.text()
                yield Step(own, index, is_last, passed)

    def endless(self, start: int) -> Iterator[list[Wanted]]:
        """See `Passes`; what comes before `start` is iterated over."""
        sharing = self._sharing
        samples = islice(self._samples(), start, None)
        while True:
            taken = list(islice(samples, sharing.step))
            yield [taken[place] for place in sharing.share(sharing.step)]

    def whole(self, epoch: int) -> Iterator[list[Wanted]]:
        """See `Passes`; of one rank only, since what is not counted has no consecutive shares."""
        if self._sharing.world_size > 1:
            raise TypeError(
                "epoch() of several ranks gives consecutive shares, for which records must be"
                " counted; the records are an iterable: iterate over the loader, or give it a list"
            )
        return (step.wanted for step in self.steps(epoch, 0, ""))

    def record(self, wanted: Wanted) -> Record:
        """See `Passes`: a stream's samples bring theirs."""
        if wanted.record is None:
            raise _in_any_order(f"record {wanted.number}")
        return wanted.record

    def replacement(self, wanted: Wanted, attempt: int) -> Wanted:
        """See `Passes`; refused, as the loader refuses "resample" of a stream before."""
        raise _in_any_order(f"another record than {wanted.number}")

    def fingerprint(self, passed: str) -> str:
        """See `Passes`: of the epoch's records so far."""
        return passed

    def check(self, sample: int, fingerprint: str) -> None:
        """See `Passes`: only a pass can tell."""

    def _samples(self) -> Iterator[Wanted]:
        """Give epochs laid end to end."""
        epoch = 0
        while True:
            index = -1
            for index, record in enumerate(self._begin(epoch)):
                yield Wanted(epoch, index, record)
            if index < 0:
                raise ValueError(f"epoch {epoch} has no records; expected 1 or more")
            epoch += 1

    def _begin(self, epoch: int) -> Iterator[Record]:
        """Begin to iterate; an iterable that knows of epochs is told which one."""
        if callable(set_epoch := getattr(self._records, "set_epoch", None)):
            set_epoch(epoch)
        iterator = iter(self._records)
        if iterator is self._records:
            if self._is_used_up:
                raise ValueError(
                    f"the records are of type {type(self._records).__name__}, which can be iterated"
                    " over once; expected an iterable whose __iter__ begins anew for a second pass"
                )
            self._is_used_up = True
        return map(_checked, itertools.count(), iterator)


def _checked(index: int, record: object) -> Record:
    if not isinstance(record, Record):
        raise TypeError(
            f"record {index} is of type {type(record).__name__}; expected fiber.data.Record"
        )
    return record


def _in_any_order(what: str) -> TypeError:
    return TypeError(f"{what} is asked for, of records that come in an order of their own")


def _other_data(fingerprint: object, own: str) -> ValueError:
    return ValueError(
        f"the state's fingerprint is {fingerprint!r}, {own}; expected a state of the same data"
    )
