"""Samplers, which choose the records of a rank's batches from map-style collections or iterables.

The docstring of `DataLoader.__iter__` describes how samples are split between ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import NamedTuple

import numpy as np

from fiber import _core
from fiber.data.fingerprint import Fingerprint, fingerprint_of
from fiber.data.loader_config import LoaderConfig
from fiber.data.record import Record, RecordSet, check_record, record_in_epoch
from fiber.data.storage.remote_pack import check_room, missing_bytes
from fiber.data.storage.shard_order import (
    ShardedRecords,
    ShardFile,
    ShardGroups,
    ShardOrder,
    read_ahead,
    shard_map_of,
)
from fiber.messages import shown


class SampleRef(NamedTuple):
    """One sample of a batch."""

    epoch: int
    #: Index in the collection, or position in the epoch of an iterable.
    record_index: int
    #: The record if it comes from an iterable; collections are indexed later.
    record: Record | None = None


class BatchIndices(NamedTuple):
    """A batch of this rank, and the global position after it."""

    samples: list[SampleRef]
    #: Number of samples of the epoch consumed so far by all ranks together.
    end: int
    #: True if the epoch ends here.
    is_last: bool
    #: Hash of the samples consumed so far, if they come from an iterable.
    fingerprint: str = ""


class RankSplit:
    """Base class of samplers that splits samples between ranks."""

    def __init__(self, config: LoaderConfig) -> None:
        self.drop_last = config.drop_last
        self.rank, self.world_size = config.rank, config.world_size
        #: Samples per step, for all ranks together.
        self.global_batch_size = config.batch_size
        if not config.split_batches:
            self.global_batch_size *= self.world_size
        #: Samples per step on this rank.
        self.batch_size = len(self.own(self.global_batch_size))

    def own(self, count: int) -> range:
        """Return this rank's positions among `count` samples, split as evenly as possible."""
        rank, ranks = self.rank, self.world_size
        return range(rank * count // ranks, (rank + 1) * count // ranks)

    def num_batches(self, samples: int, start: int = 0) -> int:
        """Return the number of this rank's batches in an epoch that starts at sample `start`."""
        steps, rest = divmod(max(samples - start, 0), self.global_batch_size)
        return steps + (not self.drop_last and len(self.own(rest)) > 0)


class IndexSampler(RankSplit):
    """Sampler for a map-style collection."""

    def __init__(self, records: RecordSet, config: LoaderConfig) -> None:
        super().__init__(config)
        self._records = records
        self._shuffle, self._seed = config.shuffle, config.seed
        self._fingerprint: str | None = None
        self._groups: ShardGroups | None = None
        self._shards: list[ShardFile] = []
        if config.order == "shards" or isinstance(records, ShardedRecords):
            self._use_shards(config.order)

    def _use_shards(self, order: str) -> None:
        """Prepare an order by shards; for any order, find shards that are downloaded."""
        try:
            shard_map = shard_map_of(self._records)
        except ValueError:
            if order == "shards":
                raise
            return
        self._shards, at_a_time = shard_map.shards, len(shard_map.shards)
        if order == "shards":
            self._groups = ShardGroups(shard_map)
            # A group, and the next one, which is read ahead.
            at_a_time = 2 * self._groups.most_shards
        if self._shuffle:
            check_room(self._shards, order, at_a_time)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self.num_batches(len(self._records))

    def batches(self, epoch: int, start: int, fingerprint: str) -> Iterator[BatchIndices]:
        """Yield an epoch's batches from sample `start`.

        `fingerprint` is that of the samples before `start`; only `StreamSampler` checks it.
        """
        count, order = len(self._records), self._order(epoch)
        for number in range(self.num_batches(count, start)):
            first = start + number * self.global_batch_size
            size = min(self.global_batch_size, count - first)
            samples = [SampleRef(epoch, int(order[first + at])) for at in self.own(size)]
            yield BatchIndices(samples, first + size, first + size == count)

    def stream(self, start: int) -> Iterator[list[SampleRef]]:
        """Yield an endless stream of batches from the concatenated epochs, from sample `start`.

        Raises:
            ValueError: if there are no records.
        """
        if not len(self._records):
            raise ValueError("no records; expected 1 or more for an endless stream")
        return self._stream(start)

    def _stream(self, start: int) -> Iterator[list[SampleRef]]:
        count, epoch = len(self._records), start // len(self._records)
        order = self._order(epoch)
        own = self.own(self.global_batch_size)
        for first in itertools.count(start, self.global_batch_size):
            batch = []
            for position in range(first + own.start, first + own.stop):
                if position // count != epoch:
                    epoch = position // count
                    order = self._order(epoch)
                batch.append(SampleRef(epoch, int(order[position % count])))
            yield batch

    def contiguous(self, epoch: int) -> Iterator[list[SampleRef]]:
        """Yield the batches of this rank's contiguous share of an epoch."""
        order, own = self._order(epoch), self.own(len(self._records))
        for start in own[:: self.batch_size]:
            stop = min(start + self.batch_size, own.stop)
            yield [SampleRef(epoch, int(order[at])) for at in range(start, stop)]

    def record(self, sample: SampleRef) -> Record:
        """Return the record of a sample."""
        return record_in_epoch(self._records, sample.epoch, sample.record_index)

    def replacement(self, sample: SampleRef, attempt: int) -> SampleRef:
        """Return a random sample to replace a bad one."""
        epoch, index, _ = sample
        count = len(self._records)
        return SampleRef(epoch, _core.draw_below(count, self._seed, epoch, index, attempt))

    def fingerprint(self, consumed: str) -> str:
        """Return a hash of the data; `consumed` is the hash in the last `BatchIndices`."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self._records)
        return self._fingerprint

    def check_state(self, sample: int, fingerprint: str) -> None:
        """Raise ValueError if a saved position does not match these records."""
        if fingerprint != (actual := self.fingerprint("")):
            raise _other_data(fingerprint, f"but this loader's is {shown(actual)}")
        if sample > len(self._records):
            raise ValueError(
                f"the state resumes at sample {sample}; expected 0 to {len(self._records)}, the"
                " number of records"
            )

    def _order(self, epoch: int) -> np.ndarray | ShardOrder | range:
        """Return the index of the record at each position of an epoch."""
        count = len(self._records)
        if self._groups is not None:
            return self._groups.order(self._seed, epoch)
        if not missing_bytes(self._shards, len(self._shards)):
            read_ahead(self._shards)
        if not self._shuffle:
            return range(count)
        order = np.asarray(_core.permutation(count, self._seed, epoch))
        # Half the memory, which counts for many millions of records.
        return order.astype(np.uint32) if count <= 1 << 32 else order


class StreamSampler(RankSplit):
    """Sampler for an iterable. Every rank iterates over all of it."""

    def __init__(self, records: Iterable[Record], config: LoaderConfig) -> None:
        super().__init__(config)
        self._records = records
        self._is_exhausted = False

    def __len__(self) -> int:
        if not isinstance(self._records, Sized):
            kind = type(self._records).__name__
            raise TypeError(f"the records are an iterable of type {kind}, which has no len()")
        return self.num_batches(len(self._records))

    def batches(self, epoch: int, start: int, fingerprint: str) -> Iterator[BatchIndices]:
        """See `IndexSampler`. Samples before `start` are read and must match `fingerprint`."""
        records, consumed, index, is_last = self._iterate(epoch), Fingerprint(), 0, False
        for record in islice(records, start):
            consumed.add(record)
            index += 1
        if index < start:
            raise ValueError(
                f"the state resumes at sample {start}, but there are only {index} records; the"
                " state was probably saved with different data"
            )
        if start and fingerprint != (actual := consumed.text()):
            raise _other_data(
                fingerprint, f"but the fingerprint of the first {start} records is {shown(actual)}"
            )
        while not is_last:
            # A full step is never marked as the last: looking ahead could block on the next record.
            step = list(islice(records, self.global_batch_size))
            is_last = len(step) < self.global_batch_size
            if is_last and self.drop_last:
                return
            for record in step:
                consumed.add(record)
            samples = [SampleRef(epoch, index + at, step[at]) for at in self.own(len(step))]
            index += len(step)
            if samples:
                yield BatchIndices(samples, index, is_last, consumed.text())

    def stream(self, start: int) -> Iterator[list[SampleRef]]:
        """See `IndexSampler`. Samples before `start` are read and discarded."""
        samples = islice(self._samples(), start, None)
        while True:
            step = list(islice(samples, self.global_batch_size))
            yield [step[at] for at in self.own(self.global_batch_size)]

    def contiguous(self, epoch: int) -> Iterator[list[SampleRef]]:
        """See `IndexSampler`. Requires a single rank, since the number of records is unknown."""
        if self.world_size > 1:
            raise TypeError(
                "epoch() on several ranks requires a map-style dataset, got an iterable;"
                " iterate over the loader instead, or pass a list"
            )
        return (batch.samples for batch in self.batches(epoch, 0, ""))

    def record(self, sample: SampleRef) -> Record:
        """See `IndexSampler`. The sample already contains its record."""
        assert sample.record is not None
        return sample.record

    def replacement(self, sample: SampleRef, attempt: int) -> SampleRef:
        """Raise TypeError, since the loader rejects "resample" for iterables."""
        raise TypeError(
            f"cannot replace record {sample.record_index} of an iterable; expected a map-style"
            " dataset"
        )

    def fingerprint(self, consumed: str) -> str:
        """See `IndexSampler`. Only the samples consumed in the epoch are hashed."""
        return consumed

    def check_state(self, sample: int, fingerprint: str) -> None:
        """Do nothing, since `batches` checks the state while iterating."""

    def _samples(self) -> Iterator[SampleRef]:
        """Yield the samples of all epochs in order."""
        for epoch in itertools.count():
            index = -1
            for index, record in enumerate(self._iterate(epoch)):
                yield SampleRef(epoch, index, record)
            if index < 0:
                raise ValueError(
                    f"epoch {epoch} has no records; expected 1 or more for an endless stream"
                )

    def _iterate(self, epoch: int) -> Iterator[Record]:
        """Start an epoch, after calling the iterable's `set_epoch` if it has one."""
        if callable(set_epoch := getattr(self._records, "set_epoch", None)):
            set_epoch(epoch)
        iterator = iter(self._records)
        if iterator is self._records:
            if self._is_exhausted:
                raise ValueError(
                    f"the records are of type {type(self._records).__name__}, which can be iterated"
                    " only once; expected an iterable whose __iter__ returns a new iterator"
                )
            self._is_exhausted = True
        return map(check_record, iterator, itertools.count())


Sampler = IndexSampler | StreamSampler


def _other_data(fingerprint: object, own: str) -> ValueError:
    return ValueError(
        f"the state's fingerprint is {shown(fingerprint)}, {own}; the state was probably saved with"
        " different data"
    )
