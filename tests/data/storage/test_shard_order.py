"""The order that opens few shards at a time: every record once, for any ranks, well shuffled."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiber.data import ConcatRecords, DataLoader, ImageTransform, Tokenizer
from fiber.data.datasets.resolve import open_source
from fiber.data.sampler import IndexSampler
from fiber.data.storage.held_out import ChosenRecords
from fiber.data.storage.shard_order import ShardGroups, ShardMap
from fiber.data.tools.pack import pack

NUM_IMAGES = 60


class Bare:
    """A shard of which only the name is needed."""

    bytes = 1

    def __init__(self, name):
        self.path = Path(f"{name}.tar")

    def read(self, start, size):
        raise AssertionError("an order reads no shard")


def map_of(counts):
    """Shards with as many records as `counts` says, one after the other."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    return ShardMap([Bare(index) for index in range(len(counts))], lambda: numbers)


def listed(order):
    return [order[position] for position in range(len(order))]


@pytest.mark.parametrize(
    ("counts", "together"),
    [
        ([], 16),
        ([0, 0], 16),
        ([1], 1),
        ([5], 16),
        ([3, 0, 2], 2),
        ([2] * 7, 3),
        ([1, 9, 4, 0, 7], 2),
        ([3] * 37, 16),
        (list(range(40)), 16),
    ],
)
def test_every_record_comes_once_and_few_shards_are_open(counts, together):
    groups = ShardGroups(map_of(counts), together)
    numbers = np.repeat(np.arange(len(counts)), counts)
    for epoch in range(3):
        order = groups.order(7, epoch)
        found = listed(order)
        assert sorted(found) == list(range(sum(counts))) and len(order) == sum(counts)
        assert all(0 < len(set(group)) == len(group) <= together for group in order.groups)
        assert sorted(shard for group in order.groups for shard in group) == [
            i for i, count in enumerate(counts) if count
        ]
        # The samples of a group come from its shards only.
        at = 0
        for group in order.groups:
            size = groups.size(group)
            assert set(numbers[found[at : at + size]]) == set(group)
            at += size
    for position in (-1, sum(counts)):
        with pytest.raises(IndexError, match=str(position)):
            groups.order(7, 0)[position]


def test_an_order_depends_on_seed_and_epoch_alone():
    groups = ShardGroups(map_of([5] * 40), 8)
    first = listed(groups.order(0, 0))
    assert listed(groups.order(0, 0)) == first
    # Positions in any order, as after a resume.
    order = groups.order(0, 0)
    assert [order[p] for p in range(199, -1, -1)] == first[::-1]
    others = [listed(groups.order(seed, epoch)) for seed, epoch in ((0, 1), (1, 0), (1, 1))]
    assert len({tuple(each) for each in (first, *others)}) == 4


def correlation(counts, epochs):
    """Mean correlation of the positions in the collection of consecutive samples."""
    groups, found = ShardGroups(map_of(counts)), []
    for epoch in range(epochs):
        order, parts = groups.order(1, epoch), []
        for end in np.cumsum([groups.size(group) for group in order.groups]):
            order[int(end) - 1]
            parts.append(order._order)
        positions = np.concatenate(parts).astype(float)
        found.append(np.corrcoef(positions[:-1], positions[1:])[0, 1])
    return np.mean(found)


def test_neighbors_are_hardly_correlated():
    """Of a uniform permutation of N records it is 0 with a standard deviation of N ** -0.5."""
    # 16 epochs of a million: a standard deviation of 0.00025.
    assert abs(correlation([1000] * 1000, 16)) <= 1 / 1000
    # Shards of 500 to 2,000 records.
    uneven = np.random.default_rng(0).integers(500, 2000, 500)
    assert abs(correlation(uneven, 4)) <= 1 / 50


def test_each_place_of_a_record_is_equally_likely():
    """Of 40 records in 8 shards, over 2,000 epochs: chi-squared over places and records."""
    groups, seen = ShardGroups(map_of([5] * 8), 4), np.zeros((40, 40))
    for epoch in range(2000):
        seen[np.arange(40), listed(groups.order(3, epoch))] += 1
    statistic = float(((seen - 50) ** 2 / 50).sum())
    # 39 * 39 degrees of freedom: a mean of 1521 and a standard deviation of 55.
    assert abs(statistic - 1521) < 5 * 55


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Images with three captions each, in 20 shards; validation has other images."""
    root, lines = tmp_path_factory.mktemp("order"), []
    for number in range(NUM_IMAGES):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 90, 90)).save(file, "BMP")
        (root / f"{number}.bmp").write_bytes(file.getvalue())
        texts = [f"{number} {word}" for word in ("red", "blue", "green")]
        lines.append(json.dumps({"image": f"{number}.bmp", "texts": texts}) + "\n")
    (root / "train.jsonl").write_text("".join(lines[:-6]))
    (root / "val.jsonl").write_text("".join(lines[-6:]))
    Tokenizer.train(["red blue green"], 300).save(str(root / "tokenizer.json"))
    described = pack(root, root / "packed", shard_bytes=10_000)
    assert sum(shard["split"] == "train" for shard in described["shards"]) == 18
    return root / "packed"


def loader(packed, records, **options):
    settings = {"transform": ImageTransform.squash(16), "batch_size": 4, "max_tokens": 8}
    settings |= {"shuffle": True, "order": "shards", "seed": 5, "threads": 1}
    tokenizer = Tokenizer.from_file(packed / "tokenizer.json")
    return DataLoader(records, "image_text", tokenizer=tokenizer, **{**settings, **options})


def samples(batches):
    return [sample for batch in batches for sample in batch.samples]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_order_is_the_same_for_any_number_of_ranks(packed, world_size):
    records = open_source("captions", packed, "train")
    whole = listed(ShardGroups(records.shard_map()).order(5, 0))
    batch_size, steps = 24 // world_size, 3
    by_rank = [
        loader(packed, records, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    streams = [each.stream(start=24) for each in by_rank]
    seen = [samples([next(stream)]) for _ in range(steps) for stream in streams]
    assert [pair for batch in seen for pair in batch] == [
        (0, index) for index in whole[24 : 24 * (steps + 1)]
    ]


def test_a_stream_goes_from_epoch_to_epoch(packed):
    records = open_source("captions", packed, "train+val")
    count, groups = len(records), ShardGroups(records.shard_map())
    stream = loader(packed, records, batch_size=count).stream(start=count // 2)
    found = samples([next(stream), next(stream)])
    whole = [(e, i) for e in range(3) for i in listed(groups.order(5, e))]
    assert found == whole[count // 2 : count // 2 + 2 * count]


def test_an_epoch_resumes_in_its_middle(packed):
    records = open_source("captions", packed, "train")
    whole = samples(loader(packed, records))
    assert sorted(whole) == [(0, index) for index in range(len(records))]
    first = loader(packed, records)
    iterator = iter(first)
    head = samples([next(iterator) for _ in range(7)])
    state = first.state_dict()
    second = loader(packed, records, batch_size=5)
    second.load_state_dict(state)
    assert head + samples(second) == whole
    for other in ({"order": "uniform"}, {"order": 3}):
        with pytest.raises(ValueError, match=r"order is .*'shards'"):
            second.load_state_dict({**state, **other})
    del state["order"]
    with pytest.raises(ValueError, match="order is 'uniform'"):
        second.load_state_dict(state)


def test_shards_of_record_sets_made_of_packs(packed):
    train, val = (open_source("captions", packed, split) for split in ("train", "val"))
    both = ConcatRecords([train, val, train])
    found = both.shard_map()
    assert len(found.shards) == 20
    for records in (both, ChosenRecords(both, [3, 300, 170, 0]), train):
        shards = records.shard_map()
        for index, number in enumerate(shards.numbers()):
            shade = int(records[index].text.split()[0])
            assert f"{shade:09d}.bmp".encode() in shards.shards[number].path.read_bytes() or (
                shade >= 54 and "val" in shards.shards[number].path.name
            )
    # Records whose shards do not ascend are sorted by shard.
    chosen = ChosenRecords(train, list(range(len(train)))[::-1])
    groups = ShardGroups(chosen.shard_map(), 4)
    assert sorted(listed(groups.order(0, 0))) == list(range(len(train)))
    for group in groups.order(0, 0).groups:
        assert set(chosen.shard_map().numbers()[groups.records(group)]) == set(group)


def test_what_has_no_shards_is_refused(packed, tmp_path):
    records = open_source("captions", packed, "train")
    for wrong in (list(records), ConcatRecords([records, list(records)])):
        with pytest.raises(ValueError, match=r"order 'shards' needs .*packed folder.* got list"):
            loader(packed, wrong)
    with pytest.raises(ValueError, match=r"order is 'shards' and shuffle is False"):
        loader(packed, records, shuffle=False)
    with pytest.raises(ValueError, match=r"order is 'random'"):
        loader(packed, records, order="random")
    with pytest.raises(ValueError, match=r"together is 0"):
        ShardGroups(records.shard_map(), 0)
    with pytest.raises(ValueError, match="iterable"):
        loader(packed, iter(records))


def test_uniform_order_is_unchanged(packed):
    records = open_source("captions", packed, "train")
    config = loader(packed, records, order="uniform").config
    order = IndexSampler(records, config)._order(2)
    from fiber import _core

    assert list(order) == list(np.asarray(_core.permutation(len(records), 5, 2)))
