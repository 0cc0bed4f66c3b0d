"""The collator: batches in one call, and inside torch's own loader."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader

from fiber import DecodeError
from fiber.data import Collator, ColorJitter, ImageTransform, RandAugment, Tokenizer
from tests.data.loader_records import CROP, RECORDS, TEXT, make, record, samples

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def collator(tokenizer, batch_type="image_text", **options) -> Collator:
    defaults = {"tokenizer": tokenizer, "transform": CROP, "max_tokens": 12}
    return Collator(batch_type, **{**defaults, **options})


def test_no_records_make_an_empty_batch(tokenizer):
    assert len(collator(tokenizer)([])) == 0


def test_a_batch_is_that_of_the_loader(tokenizer):
    expected = next(make(tokenizer, seed=5, batch_size=8).epoch(3))
    found = collator(tokenizer, seed=5)(RECORDS[:8], epoch=3)
    assert samples([found]) == samples([expected])


def test_draws_follow_torchs_generator(tokenizer):
    collate = collator(tokenizer)
    torch.manual_seed(7)
    first, second = collate(RECORDS[:4]), collate(RECORDS[:4])
    torch.manual_seed(7)
    again = collate(RECORDS[:4])
    assert samples([first]) == samples([again]) != samples([second])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_torchs_loader_collate(tokenizer, start):
    squash = ImageTransform.squash(16)
    collate = collator(tokenizer, "grounding", transform=squash)
    loader = TorchLoader(
        RECORDS[:10], batch_size=4, num_workers=2, collate_fn=collate, multiprocessing_context=start
    )
    batches = list(loader)
    expected = list(make(tokenizer, RECORDS[:10], "grounding", transform=squash))
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys == other.keys
        for name in ("images", "token_ids", "boxes_xyxy", "positive_map"):
            assert torch.equal(getattr(batch, name), getattr(other, name))


def test_a_copy_works_alone(tokenizer):
    collate = pickle.loads(pickle.dumps(collator(tokenizer)))
    assert samples([collate(RECORDS[:2], epoch=0)]) == samples(
        [collator(tokenizer)(RECORDS[:2], epoch=0)]
    )


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform.squash(8, filter="bilinear", rand_augment=RandAugment(num_ops=2)),
        ImageTransform.random_resized_crop(8, scale=(0.2, 0.9), flip_probability=0.25),
        ImageTransform.squash(8, color_jitter=ColorJitter(hue=(-0.1, 0.2), contrast=(0.5, 1.5))),
        ImageTransform.center_crop(8, alpha="premultiply", rand_augment=RandAugment()),
        ImageTransform.shorter_side([8, 9], 20, crop_probability=0.5, divisor=4, mean=(0, 0, 0)),
    ],
)
def test_transforms_are_copied_whole(transform):
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    "part",
    [
        ColorJitter(),
        ColorJitter(hue=(-0.1, 0.2), contrast=(0.5, 1.5)),
        RandAugment(),
        RandAugment(policy="meter", magnitude=22, operations=["Solarize"]),
        RandAugment(num_ops=3, magnitude=2.5, probability=0.1, operations=["Rotate", "Equalize"]),
    ],
    ids=repr,
)
def test_parts_of_transforms_are_copied_whole(part):
    assert pickle.loads(pickle.dumps(part)) == part


def test_bad_records_are_named(tokenizer):
    with pytest.raises(DecodeError, match=r"record 'r1'.*empty file"):
        collator(tokenizer)([RECORDS[0], record(1, images=(b"",))])
    with pytest.raises(ValueError, match=r"on_error.*'resample'.*DataLoader"):
        collator(tokenizer, on_error="resample")([record(1, images=(b"",))])
    kept = collator(tokenizer, on_error="skip")([RECORDS[0], record(1, images=(b"",))])
    assert kept.keys == ("r0",)
    assert [(bad.key, bad.status) for bad in kept.skipped] == [("r1", "corrupt")]
    assert "empty file" in kept.skipped[0].reason


def test_what_is_no_record_is_named(tokenizer):
    plain = {"key": "a", "images": (b"",), "text": "a cup"}
    for place, records in enumerate(([plain], [RECORDS[0], plain])):
        message = rf"record {place} is a dict; expected fiber\.data\.Record"
        with pytest.raises(TypeError, match=message):
            collator(tokenizer)(records)
        with pytest.raises(TypeError, match=message):
            list(make(tokenizer, records, on_error="skip"))
