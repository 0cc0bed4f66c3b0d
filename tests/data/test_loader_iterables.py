"""Iterables as what a loader reads: the same batches as of a list, and what they cannot do."""

import gc
import itertools
import threading

import pytest
from torch.utils.data import IterableDataset

from fiber.data import DataLoader, Tokenizer
from tests.data.loader_records import RECORDS, TEXT, make, png, record, samples, take

# Records that are broken on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:(skipped|replaced) record:RuntimeWarning")


class Stream:
    """Gives the records anew on each pass and notes which epochs it was told."""

    def __init__(self, records=RECORDS, *, fails_after: int | None = None) -> None:
        self.records, self.fails_after = list(records), fails_after
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self):
        for number, one in enumerate(self.records):
            if number == self.fails_after:
                raise OSError("the network is gone")
            yield one


class TorchStream(IterableDataset):
    """As torch's users write one, with the length that some give it."""

    def __iter__(self):
        return iter(RECORDS)

    def __len__(self) -> int:
        return len(RECORDS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


@pytest.mark.parametrize("batch_type", ["image_text", "question", "grounding"])
@pytest.mark.parametrize("source", [Stream, TorchStream])
def test_an_iterable_gives_the_batches_of_a_list(tokenizer, source, batch_type):
    loader = make(tokenizer, source(), batch_type, answers=("left",))
    expected = make(tokenizer, RECORDS, batch_type, answers=("left",))
    for _ in range(2):
        batches, wanted = list(loader), list(expected)
        assert [batch.keys for batch in batches] == [batch.keys for batch in wanted]
        for batch, other in zip(batches, wanted, strict=True):
            assert (batch.images == other.images).all()
            assert (batch.token_ids == other.token_ids).all()


def test_each_epoch_draws_anew_and_is_told(tokenizer):
    stream = Stream()
    loader = make(tokenizer, stream)
    first, second = samples(loader), samples(loader)
    assert first == samples(make(tokenizer).epoch(0)) and second == samples(
        make(tokenizer).epoch(1)
    )
    loader.set_epoch(7)
    assert samples(loader) == samples(make(tokenizer).epoch(7))
    assert stream.epochs == [0, 1, 7]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 8, 12, 23])
def test_ranks_share_an_iterable_as_they_share_a_list(tokenizer, count, world_size, drop_last):
    records = RECORDS[:count]
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_size": 2, "drop_last": drop_last}
        mine = [batch.keys for batch in make(tokenizer, Stream(records), **options)]
        listed = make(tokenizer, records, **options)
        assert mine == [batch.keys for batch in listed]
        assert len(mine) == len(listed)


def test_its_length_is_the_iterables_own(tokenizer):
    assert len(make(tokenizer, TorchStream())) == 6
    assert len(make(tokenizer, TorchStream(), drop_last=True)) == 5
    with pytest.raises(TypeError, match=r"Stream.*len\(\)"):
        len(make(tokenizer, Stream()))


@pytest.mark.parametrize("taken", [0, 1, 5, 6])
def test_a_pass_goes_on_in_mid_epoch(tokenizer, taken):
    whole = samples(make(tokenizer, seed=3).epoch(2))
    loader = make(tokenizer, Stream(), seed=3)
    loader.set_epoch(2)
    passing = iter(loader)
    head = [next(passing) for _ in range(taken)]
    state = loader.state_dict()
    passing.close()
    assert (state["epoch"], state["sample"]) == ((3, 0) if taken == 6 else (2, 4 * taken))
    rest = []
    for rank in range(2):
        other = make(tokenizer, Stream(), seed=3, batch_size=2, rank=rank, world_size=2)
        other.load_state_dict(state)
        other.set_epoch(state["epoch"])
        assert other.state_dict() == state
        rest += samples(other)
        assert other.state_dict()["epoch"] == state["epoch"] + 1
    if taken == 6:
        assert sorted(rest) == sorted(samples(make(tokenizer, seed=3).epoch(3)))
    else:
        assert sorted(samples(head) + rest) == sorted(whole)


def test_a_batch_does_not_wait_for_the_record_behind_it(tokenizer):
    """Of a source that may be long in giving the next one, or fail in doing so."""
    gate = threading.Event()

    class Slow(Stream):
        def __iter__(self):
            yield from RECORDS[:4]
            assert gate.wait(20)
            raise OSError("the network is gone")

    passing = iter(make(tokenizer, Slow()))
    assert next(passing).keys == ("r0", "r1", "r2", "r3")
    gate.set()
    with pytest.raises(OSError, match="the network is gone"):
        next(passing)


def test_behind_a_full_last_step_nothing_is_left(tokenizer):
    loader = make(tokenizer, Stream(RECORDS[:8]))
    passing = iter(loader)
    next(passing), next(passing)
    state = loader.state_dict()
    assert (state["epoch"], state["sample"]) == (0, 8)
    other = make(tokenizer, Stream(RECORDS[:8]))
    other.load_state_dict(state)
    assert list(other) == [] and other.state_dict()["epoch"] == 1
    assert list(passing) == [] and loader.state_dict()["epoch"] == 1


def test_a_state_of_other_records_is_refused_in_the_pass(tokenizer):
    loader = make(tokenizer, Stream())
    next(iter(loader))
    state = loader.state_dict()
    other = make(tokenizer, Stream([record(0, text="other"), *RECORDS[1:]]))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"fingerprint.*4 records.*data"):
        next(iter(other))
    boxes = make(tokenizer, Stream([record(0, boxes_xyxy=(), char_spans=()), *RECORDS[1:]]))
    boxes.load_state_dict(state)
    with pytest.raises(ValueError, match="4 records"):
        next(iter(boxes))
    short = make(tokenizer, Stream(RECORDS[:2]))
    short.load_state_dict(state)
    with pytest.raises(ValueError, match=r"sample.*4.*2"):
        next(iter(short))
    # What comes later may differ: nobody has seen it.
    longer = make(tokenizer, Stream([*RECORDS, record(99)]))
    longer.load_state_dict(state)
    assert sum(len(batch) for batch in longer) == len(RECORDS) + 1 - 4


def test_a_stream_without_end_gives_epochs_end_to_end(tokenizer):
    expected = samples(take(make(tokenizer).stream(5), 9))
    assert samples(take(make(tokenizer, Stream()).stream(5), 9)) == expected
    ranks = [
        make(tokenizer, Stream(), batch_size=2, rank=rank, world_size=2).stream(5)
        for rank in range(2)
    ]
    steps = itertools.chain.from_iterable(zip(*(take(rank, 9) for rank in ranks), strict=True))
    assert samples(steps) == expected
    with pytest.raises(ValueError, match=r"epoch 0.*1"):
        next(make(tokenizer, Stream([])).stream())


def test_what_can_be_read_once_is_read_once(tokenizer):
    loader = make(tokenizer, (one for one in RECORDS))
    assert samples(loader) == samples(make(tokenizer))
    with pytest.raises(ValueError, match=r"type generator"):
        list(loader)


def test_epoch_needs_one_rank(tokenizer):
    assert samples(make(tokenizer, Stream()).epoch(1)) == samples(make(tokenizer).epoch(1))
    with pytest.raises(TypeError, match=r"several ranks.*iterable"):
        make(tokenizer, Stream(), rank=1, world_size=2).epoch()


@pytest.mark.parametrize(
    ("options", "told"),
    [({"shuffle": True}, r"shuffle.*True"), ({"on_error": "resample"}, r"on_error.*'resample'")],
)
def test_what_needs_any_order_is_refused(tokenizer, options, told):
    with pytest.raises(ValueError, match=rf"{told}.*Stream"):
        make(tokenizer, Stream(), **options)


@pytest.mark.parametrize("wrong", [7, None, "folder", {"a": 1}], ids=repr)
def test_what_is_no_source_is_refused(tokenizer, wrong):
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=rf"records.*type {kind}"):
        make(tokenizer, wrong)


def test_what_is_no_record_is_told(tokenizer):
    loader = make(tokenizer, Stream([RECORDS[0], {"text": "a cup"}]))
    with pytest.raises(TypeError, match=r"record 1.*fiber\.data\.Record"):
        list(loader)


@pytest.mark.filterwarnings("ignore:record")
def test_bad_samples_are_left_out(tokenizer):
    broken = [*RECORDS[:3], record(3, images=(png(3)[:60],)), *RECORDS[4:]]
    loader = make(tokenizer, Stream(broken), on_error="skip")
    keys = [batch.keys for batch in loader]
    assert [len(row) for row in keys] == [3, 4, 4, 4, 4, 3]
    assert [bad.key for bad in loader.skipped] == ["r3"]
    assert loader.state_dict()["epoch"] == 1


def test_its_own_error_stops_the_pass(tokenizer):
    loader = make(tokenizer, Stream(fails_after=9), on_error="skip")
    taken = []
    with pytest.raises(OSError, match="the network is gone"):
        for batch in loader:
            taken += batch.keys
    assert taken == [f"r{i}" for i in range(8)]
    assert loader.state_dict()["sample"] == 8


def test_no_more_is_read_ahead_than_is_asked_for(tokenizer):
    read = []

    class Noting(Stream):
        def __iter__(self):
            for one in itertools.cycle(self.records):
                read.append(one.key)
                yield one

    loader = make(tokenizer, Noting(), prefetch=1, batch_size=2)
    passing = iter(loader)
    for _ in range(3):
        next(passing)
    passing.close()
    # Three taken, one made ahead, and one waiting to be.
    assert len(read) <= 2 * (3 + 1 + 1)
    del passing
    gc.collect()


def test_a_loader_of_a_stream_can_be_closed_and_used_again(tokenizer):
    stream = Stream()
    with DataLoader(
        stream, "image_text", tokenizer=tokenizer, transform=make(tokenizer).transform,
        batch_size=4, max_tokens=12,
    ) as loader:  # fmt: skip
        next(iter(loader))
    assert samples(loader) == samples(make(tokenizer))
