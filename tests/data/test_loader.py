"""The loader: what a batch holds, and that it depends on nothing but the seed and the sample."""

import itertools
import linecache

import pytest
import torch

from fiber import DecodeError
from fiber.data import (
    GroundingBatch,
    ImageTextBatch,
    ImageTransform,
    QuestionBatch,
    ReasoningBatch,
    Tokenizer,
)
from tests.data.loader_records import CROP, RECORDS, TEXT, make, png, record, samples, take

# Records that are broken on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(skipped|replaced) record:RuntimeWarning"),
    pytest.mark.oldest,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


# Batches


def test_no_records(tokenizer):
    loader = make(tokenizer, [])
    assert len(loader) == 0 and list(loader.epoch()) == []
    with pytest.raises(ValueError, match=r"records.*1"):
        loader.stream()


def test_image_text_batch(tokenizer):
    loader = make(tokenizer, batch_size=10, transform=ImageTransform.squash(16))
    batches = list(loader.epoch())
    assert [len(batch) for batch in batches] == [10, 10, 3] and len(loader) == 3
    batch = batches[0]
    assert isinstance(batch, ImageTextBatch)
    assert batch.keys == tuple(f"r{i}" for i in range(10))
    assert batch.images.shape == (10, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.image_sizes.tolist() == [[16, 16]] * 10
    assert batch.original_sizes.tolist() == [[24, 32]] * 10
    lengths = [len(tokenizer.encode(r.text, max_tokens=12)[0]) for r in RECORDS[:10]]
    assert batch.text_mask.sum(1).tolist() == lengths and batch.token_ids.shape[1] == max(lengths)
    assert (batch.token_ids[~batch.text_mask] == 1).all()
    assert (batch.masked_ids[~batch.text_mask] == 1).all()
    assert (batch.mlm_labels[~batch.text_mask] == -100).all()
    picked = batch.mlm_labels != -100
    assert (batch.mlm_labels[picked] == batch.token_ids[picked]).all()
    assert (batch.masked_ids[~picked] == batch.token_ids[~picked]).all()
    assert len(set(batch.image_ids.tolist())) == 10


def test_a_batch_tells_the_records_of_its_samples(tokenizer):
    loader = make(tokenizer, shuffle=True)
    seen = [
        (key, sample)
        for batch in take(loader.stream(), 8)
        for key, sample in zip(batch.keys, batch.samples, strict=True)
    ]
    assert all(key == f"r{index}" for key, (_, index) in seen)
    assert [epoch for _, (epoch, _) in seen] == [number // len(RECORDS) for number in range(32)]


@pytest.mark.parametrize("on_error", ["skip", "resample"])
def test_samples_of_bad_records_are_not_listed(tokenizer, on_error):
    """One record cannot be read, and the images of two others are broken."""

    class Rows:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 1:
                raise ValueError("row 1")
            return record(index, images=(b"no",)) if index in (3, 4) else record(index)

    loader = make(tokenizer, Rows(), on_error=on_error, batch_size=8)
    with pytest.warns(RuntimeWarning):
        (batch,) = take(loader.epoch(), 1)
    assert batch.keys == tuple(f"r{index}" for _, index in batch.samples)
    good = [(0, index) for index in (0, 2, 5, 6, 7)]
    if on_error == "skip":
        assert list(batch.samples) == good
    else:
        assert len(batch.samples) == 8 and set(batch.samples) == set(good)


def test_the_same_picture_has_the_same_number(tokenizer):
    records = [record(i, image_id=f"picture {i // 2}") for i in range(6)]
    ids = next(make(tokenizer, records, batch_size=6).epoch()).image_ids.tolist()
    assert ids[0::2] == ids[1::2] and len(set(ids)) == 3
    # In another process too, since ranks compare them.
    assert next(make(tokenizer, records, batch_size=6).epoch()).image_ids.tolist() == ids


def test_masking_can_be_none_or_all(tokenizer):
    (batch,) = make(tokenizer, RECORDS[:4], mlm_probability=0.0).epoch()
    assert (batch.mlm_labels == -100).all()
    (batch,) = make(tokenizer, RECORDS[:4], mlm_probability=1.0).epoch()
    special = batch.token_ids <= 3
    assert torch.equal(batch.mlm_labels != -100, ~special)


def test_empty_text_and_one_pixel(tokenizer):
    tiny = record(0, text="", images=(png(0, 1, 1),), char_spans=(), boxes_xyxy=())
    for transform in (
        CROP,
        ImageTransform.squash(8),
        ImageTransform.shorter_side([8], 16, flip_probability=0.5),
    ):
        for batch_type in ("image_text", "grounding"):
            (batch,) = make(tokenizer, [tiny], batch_type, transform=transform).epoch()
            assert batch.token_ids.tolist() == [[0, 2]]
            assert batch.images.isfinite().all()


@pytest.mark.parametrize("batch_type", ["image_text", "question"])
def test_ten_thousand_words_are_cut(tokenizer, batch_type):
    long = record(0, text="cup " * 10_000, char_spans=(), boxes_xyxy=())
    (batch,) = make(tokenizer, [long, record(1)], batch_type).epoch()
    assert batch.token_ids.shape == (2, 12)
    # </s> stays at the end of what is left.
    assert (batch.token_ids[0] == 2).tolist() == [False] * 11 + [True]
    assert batch.text_mask[0].all()


def test_captions_of_special_tokens_have_no_word_to_mask(tokenizer):
    special = record(0, text="<s></s><pad>", char_spans=(), boxes_xyxy=())
    (batch,) = make(tokenizer, [special], mlm_probability=1.0).epoch()
    assert batch.token_ids.tolist() == [[0, 0, 2, 1, 2]]
    assert (batch.mlm_labels == -100).all()
    assert torch.equal(batch.masked_ids, batch.token_ids)


def test_question_batch(tokenizer):
    loader = make(tokenizer, batch_type="question", answers=("no", "yes", "left"), batch_size=3)
    batch = next(loader.epoch())
    assert isinstance(batch, QuestionBatch)
    # No "right" among the answers: a mirrored picture keeps "left".
    assert batch.targets.tolist() == [[0.0, 0.5, 1.0]] * 3
    (batch,) = make(tokenizer, [record(0, answers=None)], "question").epoch()
    assert batch.targets.shape == (1, 0)
    with pytest.raises(ValueError, match="record 'r0': answers: missing"):
        list(make(tokenizer, [record(0, answers=None)], "question", answers=("no",)).epoch())


def test_mirrored_questions_have_mirrored_answers(tokenizer):
    flip = ImageTransform.shorter_side([16], 32, flip_probability=0.5)
    records = [record(i, text=TEXT) for i in range(30)]
    loader = make(
        tokenizer, records, "question", answers=("left", "right"), transform=flip, max_tokens=40
    )
    seen = set()
    for batch in loader.epoch():
        for ids, target in zip(batch.token_ids, batch.targets, strict=True):
            mirrored = tokenizer.decode(ids.tolist()).startswith("the right cup")
            assert target.tolist() == ([0.0, 1.0] if mirrored else [1.0, 0.0])
            seen.add(mirrored)
    assert seen == {True, False}


def test_reasoning_batch(tokenizer):
    records = [record(i, images=(png(i), png(i + 100, 40, 20))) for i in range(3)]
    (batch,) = make(tokenizer, records, "reasoning").epoch()
    assert isinstance(batch, ReasoningBatch)
    assert batch.images.shape == (3, 2, 3, 16, 16)
    assert batch.truths.tolist() == [1, 0, 1]
    assert batch.original_sizes.tolist() == [[24, 32]] * 3
    assert not torch.equal(batch.images[:, 0], batch.images[:, 1])
    with pytest.raises(ValueError, match=r"reasoning.*shorter_side"):
        make(tokenizer, records, "reasoning", transform=ImageTransform.shorter_side([8], 16))


def test_grounding_batch(tokenizer):
    text = "the left cup"
    records = [
        record(0, images=(png(0, 20, 30),), text=text, boxes_xyxy=((3, 2, 6, 4),) * 2,
               char_spans=(((9, 12),), ((0, 3), (9, 12)))),
        record(1, images=(png(1, 40, 20),), text="a dog", boxes_xyxy=(), char_spans=()),
        record(2, images=(png(2, 20, 20),), text="dog", boxes_xyxy=((1, 2, 20, 20.5),),
               char_spans=(((0, 3),),)),
    ]  # fmt: skip
    transform = ImageTransform.shorter_side([40], 100)
    (batch,) = make(tokenizer, records, "grounding", transform=transform).epoch()
    assert isinstance(batch, GroundingBatch)
    assert batch.image_sizes.tolist() == [[40, 60], [80, 40], [40, 40]]
    assert batch.images.shape == (3, 3, 96, 64)
    assert (batch.images[0, :, 40:] == 0).all() and (batch.images[0, :, :, 60:] == 0).all()
    assert batch.boxes_per_image.tolist() == [2, 0, 1]
    assert batch.boxes_xyxy.tolist() == [[6, 4, 12, 8]] * 2 + [[2, 4, 40, 40]]
    ids, offsets = tokenizer.encode(text)
    cup = [9 <= start < end for start, end in offsets]
    the = [end > start and end <= 3 for start, end in offsets]
    padding = [False] * (batch.token_ids.shape[1] - len(ids))
    assert batch.positive_map[0].tolist() == cup + padding
    assert (
        batch.positive_map[1].tolist() == [a or b for a, b in zip(cup, the, strict=True)] + padding
    )


def test_grounding_without_any_box(tokenizer):
    (batch,) = make(tokenizer, [record(0, boxes_xyxy=(), char_spans=())], "grounding").epoch()
    assert batch.boxes_xyxy.shape == (0, 4) and batch.boxes_per_image.tolist() == [0]
    assert batch.positive_map.shape == (0, batch.token_ids.shape[1])


def test_boxes_that_a_crop_cuts_away_are_counted(tokenizer):
    corners = ((0, 0, 4, 4), (28, 20, 32, 24))
    records = [record(i, boxes_xyxy=corners, char_spans=(((0, 3),),) * 2) for i in range(20)]
    loader = make(tokenizer, records, "grounding")
    kept = sum(int(batch.boxes_per_image.sum()) for batch in loader.epoch())
    assert 0 < loader.cropped_boxes == 40 - kept < 40


# Order and draws


def test_epochs_without_shuffling_are_in_order(tokenizer):
    keys = [key for batch in make(tokenizer).epoch() for key in batch.keys]
    assert keys == [r.key for r in RECORDS]


def test_every_epoch_has_each_record_once_in_its_own_order(tokenizer):
    loader = make(tokenizer, shuffle=True)
    orders = [[key for batch in loader.epoch(number) for key in batch.keys] for number in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(r.key for r in RECORDS)
    assert orders[0] != [r.key for r in RECORDS]
    streamed = [key for batch in take(loader.stream(), 12) for key in batch.keys]
    assert streamed[:46] == orders[0] + orders[2]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads_change_nothing(tokenizer, threads):
    loader = make(tokenizer, shuffle=True, threads=threads, prefetch=threads)
    expected = samples(take(make(tokenizer, shuffle=True, threads=3, seed=0).stream(), 9))
    assert samples(take(loader.stream(), 9)) == expected


def test_seeds_and_epochs_change_the_draws(tokenizer):
    same = [RECORDS[0]] * 4
    first, second = (samples(make(tokenizer, same, seed=seed).epoch()) for seed in (0, 1))
    assert len({row[1] for row in first + second}) == 8
    third = samples(make(tokenizer, same).epoch(1))
    assert {row[1] for row in first}.isdisjoint(row[1] for row in third)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_process_sees(tokenizer, world_size):
    """Steps cross the end of the epoch of 23 records, and its draws change there."""
    one = make(tokenizer, shuffle=True, batch_size=2 * world_size)
    ranks = [
        make(tokenizer, shuffle=True, batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = zip(*(take(loader.stream(), 10) for loader in ranks), strict=True)
    assert samples(itertools.chain(*steps)) == samples(take(one.stream(), 10))


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_an_epoch(tokenizer, shuffle):
    whole = samples(make(tokenizer, shuffle=shuffle).epoch(3))
    loaders = [make(tokenizer, shuffle=shuffle, rank=r, world_size=4) for r in range(4)]
    parts = [samples(loader.epoch(3)) for loader in loaders]
    assert list(itertools.chain(*parts)) == whole
    assert [len(part) for part in parts] == [5, 6, 6, 6]
    assert [len(loader) for loader in loaders] == [2, 2, 2, 2]


@pytest.mark.parametrize("chosen", [slice(0), slice(1, None, 3), slice(9, None)])
def test_chosen_batches_of_an_epoch_are_those_of_the_whole(tokenizer, chosen):
    whole, loader = (make(tokenizer, shuffle=True, mlm_probability=0.5) for _ in range(2))
    expected, found = list(whole.epoch(1))[chosen], list(loader.epoch(1, chosen))
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    for batch, same in zip(found, expected, strict=True):
        assert torch.equal(batch.images, same.images)
        assert torch.equal(batch.masked_ids, same.masked_ids)
    assert sum(loader.statuses.values()) == sum(map(len, found))  # The others are not read.


@pytest.mark.parametrize("unit", ["token", "word", "position"])
@pytest.mark.parametrize("done", [1, 5, 6, 11])
def test_a_resumed_stream_goes_on_where_it_stopped(tokenizer, done, unit):
    options = {"shuffle": True, "mlm_unit": unit, "mlm_probability": 0.5}
    whole = samples(take(make(tokenizer, **options).stream(), 14))
    resumed = make(tokenizer, **options).stream(start=done * 4)
    assert samples(take(resumed, 14 - done)) == whole[done * 4 :]


# Faults


def test_a_fault_comes_after_the_batches_before_it(tokenizer, tmp_path):
    missing = tmp_path / "missing.jpg"
    records = [*RECORDS[:6], record(6, images=(missing,)), *RECORDS[7:]]
    batches = make(tokenizer, records).epoch()
    assert next(batches).keys == ("r0", "r1", "r2", "r3")
    with pytest.raises(FileNotFoundError, match="record 'r6'") as caught:
        next(batches)
    assert caught.value.filename == str(missing)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", png(0)[:-30]], ids=["empty", "jpeg", "png"]
)
def test_a_broken_picture_names_its_record_and_file(tokenizer, tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"^record 'r1': .*x\.jpg: "):
        list(make(tokenizer, [RECORDS[0], record(1, images=(str(path),))]).epoch())


def test_a_box_outside_its_picture_names_both(tokenizer):
    outside = record(1, boxes_xyxy=((40.0, 2.0, 50.0, 22.0),))
    expected = r"record 'r1': box 0 is \(40, 2, 50, 22\).* no area .* height 24 and width 32 pixels"
    with pytest.raises(ValueError, match=expected):
        list(make(tokenizer, [RECORDS[0], outside], "grounding").epoch())
    too_far = record(1, boxes_xyxy=((20.0, 2.0, 50.0, 22.0),))
    expected = (
        r"record 'r1': box 0 is \(20, 2, 50, 22\).* 18 pixels outside the image of"
        " height 24 and width 32 pixels; expected at most 1"
    )
    with pytest.raises(ValueError, match=expected):
        list(make(tokenizer, [RECORDS[0], too_far], "grounding").epoch())


def test_a_picture_of_another_size_than_annotated_is_named(tokenizer):
    right, wrong = record(0, image_size=(24, 32)), record(1, image_size=(32, 24))
    list(make(tokenizer, [right], "grounding").epoch())
    message = r"record 'r1': image_size: .*32 x 24 pixels .* the image has 24 x"
    with pytest.raises(ValueError, match=message):
        list(make(tokenizer, [right, wrong], "grounding").epoch())


def test_bad_samples_can_be_left_out(tokenizer):
    records = list(RECORDS[:10])
    records[2] = record(2, images=(b"",))
    records[5] = record(5, images=("no/such.jpg",))
    records[8:] = [record(8, images=(b"",)), record(9, images=(b"",))]
    loader = make(tokenizer, records, on_error="skip")
    with pytest.warns(RuntimeWarning, match=r"record 'r2'.*empty file") as told:
        batches = list(loader.epoch())
    assert len(told) == 1
    # Nothing is left of the last batch.
    assert [batch.keys for batch in batches] == [("r0", "r1", "r3"), ("r4", "r6", "r7")]
    assert batches[0].images.shape[0] == 3
    assert [bad.key for bad in loader.skipped] == ["r2", "r5", "r8", "r9"]
    assert loader.skipped[1].reason.startswith("no/such.jpg: No such file")
    # The other samples are what they were.
    whole = {row[0]: row for row in samples(make(tokenizer, RECORDS[:10]).epoch())}
    assert all(row == whole[row[0]] for row in samples(batches))


@pytest.mark.filterwarnings("ignore:record")
def test_a_stream_does_not_leave_out_whole_batches(tokenizer):
    records = [record(i, images=(b"",)) for i in range(4)]
    with pytest.raises(ValueError, match=r"4.*record 'r3'"):
        next(make(tokenizer, records, on_error="skip").stream())


class Failing(list):
    """A record set that fails at one index."""

    def __init__(self, records, index, error):
        super().__init__(records)
        self.index, self.error = index, error

    def __getitem__(self, index):
        if index == self.index:
            raise self.error
        return super().__getitem__(index)


def test_faults_of_the_record_set_come_through_as_they_are(tokenizer):
    error = LookupError("the disk is gone")
    batches = make(tokenizer, Failing(RECORDS, 9, error)).epoch()
    assert [next(batches).keys[0] for _ in range(2)] == ["r0", "r4"]
    with pytest.raises(LookupError) as caught:
        next(batches)
    assert caught.value is error
    assert any(entry.name == "__getitem__" for entry in caught.traceback)


@pytest.mark.filterwarnings("ignore:record")
def test_faulty_records_can_be_left_out_too(tokenizer):
    loader = make(tokenizer, Failing(RECORDS, 1, ValueError("no such row")), on_error="skip")
    assert next(loader.epoch()).keys == ("r0", "r2", "r3")
    assert loader.skipped == [("#1", "invalid", "ValueError: no such row")]
    loader = make(tokenizer, Failing(RECORDS, 1, LookupError("a bug")), on_error="skip")
    with pytest.raises(LookupError):
        next(loader.epoch())


@pytest.mark.parametrize("skipping", ["iterating", "epoch", "stream", "next"])
def test_the_warning_points_at_the_line_that_iterates(tokenizer, skipping):
    for broken in (record(0, images=(b"",)), None):
        # The second one is found by the record set, not by the threads.
        records = [broken, *RECORDS[1:3]] if broken else Failing(RECORDS[:3], 0, ValueError("no"))
        loader = make(tokenizer, records, on_error="skip")
        batches = getattr(loader, skipping)() if skipping in ("epoch", "stream") else loader
        with pytest.warns(RuntimeWarning, match="record") as told:
            if skipping == "next":
                next(iter(batches))
            else:
                for _ in batches:
                    break
        assert told[0].filename == __file__
        line = linecache.getline(__file__, told[0].lineno).strip()
        assert line in ("for _ in batches:", "next(iter(batches))")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size.*0.*1"),
        ({"seed": 1 << 64}, r"seed.*18446744073709551616.*2 .. 64"),
        ({"mlm_seed": -1}, r"mlm_seed is -1; expected 0"),
        ({"mlm_seed": 1 << 64}, r"mlm_seed.*18446744073709551616.*2 .. 64"),
        ({"mlm_unit": "letter"}, r"mlm_unit is 'letter'; expected 'token', 'word' or 'position'"),
        ({"prefetch": 0}, r"prefetch.*0"),
        ({"threads": -1}, r"threads.*-1"),
        ({"image_dtype": "int8"}, r"image_dtype.*'int8'.*'float32'.*'float16'"),
        ({"max_tokens": -1}, r"max_tokens.*-1.*1"),
        ({"rank": 2, "world_size": 2}, r"rank.*2.*world_size .2."),
        (
            {"batch_size": 2, "world_size": 3, "split_batches": True},
            r"batch_size is 2; with split_batches, expected world_size \(3\) or more",
        ),
        ({"on_error": "ignore"}, r"on_error.*'ignore'"),
        ({"max_tokens": 1}, r"max_tokens: 1.*2"),
        ({"mlm_probability": 1.5}, r"mlm_probability: 1.5.*0.*1"),
        ({"answers": ("yes", "no", "yes")}, r"answers.*'yes'"),
        ({"batch_type": "caption"}, "batch_type: 'caption'"),
    ],
)
def test_wrong_arguments_are_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        make(tokenizer, **options)
    with pytest.raises(ValueError, match=r"start.*-1"):
        make(tokenizer).stream(start=-1)
