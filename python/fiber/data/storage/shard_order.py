"""Shuffled order of records that opens few shards at a time.

The shards are split into as many strata of consecutive shards as a group has shards. A group takes
one shard of each stratum, drawn at random, and its records are shuffled together; an epoch is one
group after the other. The order depends on (seed, epoch) only.

Since each group covers the whole collection, the groups have nearly the same mean position. For
groups of G shards of the same size, the correlation of the positions of consecutive samples is
about 1 / G ** 3; with groups of random shards it would be about 1 / G.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from fiber import _core

#: Number of shards of a group.
SHARDS_TOGETHER = 16


@runtime_checkable
class ShardFile(Protocol):
    """A file with images of many records."""

    path: Path
    bytes: int

    def read(self, start: int, size: int, /) -> bytes:
        """Read `size` bytes from offset `start`."""
        ...


@runtime_checkable
class FetchedShard(ShardFile, Protocol):
    """A shard that is downloaded."""

    def fetch_ahead(self) -> None:
        """Begin to download the shard, unless it is there."""
        ...


def read_ahead(shards: Iterable[ShardFile]) -> None:
    """Begin to download shards that will be needed, in this order."""
    for shard in shards:
        if isinstance(shard, FetchedShard):
            shard.fetch_ahead()


class ShardMap:
    """The shards of a record set, and the shard of each record.

    Args:
        shards: shards in the order of the collection.
        numbers: returns the index in `shards` for each record, as (N,) integers.
    """

    def __init__(self, shards: Sequence[ShardFile], numbers: Callable[[], np.ndarray]) -> None:
        self.shards = list(shards)
        self.numbers = numbers

    def chosen(self, indices: Sequence[int]) -> ShardMap:
        """Return the map of the records with the given indices."""
        return ShardMap(self.shards, lambda: self.numbers()[np.asarray(indices, dtype=np.int64)])

    @classmethod
    def concatenated(cls, maps: Sequence[ShardMap]) -> ShardMap:
        """Return the map of concatenated record sets, which may share shards."""
        index: dict[Path, int] = {}
        shards: list[ShardFile] = []
        tables = []
        for each in maps:
            for shard in each.shards:
                if shard.path not in index:
                    index[shard.path] = len(shards)
                    shards.append(shard)
            tables.append(np.array([index[s.path] for s in each.shards], dtype=np.uint32))

        def numbers() -> np.ndarray:
            parts = [table[m.numbers()] for table, m in zip(tables, maps, strict=True)]
            return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)

        return cls(shards, numbers)


@runtime_checkable
class ShardedRecords(Protocol):
    """Records whose images are in shards."""

    def shard_map(self) -> ShardMap:
        """Return the shards and the shard of each record."""
        ...


def shard_map_of(records: object) -> ShardMap:
    """Return the shards of a record set.

    Raises:
        ValueError: if its images are not in shards that are known.
    """
    if not isinstance(records, ShardedRecords):
        raise ValueError(
            f"order 'shards' needs the records of a packed folder (`fiber data pack`), got"
            f" {type(records).__name__}"
        )
    return records.shard_map()


class ShardGroups:
    """Orders of all epochs for the records of a `ShardMap`.

    Args:
        shard_map: shards of the records.
        together: maximum number of shards of a group.
    """

    def __init__(self, shard_map: ShardMap, together: int = SHARDS_TOGETHER) -> None:
        if together < 1:
            raise ValueError(f"together is {together}; expected 1 or more")
        numbers = shard_map.numbers()
        self.count = len(numbers)
        counts = np.bincount(numbers, minlength=len(shard_map.shards))
        self._ends = np.cumsum(counts)
        #: Records sorted by shard; None if they already are.
        self._sorted: np.ndarray | None = None
        if np.any(numbers[1:] < numbers[:-1]):
            kind = np.uint32 if self.count <= 1 << 32 else np.int64
            self._sorted = np.argsort(numbers, kind="stable").astype(kind)
        self.shards, self._counts = shard_map.shards, counts
        self._strata = np.array_split(used := np.flatnonzero(counts), _strata(len(used), together))
        self._groups = max(map(len, self._strata))

    @property
    def most_shards(self) -> int:
        """Maximum number of shards of a group."""
        return len(self._strata)

    def order(self, seed: int, epoch: int) -> ShardOrder:
        """Return the order of an epoch."""
        groups: list[list[int]] = [[] for _ in range(self._groups)]
        for index, stratum in enumerate(self._strata):
            # A stratum may have a shard less than there are groups.
            drawn = _permutation(self._groups, seed, epoch, "stratum", index)
            for shard, group in zip(stratum, drawn, strict=False):
                groups[group].append(int(shard))
        return ShardOrder(self, groups, seed, epoch)

    def size(self, group: Sequence[int]) -> int:
        """Return the number of records of a group of shards."""
        return int(self._counts[list(group)].sum())

    def records(self, group: Sequence[int]) -> np.ndarray:
        """Return the indices of all records of a group of shards."""
        parts = []
        for shard in group:
            end = int(self._ends[shard])
            span = slice(end - int(self._counts[shard]), end)
            sort = self._sorted
            parts.append(np.arange(span.start, span.stop) if sort is None else sort[span])
        return np.concatenate(parts)


class ShardOrder:
    """Order of an epoch: a permutation of the records, of which one group at a time is in memory.

    Attributes:
        groups: shards of each group, in order.
    """

    def __init__(self, all_groups: ShardGroups, groups: list[list[int]], seed: int, epoch: int):
        self._all, self._seed, self._epoch = all_groups, seed, epoch
        self.groups = groups
        self._ends = np.cumsum([all_groups.size(group) for group in groups])
        self._first, self._order = 0, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._all.count

    def __getitem__(self, position: int) -> int:
        """Return the index of the record at a position of the epoch."""
        if not self._first <= position < self._first + len(self._order):
            self._enter(self.group_at(position))
        return int(self._order[position - self._first])

    def group_at(self, position: int) -> int:
        """Return the group of a position; raise IndexError if there is none."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is out of range for {len(self)} records")
        return int(np.searchsorted(self._ends, position, side="right"))

    def _enter(self, group: int) -> None:
        """Shuffle the records of a group, and download its shards and those of the next one."""
        following = self.groups[group + 1 : group + 2]
        if not following:
            following = self._all.order(self._seed, self._epoch + 1).groups[:1]
        for shards in (self.groups[group], *following):
            read_ahead(self._all.shards[shard] for shard in shards)
        records = self._all.records(self.groups[group])
        order = _permutation(len(records), self._seed, self._epoch, "group", group)
        self._order = records[order]
        self._first = int(self._ends[group]) - len(records)


def _strata(shards: int, together: int) -> int:
    """Return the number of strata, from together / 2 to `together`, that fits the shards best.

    It minimizes the variance of the mean positions of the groups, relative to that of all
    positions: 1 / strata ** 3 of the draws within the strata, and 1 / strata ** 2 for each group
    that lacks a shard.
    """

    def variance(strata: int) -> float:
        groups = max(-(-shards // strata), 1)
        return 1 / strata**3 + (groups * strata - shards) / groups / strata**2

    return min(range(-(-together // 2), together + 1), key=variance)


def _permutation(count: int, *key: object) -> np.ndarray:
    """Return a permutation of 0..count that depends on the key only."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return np.asarray(_core.permutation(count, int.from_bytes(digest, "little"), 0))
