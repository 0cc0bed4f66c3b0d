"""Iteration as torch's users know it: epochs, positions, ranks; and what is done on faults."""

import errno
import gc

import pytest
import torch
from PIL import UnidentifiedImageError

from fiber import DecodeError
from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.loader import STATE_VERSION
from tests.data.loader_records import RECORDS, TEXT, make, png, record, samples

# Records that are broken on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:(skipped|replaced) record:RuntimeWarning")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def keys(loader: DataLoader) -> list[str]:
    return [key for batch in loader for key in batch.keys]


def test_no_records_give_no_batch(tokenizer):
    loader = make(tokenizer, [])
    assert (list(loader), len(loader)) == ([], 0)


def test_iterating_gives_epoch_after_epoch(tokenizer):
    loader = make(tokenizer, shuffle=True)
    assert len(loader) == 6
    first, second = list(loader), list(loader)
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 3]
    assert samples(first) == samples(make(tokenizer, shuffle=True).epoch(0))
    assert samples(second) == samples(make(tokenizer, shuffle=True).epoch(1))
    loader.set_epoch(1)
    assert samples(loader) == samples(second)


def test_a_pass_that_was_broken_off_begins_anew(tokenizer):
    loader = make(tokenizer)
    next(iter(loader))
    assert len(keys(loader)) == len(RECORDS)


def test_the_last_batch_can_be_left_out(tokenizer):
    loader = make(tokenizer, drop_last=True)
    assert len(loader) == 5
    assert [len(batch) for batch in loader] == [4] * 5
    assert loader.state_dict()["epoch"] == 1


@pytest.mark.parametrize("taken", [0, 1, 5, 6])
def test_a_pass_goes_on_in_mid_epoch(tokenizer, taken):
    loader = make(tokenizer, shuffle=True, seed=3)
    whole = samples(make(tokenizer, shuffle=True, seed=3).epoch(2))
    loader.set_epoch(2)
    passing = iter(loader)
    head = [next(passing) for _ in range(taken)]
    state = loader.state_dict()
    passing.close()
    other = make(tokenizer, shuffle=True, seed=3, threads=1, batch_size=3)
    other.load_state_dict(state)
    # As training loops do at the start of an epoch.
    other.set_epoch(state["epoch"])
    rest = samples(other)
    if taken == 6:
        assert state["epoch"] == 3 and samples(head) == whole
        assert rest == samples(make(tokenizer, shuffle=True, seed=3).epoch(3))
    else:
        assert state["epoch"] == 2 and samples(head) + rest == whole


@pytest.mark.parametrize("ranks", [(1, 2), (2, 4), (4, 1), (2, 3)], ids=str)
def test_another_number_of_ranks_goes_on_in_mid_epoch(tokenizer, ranks):
    """Two steps with some ranks, the rest with others: every sample of the epoch once."""
    before, after = ranks
    whole = samples(make(tokenizer, shuffle=True).epoch(0))
    seen, states = [], []
    for rank in range(before):
        loader = make(tokenizer, shuffle=True, rank=rank, world_size=before, batch_size=2)
        passing = iter(loader)
        seen += [next(passing) for _ in range(2)]
        states.append(loader.state_dict())
        passing.close()
    assert all(state == states[0] for state in states)
    assert states[0]["sample"] == 2 * 2 * before
    for rank in range(after):
        loader = make(tokenizer, shuffle=True, rank=rank, world_size=after, batch_size=3)
        loader.load_state_dict(states[0])
        seen += list(loader)
        assert loader.state_dict()["epoch"] == 1
    assert sorted(samples(seen)) == sorted(whole)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_steps_hold_the_same_samples_for_any_number_of_ranks(tokenizer, world_size):
    single = [samples([batch]) for batch in make(tokenizer, shuffle=True, batch_size=8)]
    ranks = [
        list(
            make(
                tokenizer,
                shuffle=True,
                rank=rank,
                world_size=world_size,
                batch_size=8 // world_size,
            )
        )
        for rank in range(world_size)
    ]
    for step, expected in enumerate(single):
        assert [row for rank in ranks for row in samples(rank[step : step + 1])] == expected


def test_states_of_other_data_or_seeds_are_refused(tokenizer):
    state = make(tokenizer).state_dict()
    with pytest.raises(ValueError, match=r"seed.*0.*1"):
        make(tokenizer, seed=1).load_state_dict(state)
    for other in (
        RECORDS[:-1],
        [*RECORDS[:-1], record(99)],
        [record(0, text="other"), *RECORDS[1:]],
        [*RECORDS[:7], record(7, boxes_xyxy=((1.0, 2.0, 20.0, 21.0),)), *RECORDS[8:]],
        [*RECORDS[:7], record(7, images=RECORDS[8].images), *RECORDS[8:]],
    ):
        with pytest.raises(
            ValueError, match=r"state's fingerprint is '.*saved with different data"
        ):
            make(tokenizer, other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"sample.*24.*0.*23"):
        make(tokenizer).load_state_dict({**state, "sample": 24})
    with pytest.raises(ValueError, match=r"sample -1.*0"):
        make(tokenizer).load_state_dict({**state, "sample": -1})
    with pytest.raises(ValueError, match=r"shuffle.*True.*False"):
        make(tokenizer, shuffle=False).load_state_dict(make(tokenizer, shuffle=True).state_dict())
    with pytest.raises(TypeError, match=r"state.*type NoneType.*state_dict"):
        make(tokenizer).load_state_dict(None)
    with pytest.raises(ValueError, match=r"epoch.*-1"):
        make(tokenizer).set_epoch(-1)


def test_every_one_of_many_records_counts(tokenizer):
    many = [record(0, key=f"r{index}") for index in range(1000)]
    state = make(tokenizer, many).state_dict()
    make(tokenizer, list(many)).load_state_dict(state)
    swapped = [*many[:501], many[502], many[501], *many[503:]]
    with pytest.raises(ValueError, match="state's fingerprint"):
        make(tokenizer, swapped).load_state_dict(state)


@pytest.mark.parametrize("name", ["epoch", "sample", "seed", "shuffle", "fingerprint"])
def test_states_without_an_entry_are_refused(tokenizer, name):
    state = make(tokenizer).state_dict()
    for wrong in ({k: v for k, v in state.items() if k != name}, {**state, name: None}):
        with pytest.raises(ValueError, match=rf"state's {name}.*state_dict"):
            make(tokenizer).load_state_dict(wrong)


def test_states_have_a_version(tokenizer):
    state = make(tokenizer).state_dict()
    assert state["version"] == STATE_VERSION == 1
    make(tokenizer).load_state_dict(state)
    # Before, states had none.
    make(tokenizer).load_state_dict({k: v for k, v in state.items() if k != "version"})
    with pytest.raises(ValueError, match=r"state has version 99,.* reads versions up to 1;"):
        make(tokenizer).load_state_dict({**state, "version": 99, "fingerprint": 3})
    for wrong in (0, -1, True, "1", 1.0, None):
        with pytest.raises(ValueError, match=rf"state's version is {wrong!r}; .*state_dict"):
            make(tokenizer).load_state_dict({**state, "version": wrong})


def broken(count: int = 10, *bad: int) -> list:
    records = list(RECORDS[:count])
    for index in bad:
        records[index] = record(index, images=(png(index)[:60],))
    return records


@pytest.mark.filterwarnings("ignore:record")
@pytest.mark.parametrize("batch_type", ["image_text", "grounding"])
def test_bad_samples_are_replaced_by_others_that_are_drawn(tokenizer, batch_type):
    transform = ImageTransform.shorter_side([16], 32) if batch_type == "grounding" else None
    options = {"transform": transform} if transform else {}

    def run(threads):
        records = broken(10, 2, 5, 6)
        records[7] = record(7, images=("no/such.jpg",))
        loader = make(
            tokenizer, records, batch_type, on_error="resample", threads=threads, **options
        )
        batches = list(loader)
        assert [bad.key for bad in loader.skipped][:1] == ["r2"]
        # Each once, though they are drawn in the place of one another, too.
        assert sorted(bad.key for bad in loader.skipped) == ["r2", "r5", "r6", "r7"]
        assert sum(loader.statuses.values()) - loader.statuses["ok"] > 4
        assert {bad.status for bad in loader.skipped} == {"corrupt", "missing"}
        assert loader.statuses["ok"] == 10
        return batches

    batches = run(1)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    kept = [key for batch in batches for key in batch.keys]
    assert [kept[i] for i in (0, 1, 3, 4, 8, 9)] == ["r0", "r1", "r3", "r4", "r8", "r9"]
    assert not {"r2", "r5", "r6", "r7"} & set(kept)
    again = run(4)
    for batch, other in zip(batches, again, strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.images, other.images)


@pytest.mark.filterwarnings("ignore:record")
@pytest.mark.parametrize("on_error", ["skip", "resample"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError("3.jpg is gone"), "missing"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "3.jpg"), "missing"),
        (PermissionError(errno.EACCES, "Permission denied", "3.jpg"), "missing"),
        # Pillow's, of a picture that it cannot read.
        (UnidentifiedImageError("cannot identify image file"), "invalid"),
        (ValueError("row 3 is odd"), "invalid"),
        (DecodeError("cut off", "corrupt"), "corrupt"),
    ],
    ids=repr,
)
def test_what_a_data_set_raises_has_a_status(tokenizer, error, status, on_error):
    class Faulty(list):
        def __getitem__(self, index):
            if index == 3:
                raise error
            return super().__getitem__(index)

    loader = make(tokenizer, Faulty(RECORDS[:8]), on_error=on_error)
    batches = list(loader)
    assert sum(map(len, batches)) == 7 + (on_error == "resample")
    (bad,) = loader.skipped
    assert (bad.key, bad.status) == ("#3", status)
    assert bad.reason == f"{type(error).__name__}: {error}"
    assert loader.statuses[status] >= 1


@pytest.mark.filterwarnings("ignore:record")
def test_a_loader_without_any_good_record_gives_up(tokenizer):
    records = broken(6, *range(6))
    with pytest.raises(ValueError, match=r"none.*10.*record"):
        list(make(tokenizer, records, on_error="resample"))


@pytest.mark.filterwarnings("ignore:record")
def test_a_rank_without_a_batch_is_an_error(tokenizer):
    """Others would wait for it without end; one process alone goes on."""
    records = broken(12, 0, 1, 2, 3)
    ranks = [
        make(tokenizer, records, on_error="skip", batch_size=4, rank=rank, world_size=2)
        for rank in range(2)
    ]
    with pytest.raises(ValueError, match=r"sample.*batch.*4"):
        list(ranks[0])
    assert [len(batch) for batch in ranks[1]] == [4, 2]
    assert [len(batch) for batch in make(tokenizer, records, on_error="skip")] == [4, 4]


def test_states_of_records_that_cannot_be_read_can_be_saved(tokenizer):
    class Faulty(list):
        def __getitem__(self, index):
            if index == 0:
                raise ValueError("row 0 is broken")
            return super().__getitem__(index)

    loader = make(tokenizer, Faulty(RECORDS), on_error="skip")
    with pytest.warns(RuntimeWarning, match=r"row 0.*broken"):
        next(iter(loader))
    state = loader.state_dict()
    other = make(tokenizer, Faulty(RECORDS), on_error="skip")
    other.load_state_dict(state)
    assert sum(len(batch) for batch in other) == len(RECORDS) - 4
    with pytest.raises(ValueError, match="state's fingerprint"):
        make(tokenizer, RECORDS).load_state_dict(state)


@pytest.mark.filterwarnings("ignore:record")
def test_what_became_of_samples_is_counted(tokenizer):
    records = broken(8, 1)
    records[3] = record(3, images=("no/such.jpg",))
    records[4] = record(4, boxes_xyxy=((0.0, 0.0, 999.0, 5.0),))
    loader = make(tokenizer, records, "grounding", on_error="skip")
    batches = list(loader)
    assert loader.statuses == {"ok": 5, "corrupt": 1, "missing": 1, "invalid": 1}
    assert all(batch.statuses == ("ok",) * len(batch) for batch in batches)


@pytest.mark.filterwarnings("ignore:record")
def test_batches_shrink_to_the_pictures_that_are_left(tokenizer):
    """A bad picture that would have been the largest leaves no padding behind."""
    large = png(1, 8, 64)
    records = [record(0), record(1, images=(large[:-30],), boxes_xyxy=(), char_spans=()), record(2)]
    transform = ImageTransform.shorter_side([16], 512, divisor=1)
    loader = make(tokenizer, records, "grounding", on_error="skip", transform=transform)
    (batch,) = loader
    (expected,) = make(tokenizer, [records[0], records[2]], "grounding", transform=transform)
    assert batch.keys == ("r0", "r2")
    assert batch.images.shape == expected.images.shape
    assert torch.equal(batch.images, expected.images)


def test_memory_is_used_again_and_never_under_a_reader(tokenizer):
    loader = make(tokenizer, batch_size=2, prefetch=1)
    kept, copies = [], []
    for number, batch in enumerate(loader):
        if number % 3 == 0:
            kept.append(batch.images)
            copies.append(batch.images.clone())
        del batch
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    del kept
    gc.collect()
    one = 2 * 3 * 16 * 16 * 4
    held, peak = loader.image_bytes
    assert one <= held <= 3 * (one + 128)
    # Those kept, those made ahead and the one in use; not all twelve.
    assert peak <= 8 * (one + 128)


def test_a_closed_loader_starts_anew(tokenizer):
    with make(tokenizer) as loader:
        first = keys(loader)
    assert keys(loader) == first
