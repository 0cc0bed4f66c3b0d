"""RandAugment against values recorded with OpenCV 5 and numpy, and its draws."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiber._core import ImageTransform, RandAugment, apply_transform, augment_image
from fiber.data import DataLoader, Record, Tokenizer
from fiber.tasks.transform import MOVING_OPERATIONS, RAND_AUGMENT_OPERATIONS
from tests.rust.transform.record_rand_augment import cases, pictures

pytestmark = pytest.mark.oldest

RECORDED = json.loads(Path(__file__).with_name("rand_augment.json").read_text())
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OPERATIONS = RAND_AUGMENT_OPERATIONS["fiber"]
STILL = tuple(name for name in OPERATIONS if name not in MOVING_OPERATIONS)


def augmented(image: np.ndarray, operation: str, argument: float | None = None) -> np.ndarray:
    return np.asarray(augment_image(image, operation, argument))


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_values(name):
    height, _, width, kind = name.split()
    image = pictures(int(height), int(width))[kind]
    for (operation, argument), expected in zip(cases(), RECORDED[name], strict=True):
        ours = augmented(image, operation, argument)
        assert ours.shape == image.shape
        assert zlib.crc32(ours.tobytes()) == expected, (operation, argument)


def test_one_pixel_of_every_operation():
    image = np.array([[[10, 100, 200]]], np.uint8)
    for operation, argument in RandAugment().arguments().items():
        assert augmented(image, operation, argument).shape == (1, 1, 3)
    assert augmented(image, "Brightness", 1.36).tolist() == [[[13, 136, 255]]]
    assert augmented(image, "TranslateY", 1).tolist() == [[[128, 128, 128]]]


def test_a_grey_picture_stays_grey():
    image = pictures(33, 31)["grey"]
    for operation, argument in RandAugment().arguments().items():
        output = augmented(image, operation, argument)
        assert (output == output[..., :1]).all(), operation
        # Of steps of one level rounding leaves no more to sharpen.
        unchanged = operation in ("Identity", "Sharpness")
        assert unchanged == np.array_equal(output, image), operation


def test_directions_are_those_of_the_docstring():
    image = np.full((21, 21, 3), 128, np.uint8)
    image[10, 15] = 255

    def brightest(operation, argument):
        rows, columns = np.nonzero(augmented(image, operation, argument)[..., 0] > 160)
        return rows.mean() - 10, columns.mean() - 15

    assert brightest("TranslateX", 3) == (0, -3)
    assert brightest("TranslateY", 3) == (-3, 0)
    assert brightest("ShearX", 0.3) == (0, 3)
    assert brightest("ShearY", 0.2) == (3, 0)
    assert brightest("Rotate", 30)[0] < -1


def test_the_picture_that_is_given_stays():
    image = pictures(33, 31)["noise"]
    copy = image.copy()
    for operation, argument in RandAugment().arguments().items():
        augmented(image[::-1], operation, argument)
    assert np.array_equal(image, copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Posterize", 1.0), "'Posterize'; expected 'Identity', "),
        (("Rotate",), "argument: None for Rotate; expected a finite number"),
        (("Rotate", float("nan")), "expected a finite number"),
        (("Equalize", 1.0), "for Equalize; expected [nN]one"),
    ],
)
def test_wrong_operations_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        augment_image(np.zeros((2, 2, 3), np.uint8), *arguments)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 1), (3, 3)], ids=str)
def test_wrong_pictures_are_named(shape):
    with pytest.raises(ValueError, match="expected"):
        augment_image(np.zeros(shape, np.uint8), "Equalize")


def test_the_published_settings_are_the_default():
    settings = RandAugment()
    assert settings.describe() == {
        "policy": "fiber",
        "num_ops": 2,
        "magnitude": 7.0,
        "probability": 0.5,
        "operations": list(OPERATIONS),
    }
    assert settings == RandAugment(num_ops=2) != RandAugment(magnitude=5)
    assert repr(settings).startswith("RandAugment(policy='fiber', num_ops=2, magnitude=7.0, ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"magnitude": 11}, "magnitude: 11; expected 0 to 10"),
        ({"probability": -0.1}, "probability: -0.1; expected 0 to 1"),
        ({"operations": ["Rotat"]}, "operations: 'Rotat'; expected"),
        ({"operations": []}, "operations: empty.* num_ops .*2"),
        ({"num_ops": -1}, "num_ops: -1; expected 0 or more"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**settings)


def crop(**settings) -> ImageTransform:
    return ImageTransform.random_resized_crop(
        32, rand_augment=RandAugment(**settings) if settings else None, **PLAIN
    )


def values(transform: ImageTransform, index: int, **key) -> np.ndarray:
    image = pictures(37, 53)["noise"]
    return np.asarray(apply_transform(image, transform, index=index, **key)[0])


def test_transforms_say_what_they_draw():
    assert crop().describe()["rand_augment"] is None
    assert crop() == crop(num_ops=0, magnitude=7) != crop(num_ops=1)
    assert crop(num_ops=1).describe()["rand_augment"]["num_ops"] == 1
    json.dumps(crop(num_ops=1).describe())
    assert "rand_augment={'policy': 'fiber', 'num_ops': 1" in repr(crop(num_ops=1))


def test_draws_depend_on_the_key_alone():
    transform = crop(num_ops=2)
    first = [values(transform, index) for index in range(40)]
    again = [values(transform, index) for index in reversed(range(40))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    for key in ({"seed": 1}, {"epoch": 1}):
        other = [values(transform, index, **key) for index in range(40)]
        assert sum(np.array_equal(a, b) for a, b in zip(first, other, strict=True)) == 0


def test_crop_and_flip_are_drawn_as_without_it_and_come_first():
    # One operation that always happens: its result is that of the plain transform, augmented.
    transform = crop(num_ops=1, probability=1.0, operations=["Equalize"])
    for index in range(10):
        plain = np.rint(values(crop(), index) * 255).astype(np.uint8).transpose(1, 2, 0)
        ours = np.rint(values(transform, index) * 255).astype(np.uint8).transpose(1, 2, 0)
        assert np.array_equal(ours, augmented(np.ascontiguousarray(plain), "Equalize"))


def test_an_operation_happens_half_of_the_time():
    transform = crop(num_ops=1, operations=["Brightness"])
    changed = sum(
        not np.array_equal(values(transform, index), values(crop(), index)) for index in range(400)
    )
    # Four standard deviations of 10.
    assert abs(changed - 200) < 40


@pytest.mark.parametrize("make", [ImageTransform.squash, ImageTransform.shorter_side])
def test_every_geometry_takes_it(make):
    size = (32,) if make is ImageTransform.squash else ([32], 64)
    settings = RandAugment(num_ops=1, probability=1.0, operations=["Brightness"])
    image = pictures(37, 53)["noise"]
    plain, _, _ = apply_transform(image, make(*size, **PLAIN))
    brighter, _, _ = apply_transform(image, make(*size, rand_augment=settings, **PLAIN))
    assert np.asarray(brighter).mean() > 1.1 * np.asarray(plain).mean()


def test_boxes_refuse_what_moves_pixels():
    image, box = pictures(37, 53)["noise"], [(1, 2, 30, 30)]
    moving = crop(num_ops=2, operations=["Equalize", "ShearX", "Rotate"])
    with pytest.raises(ValueError, match="rand_augment: ShearX, Rotate cannot be used with boxes"):
        apply_transform(image, moving, box)
    apply_transform(image, moving, [])
    still = ImageTransform.squash(32, rand_augment=RandAugment(operations=STILL))
    assert apply_transform(image, still, box)[1]
    tokenizer = Tokenizer.train(["a cup"], 261)
    settings = {"tokenizer": tokenizer, "batch_size": 1, "max_tokens": 8}
    DataLoader([], "grounding", transform=still, **settings)
    DataLoader([], "image_text", transform=moving, **settings)
    with pytest.raises(ValueError, match="ShearX, Rotate cannot be used with boxes"):
        DataLoader([], "grounding", transform=moving, **settings)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def test_any_number_of_threads_gives_the_same_batches():
    stored = [png(pictures(20 + number, 31)["noise"]) for number in range(12)]
    records = [
        Record(key=str(number), images=(image,), text="a cup")
        for number, image in enumerate(stored)
    ]
    tokenizer = Tokenizer.train(["a cup"], 261)

    def images(threads: int) -> np.ndarray:
        loader = DataLoader(
            records,
            "image_text",
            tokenizer=tokenizer,
            transform=crop(num_ops=2),
            batch_size=4,
            max_tokens=8,
            threads=threads,
        )
        return np.concatenate([batch.images.numpy() for batch in loader.epoch(3)])

    expected = images(1)
    assert all(np.array_equal(images(threads), expected) for threads in (2, 8))
