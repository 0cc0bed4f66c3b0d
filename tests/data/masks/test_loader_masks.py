"""Masks through the loader: bit for bit as pycocotools decodes and Pillow resizes them."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.data import (
    Collator,
    DataLoader,
    IdMap,
    ImageTransform,
    PackedMask,
    Polygons,
    Record,
    Rle,
    SegmentationBatch,
    Tokenizer,
    decode_masks,
    encode_rle,
)
from fiber.data.collate import transform_of
from fiber.data.masks.mask import count_masks
from tests.data.masks.generated_masks import KINDS, MASKS, masks_of, png, records
from tests.data.masks.reference import ImageRng, decoded, sample, transformed

# pycocotools converts arrays as NumPy 1 did.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEED = 5
#: Records of each transform: 2,000 masks in all.
COUNT = 50
TRANSFORMS = {
    "scale_jitter": ImageTransform.scale_jitter(61),
    "random_resized_crop": ImageTransform.random_resized_crop(40, scale=(0.3, 1.0)),
    "shorter_side": ImageTransform.shorter_side(
        [30, 47], 90, crop_probability=0.5, flip_probability=0.5, divisor=16
    ),
    "squash": ImageTransform.squash(64),
    "center_crop": ImageTransform.center_crop(33),
}
RECORDS = records(COUNT)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the left dog", "a cat and the right dog"] * 3, 300)


def loader_of(tokenizer, transform, own=RECORDS, **options) -> DataLoader:
    options = {"batch_size": 7, "max_tokens": 16, "seed": SEED, "threads": 2, **options}
    return DataLoader(own, "segmentation", tokenizer=tokenizer, transform=transform, **options)


def same(one: SegmentationBatch, other: SegmentationBatch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_masks_are_those_of_pycocotools_and_pillow(tokenizer, name):
    transform = TRANSFORMS[name]
    number = emptied = flipped = 0
    loader = loader_of(tokenizer, transform)
    for batch in loader.epoch(3):
        assert isinstance(batch, SegmentationBatch)
        padded = tuple(batch.images.shape[-2:])
        assert batch.masks.shape[1:] == (padded[0], -(-padded[1] // 8))
        # No bits behind the last pixel of a row.
        tail = np.unpackbits(batch.masks.numpy(), axis=-1)[..., padded[1] :]
        assert not tail.any()
        for row in range(len(batch)):
            record, rng = RECORDS[number], ImageRng(SEED, 3, number)
            number += 1
            size = record.image_size
            sampled = sample(transform.describe(), size, rng)
            flipped += sampled.flip
            assert batch.image_sizes[row].tolist() == list(sampled.window[2:])
            every = [transformed(each, sampled, padded) for each in decoded(record.masks, size)]
            crowd = record.mask_crowd or (False,) * MASKS
            kept = [index for index in range(MASKS) if not crowd[index]]
            expected = np.array([every[index] for index in kept])
            assert np.array_equal(batch.masks_of(row).numpy(), expected), record.key
            emptied += sum(not each.any() for each in expected)
            labels = [record.mask_labels[index] for index in kept]
            own = batch.rows(slice(row, row + 1))
            assert own.mask_labels.tolist() == labels
            unions = [np.any([every[i] for i in own], 0) for own in record.phrase_masks]
            assert np.array_equal(batch.phrase_masks_of(row).numpy(), np.array(unions))
            texts = [tokenizer.decode(ids.tolist()) for ids in own.phrase_ids]
            left, right = ("right", "left") if sampled.flip else ("left", "right")
            assert texts[0].strip() == f"the {left} dog"
            assert texts[1].strip() == f"a cat and the {right} dog"
            lengths = [len(tokenizer.encode(text)[0]) for text in record.phrases]
            assert own.phrase_mask.sum(1).tolist() == lengths
    assert number == COUNT and loader.emptied_masks == emptied
    if transform.describe()["flip_probability"]:
        assert 0 < flipped < COUNT


def test_batches_depend_on_nothing_but_the_seed(tokenizer):
    transform = TRANSFORMS["scale_jitter"]
    one = list(loader_of(tokenizer, transform, threads=1, shuffle=True))
    four = loader_of(tokenizer, transform, threads=4, shuffle=True)
    assert all(map(same, one, four))
    resumed = loader_of(tokenizer, transform, threads=4, shuffle=True, batch_size=7)
    # One batch of the epoch was taken.
    iterator = iter(resumed)
    next(iterator)
    state = resumed.state_dict()
    iterator.close()
    again = loader_of(tokenizer, transform, threads=1, shuffle=True)
    again.load_state_dict(state)
    rest = list(again)
    assert len(rest) == len(one) - 1 and all(map(same, rest, one[1:]))
    shorter = TRANSFORMS["shorter_side"]
    pairs = zip(
        loader_of(tokenizer, shorter, threads=1),
        loader_of(tokenizer, shorter, threads=4),
        strict=True,
    )
    assert all(same(a, b) for a, b in pairs)


def test_the_padding_of_an_image_is_normalized_gray(tokenizer):
    transform = ImageTransform.scale_jitter(64, scale=(0.5, 0.5), padding=128)
    batch = next(loader_of(tokenizer, transform, image_dtype="uint8").epoch())
    for image, (height, width) in zip(batch.images, batch.image_sizes.tolist(), strict=True):
        assert max(height, width) == 32
        assert (image[:, height:] == 128).all() and (image[:, :, width:] == 128).all()
    normal = next(loader_of(tokenizer, transform).epoch())
    corner = (torch.tensor([128 / 255] * 3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(normal.images[:, :, -1, -1], corner, atol=1e-6)
    assert transform_of(transform.describe()) == transform
    assert pickle.loads(pickle.dumps(transform)) == transform
    with pytest.raises(ValueError, match="scale_jitter cannot be used with boxes"):
        DataLoader(
            [], "grounding", tokenizer=tokenizer, transform=transform, max_tokens=8, batch_size=1
        )
    for options, name in (
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"padding": 256}, "padding"),
        ({"size": 0}, "size"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            ImageTransform.scale_jitter(**{"size": 8, **options})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_orientation_turns_masks_with_their_image(tokenizer, kind, orientation):
    size, rng = (20, 31), np.random.default_rng(orientation)
    pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = orientation
    record = Record(
        key="a",
        images=(png(pixels, exif=exif),),
        text="",
        labels=("a",),
        masks=masks_of(kind, rng, size),
        mask_labels=(0,) * MASKS,
    )
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    transform = ImageTransform.shorter_side([29], 60, flip_probability=0.5, divisor=8)
    loader = loader_of(tokenizer, transform, [record] * 3, apply_orientation=True)
    (batch,) = loader.epoch()
    upright = size if orientation < 5 else size[::-1]
    padded = tuple(batch.images.shape[-2:])
    for row in range(3):
        sampled = sample(transform.describe(), upright, ImageRng(SEED, 0, row))
        for found, mask in zip(batch.masks_of(row), decoded(record.masks, size), strict=True):
            if orientation > 1:
                image = Image.fromarray(mask.astype(np.uint8) * 255)
                mask = np.asarray(image.transpose(turned[orientation])) > 0
            assert np.array_equal(found.numpy(), transformed(mask, sampled, padded))


def test_decoding_and_encoding():
    for index, record in enumerate(RECORDS[: 2 * len(KINDS)]):
        expected = np.array(decoded(record.masks, record.image_size))
        found = decode_masks(record.masks, *record.image_size)
        assert found.dtype == bool and np.array_equal(found, expected), index
        encoded = tuple(map(encode_rle, expected))
        assert np.array_equal(decode_masks(encoded, *record.image_size), expected)
    assert decode_masks((), 3, 5).shape == (0, 3, 5)
    assert encode_rle(np.ones((2, 3))) == Rle("06", (2, 3))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        encode_rle(np.ones(3))


def test_a_batch_without_masks(tokenizer):
    plain = dataclasses.replace(
        RECORDS[0], masks=(), mask_labels=(), mask_crowd=(), phrases=(), phrase_masks=()
    )
    (batch,) = loader_of(tokenizer, ImageTransform.squash(10), [plain, plain]).epoch()
    assert batch.masks.shape == (0, 10, 2) and batch.phrase_ids.shape == (0, 0)
    assert batch.masks_per_image.tolist() == [0, 0] and batch.masks_of(1).shape == (0, 10, 10)
    assert "masks=uint8(0, 10, 2)" in repr(batch)
    assert list(loader_of(tokenizer, ImageTransform.squash(10), []).epoch()) == []


def test_rows_of_a_batch(tokenizer):
    (batch,) = loader_of(tokenizer, TRANSFORMS["squash"], RECORDS[:5], batch_size=5).epoch()
    some = batch.rows(slice(1, 4))
    assert len(some) == 3
    for row in range(3):
        assert torch.equal(some.masks_of(row), batch.masks_of(row + 1))
        assert torch.equal(some.phrase_masks_of(row), batch.phrase_masks_of(row + 1))
    assert batch.rows(slice(2, 2)).masks.shape[0] == 0


def test_classes_that_an_image_lacks(tokenizer):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[:, 3:] = 7
    own = IdMap(png(pixels), (3, 7), coding="gray", may_lack=True)
    record = Record(
        key="a",
        images=(png(np.zeros((4, 6, 3), np.uint8)),),
        text="",
        labels=("sky", "sea"),
        masks=own,
        mask_labels=(0, 1),
        phrases=("the sky", "the sea"),
        phrase_masks=((0,), (1,)),
    )
    (batch,) = loader_of(tokenizer, ImageTransform.squash(6), [record]).epoch()
    assert batch.mask_labels.tolist() == [1]
    assert batch.masks_of(0)[0].float().mean() == 0.5
    assert batch.phrase_masks_of(0).any((1, 2)).tolist() == [False, True]


def wide_png(width: int, bits: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((4, width), np.uint16)).save(out, "PNG", bits=bits)
    return out.getvalue()


BAD = {
    "another size": (Rle((24,), (6, 4)), "mask 0 has 6 x 4 pixels .* the image has 4 x 6"),
    "too short": (Rle((20,), (4, 6)), "mask 0 is too short: its runs have 20 of the 24"),
    "too long": (Rle((20, 5), (4, 6)), "mask 0 is too long"),
    "negative": (Rle((20, -1, 5), (4, 6)), "mask 0 has a run of -1"),
    "negative text": (Rle("1O", (4, 6)), "mask 0 has a run of -1"),
    "no text": (Rle(b"1 4", (4, 6)), "mask 0 has byte 32 at 1"),
    "cut text": (Rle("h", (4, 6)), "mask 0 ends within a run"),
    "two points": (Polygons(((1.0, 1.0, 3.0, 3.0),)), "mask 0 has polygon 0 of 4 numbers"),
    "odd": (Polygons(((1.0, 1.0, 3.0, 3.0, 1.0, 2.0, 5.0),)), "polygon 0 of 7 numbers"),
    "no polygon": (Polygons(()), "mask 0 has no polygon"),
    "outside": (Polygons(((1.0, 1.0, 7.5, 3.0, 1.0, 2.0),)), r"the point \(7.5, 3\), outside"),
    "no number": (Polygons(((1.0, 1.0, float("nan"), 3.0, 1.0, 2.0),)), r"NaN, 3\), outside"),
    "bits": (PackedMask(b"123", (4, 6)), "mask 0 has 3 bytes of bits; expected 4"),
    "id without a mask": (IdMap(png(np.full((4, 6), 9, np.uint8)), (1,), "gray"), "has id 9 at"),
    "mask without a pixel": (
        IdMap(png(np.full((4, 6), 9, np.uint8)), (9, 8), "gray"),
        "mask 1 has id 8, of which the id map has no pixel",
    ),
    "16 bits": (IdMap(wide_png(6, 16), (1,), "gray"), "16 bits a sample"),
    "map of another size": (IdMap(png(np.zeros((6, 4), np.uint8)), (), "gray"), "id map has 6 x 4"),
    "no colors": (IdMap(png(np.zeros((4, 6), np.uint8)), ()), "gray values; expected red"),
    "colors": (IdMap(png(np.zeros((4, 6, 3), np.uint8)), (), "gray"), "has color; expected gray"),
    "no PNG": (IdMap(b"GIF89a", ()), "not a PNG"),
    "no file": (IdMap("no/such.png", ()), "no/such.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_masks_are_named_with_their_record(tokenizer, name):
    masks, problem = BAD[name]
    masks = masks if isinstance(masks, IdMap) else (masks,)
    good = dataclasses.replace(
        RECORDS[0], masks=(), mask_labels=(), mask_crowd=(), phrases=(), phrase_masks=()
    )
    bad = dataclasses.replace(
        good,
        key="bad",
        image_size=None,
        images=(png(np.zeros((4, 6, 3), np.uint8)),),
        masks=masks,
        mask_labels=(0,) * count_masks(masks),
    )
    with pytest.raises((ValueError, OSError), match=f"record 'bad': .*{problem}"):
        list(loader_of(tokenizer, ImageTransform.squash(8), [bad]).epoch())
    skipping = loader_of(tokenizer, ImageTransform.squash(8), [good, bad], on_error="skip")
    with pytest.warns(RuntimeWarning, match="skipped record 'bad'"):
        (batch,) = skipping.epoch()
    assert batch.keys == (good.key,) and batch.skipped[0].key == "bad"


def test_operations_that_move_pixels_are_rejected(tokenizer):
    from fiber.data import RandAugment

    transform = ImageTransform.squash(8, rand_augment=RandAugment())
    with pytest.raises(ValueError, match="rand_augment"):
        loader_of(tokenizer, transform)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mask_labels": ()}, "mask_labels has 0 entries for 1 masks"),
        ({"mask_labels": (2,)}, "mask_labels has 2; expected indices of 1 labels"),
        ({"mask_crowd": (True, False)}, "mask_crowd has 2 entries for 1 masks"),
        ({"phrases": ("a",)}, "phrase_masks has 0 entries for 1 phrases"),
        ({"phrases": ("a",), "phrase_masks": ((1,),)}, "phrase_masks has 1; expected indices"),
        ({"phrases": (" ",), "phrase_masks": ((),)}, "phrase 0 is ' '; expected words"),
        ({"phrases": ("\ud800",), "phrase_masks": ((),)}, "phrase 0 contains a lone surrogate"),
        ({"masks": [Rle((1,), (1, 1))]}, "masks is of type list"),
        ({"masks": ("a",)}, "mask 0 is of type str"),
        ({"masks": (Rle((1,), (0, 1)),)}, r"mask 0 has size \(0, 1\)"),
        ({"masks": (Rle([1], (1, 1)),)}, "counts of type list"),
        ({"masks": (PackedMask("a", (1, 1)),)}, "bits of type str"),
        ({"masks": IdMap(b"", (256,), "gray")}, "256 in ids"),
        ({"masks": IdMap(b"", (1,), "blue")}, "coding 'blue'"),
        ({"masks": IdMap(3, (1,))}, "id map is of type int"),
    ],
)
def test_bad_fields_are_named_with_their_record(change, problem):
    fields = {"masks": (Rle((1,), (1, 1)),), "mask_labels": (0,), "labels": ("a",)}
    with pytest.raises(ValueError, match=f"^record 'a': .*{problem}"):
        Record(key="a", images=(b"",), text="", **{**fields, **change})


def test_torchs_loader_collates_masks(tokenizer):
    collator = Collator(
        "segmentation", tokenizer=tokenizer, transform=TRANSFORMS["squash"], max_tokens=16
    )
    batch = pickle.loads(pickle.dumps(collator))(RECORDS[:3], epoch=0)
    assert isinstance(batch, SegmentationBatch) and len(batch.mask_labels) > 2 * MASKS
