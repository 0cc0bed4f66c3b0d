"""Ranks split batches that they do not divide."""

import itertools

import pytest

from fiber.data import Tokenizer
from tests.data.loader_records import RECORDS, TEXT, make, samples, take


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=300)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_see_what_one_process_sees(tokenizer, world_size):
    one = make(tokenizer, shuffle=True, batch_size=7)
    options = {"shuffle": True, "batch_size": 7, "split_batches": True, "world_size": world_size}
    ranks = [make(tokenizer, rank=rank, **options) for rank in range(world_size)]
    steps = list(zip(*(take(loader.stream(), 8) for loader in ranks), strict=True))
    sizes = {tuple(map(len, step)) for step in steps}
    assert sizes == {{2: (3, 4), 3: (2, 2, 3), 4: (1, 2, 2, 2)}[world_size]}
    assert samples(itertools.chain(*steps)) == samples(take(one.stream(), 8))
    # An epoch of 23 records has a last batch of 2, which two of four ranks share.
    epochs = [samples(loader) for loader in ranks]
    assert sorted(itertools.chain(*epochs)) == sorted(samples(one))
    assert [len(loader) for loader in ranks][-1] == 4


@pytest.mark.parametrize("count", [0, 2, 7, 8, 23])
def test_an_iterable_is_split_like_a_list(tokenizer, count):
    class Stream:
        def __iter__(self):
            return iter(RECORDS[:count])

    for rank in range(3):
        options = {"batch_size": 7, "split_batches": True, "rank": rank, "world_size": 3}
        listed = [batch.keys for batch in make(tokenizer, RECORDS[:count], **options)]
        assert [batch.keys for batch in make(tokenizer, Stream(), **options)] == listed
