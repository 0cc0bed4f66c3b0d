"""New records with a share of old ones: numbers, epochs, and the same sample each time."""

from collections import Counter

import numpy as np
import pytest

from fiber.data.record import MixedRecords, Record
from fiber.data.storage.shard_order import ShardMap


def records(name, count):
    return [Record(key=f"{name}{i}", images=("a.png",), text=name) for i in range(count)]


def keys(mixed, epoch=0):
    return [mixed.in_epoch(epoch, index).key for index in range(len(mixed))]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("new", "old"), [(20, 1), (20, 7), (20, 500), (1, 1), (3, 1000)])
def test_a_share_of_an_epoch_is_old(new, old, share):
    mixed = MixedRecords(records("new", new), records("old", old), share)
    counts = Counter(record.text for record in mixed)
    # To half a record of those beside all passes over the new ones.
    assert abs(counts["old"] - share / (1 - share) * counts["new"]) <= 0.5 or counts["old"] == 1
    assert counts["new"] == mixed.times * new
    assert sum(counts.values()) == len(mixed)
    assert abs(mixed.pass_length * mixed.times - len(mixed)) <= mixed.times / 2


def test_few_old_records_are_repeated_alike():
    mixed = MixedRecords(records("new", 30), records("old", 4), 0.25)
    counts = Counter(key for key in keys(mixed) if key.startswith("old"))
    assert mixed.times == 1 and sum(counts.values()) == 10
    assert set(counts) == {"old0", "old1", "old2", "old3"} and set(counts.values()) <= {2, 3}


def test_many_old_records_are_each_there_at_most_once():
    mixed = MixedRecords(records("new", 30), records("old", 101), 0.25)
    counts = Counter(keys(mixed))
    assert mixed.times == 10
    assert {counts[f"new{i}"] for i in range(30)} == {10}
    old = [key for key in counts if key.startswith("old")]
    assert len(old) == 100 and {counts[key] for key in old} == {1}


def test_the_sample_depends_on_the_seed_only():
    def sample(seed):
        return keys(MixedRecords(records("new", 30), records("old", 15), 0.25, seed))

    assert sample(1) == sample(1) != sample(2)


class Numbered:
    """Records that tell the epoch in which they are read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.in_epoch(0, index)

    def in_epoch(self, epoch, index):
        return Record(key=f"{index} in {epoch}", images=("a.png",), text="")


def test_passes_of_an_epoch_are_epochs_of_the_new_records():
    mixed = MixedRecords(Numbered(), Numbered(), 0.25)
    assert mixed.times == 3 and len(mixed) == 8
    new = [f"{index} in {epoch}" for epoch in (3, 4, 5) for index in (0, 1)]
    assert keys(mixed, 1) == [*new, "0 in 1", "1 in 1"]
    assert mixed[-1].key == "1 in 0"
    with pytest.raises(IndexError, match="8"):
        mixed[8]


def test_shards_of_both(monkeypatch):
    class Packed(list):
        def __init__(self, name, count):
            super().__init__(records(name, count))
            self.name = name

        def shard_map(self):
            return ShardMap([self.name], lambda: np.zeros(len(self), dtype=np.uint32))

    monkeypatch.setattr(
        ShardMap,
        "concatenated",
        classmethod(lambda cls, maps: [each.shards[each.numbers()[0]] for each in maps]),
    )
    mixed = MixedRecords(Packed("new", 3), Packed("old", 2), 0.25)
    assert mixed.shard_map() == ["new", "new", "old"]
    with pytest.raises(ValueError, match="order 'shards'"):
        MixedRecords(Packed("new", 3), records("old", 2), 0.25).shard_map()
