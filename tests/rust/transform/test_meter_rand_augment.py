"""METER's RandAugment: every operation against recorded values and Pillow, and its place."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fiber import DecodeError
from fiber._core import ImageTransform, RandAugment, apply_transform, augment_image
from fiber.data import Tokenizer, load_image
from fiber.tasks.transform import MOVING_OPERATIONS, RAND_AUGMENT_OPERATIONS
from tests.data.loader_records import TEXT, make, record
from tests.golden import METER
from tests.rust.transform import pillow_rand_augment
from tests.rust.transform.record_rand_augment import pictures

PUBLISHED = RandAugment(policy="meter")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
#: Small sizes, some of a photograph, and those at which Pillow changes to double precision.
SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (3, 3), (17, 15), (64, 97), (240, 321)]
SIZES += [(1, 32767), (1, 32768), (33000, 2), (3, 40000)]


def augmented(image: np.ndarray, operation: str, argument: float | None) -> np.ndarray:
    return np.asarray(augment_image(image, operation, argument, policy="meter"))


def signed(operation: str, argument: float | None) -> list[float | None]:
    if argument is None:
        return [None]
    return [argument, -argument] if operation in MOVING_OPERATIONS else [argument]


@pytest.fixture(scope="module")
def recorded():
    return load_file(METER / "extras.safetensors")


def test_every_recorded_operation(recorded):
    image = recorded["picture.wide"]
    names = {name for name in recorded if name.startswith("randaug.")}
    for operation, argument in PUBLISHED.arguments().items():
        suffix = "abs" if operation.startswith("Translate") else ""
        for value, sign in zip(signed(operation, argument), ("plus", "minus"), strict=False):
            name = f"randaug.{operation}{suffix}.{sign}"
            ours = augmented(image, operation, value)
            assert np.array_equal(ours, recorded[name]), name
            names.remove(name)
    assert not names


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("magnitude", [0, 4.3, 9, 30])
def test_operations_equal_pillow(size, magnitude):
    for kind, image in pictures(*size).items():
        picture = Image.fromarray(image)
        arguments = RandAugment(policy="meter", magnitude=magnitude).arguments()
        for operation, argument in arguments.items():
            for value in signed(operation, argument):
                expected = np.asarray(pillow_rand_augment.apply(picture, operation, value))
                ours = augmented(image, operation, value)
                assert np.array_equal(ours, expected), (kind, operation, value)


def test_factors_and_angles_outside_the_published_range_equal_pillow():
    image = pictures(37, 53)["noise"]
    picture = Image.fromarray(image)
    for operation, values in {
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), (0, 1, 3.7, -0.5)),
        "Rotate": (90, -90, 180, 270, 359.999, -720, 1e-20),
        **dict.fromkeys(("ShearX", "ShearY"), (1, -2.5, 40, 1e4)),
        **dict.fromkeys(("TranslateX", "TranslateY"), (0.5, -0.5, 8.5, 1e6)),
    }.items():
        for value in values:
            expected = np.asarray(pillow_rand_augment.apply(picture, operation, value))
            assert np.array_equal(augmented(image, operation, value), expected), (operation, value)


def test_the_published_settings_are_those_of_the_policy():
    assert PUBLISHED.describe() == {
        "policy": "meter",
        "num_ops": 2,
        "magnitude": 9.0,
        "probability": 1.0,
        "operations": list(RAND_AUGMENT_OPERATIONS["meter"]),
    }
    assert RandAugment() != PUBLISHED
    # Name -> [lowest, highest, value at level 9].
    ranges = json.loads((METER / "extras.json").read_text())["randaug"]
    expected = {name.removesuffix("abs"): value for name, (*_, value) in ranges.items()}
    arguments = PUBLISHED.arguments()
    assert list(arguments) == list(expected)
    assert arguments == expected | {"AutoContrast": None, "Equalize": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "metre"}, "policy: 'metre'; expected 'fiber' or 'meter'"),
        ({"policy": "meter", "magnitude": 31}, "magnitude: 31; expected 0 to 30 for .*'meter'"),
        ({"policy": "fiber", "magnitude": 11}, "magnitude: 11; expected 0 to 10 for .*'fiber'"),
        ({"policy": "meter", "operations": ["Identity"]}, "'Identity'; expected 'AutoContrast', "),
        ({"policy": "fiber", "operations": ["Solarize"]}, "'Solarize'; expected 'Identity', "),
    ],
)
def test_settings_of_another_policy_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**settings)


def test_operations_of_another_policy_are_named():
    image = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="'Identity'; expected 'AutoContrast', "):
        augment_image(image, "Identity", policy="meter")
    with pytest.raises(ValueError, match="argument: None for Solarize; expected a finite number"):
        augment_image(image, "Solarize", policy="meter")


def values(image, transform, **key) -> np.ndarray:
    return np.asarray(apply_transform(image, transform, **key)[0])


@pytest.mark.parametrize(
    "make_transform",
    [
        lambda **options: ImageTransform.center_crop(24, **options),
        lambda **options: ImageTransform.squash(24, **options),
        lambda **options: ImageTransform.random_resized_crop(24, **options),
        lambda **options: ImageTransform.shorter_side([24], 60, **options),
    ],
    ids=["center_crop", "squash", "random_resized_crop", "shorter_side"],
)
def test_operations_come_before_every_geometry(make_transform):
    image = pictures(37, 53)["noise"]
    # Always drawn: an operation after which the image is another at every size.
    augment = RandAugment(policy="meter", num_ops=1, operations=["SolarizeAdd"])
    before = augmented(image, "SolarizeAdd", 33.0)
    for index in range(5):
        ours = values(image, make_transform(rand_augment=augment, **PLAIN), index=index)
        expected = values(before, make_transform(**PLAIN), index=index)
        assert np.array_equal(ours, expected)


def test_two_operations_are_drawn_in_both_orders_and_directions():
    image = pictures(64, 97)["noise"]
    # The border of a sheared image stays black only if it is sheared last.
    names = ["SolarizeAdd", "ShearX"]
    augment = RandAugment(policy="meter", operations=names)
    arguments = augment.arguments()
    operations = [(name, value) for name in names for value in signed(name, arguments[name])]
    chains = {}
    for first in operations:
        for second in operations:
            chain = augmented(augmented(image, *first), *second)
            pixels = values(chain, ImageTransform.squash(48, **PLAIN))
            chains[pixels.tobytes()] = (first, second)
    transform = ImageTransform.squash(48, rand_augment=augment, **PLAIN)
    seen = {chains[values(image, transform, index=index).tobytes()] for index in range(200)}
    assert len(seen) == len(chains) == 9


def test_boxes_refuse_what_moves_pixels():
    image = pictures(37, 53)["noise"]
    moving = ImageTransform.squash(32, rand_augment=PUBLISHED)
    message = "ShearX, .*cannot be used with boxes; .* from AutoContrast, Equalize, Posterize"
    with pytest.raises(ValueError, match=message):
        apply_transform(image, moving, [(1, 2, 30, 30)])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def encoded(image: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("scaled_decoding", [False, True])
def test_the_loader_augments_the_image_at_full_size(tokenizer, scaled_decoding):
    """At half the size, 30 pixels would be twice as much of the image."""
    transform = ImageTransform.center_crop(16, rand_augment=PUBLISHED)
    for kind in ("png", "jpeg"):
        data = encoded(pictures(80, 120)["grey"], kind)
        pixels = load_image(data)
        records = [record(index, images=(data,)) for index in range(12)]
        options = {"transform": transform, "seed": 4, "scaled_decoding": scaled_decoding}
        for batch in make(tokenizer, records, **options):
            for at, key in enumerate(batch.keys):
                expected = values(pixels, transform, seed=4, index=int(key[1:]))
                assert np.array_equal(batch.images[at].numpy(), expected)


def test_images_that_nothing_changes_are_decoded_at_a_smaller_size(tokenizer):
    data = encoded(pictures(80, 120)["noise"], "jpeg")
    augment = RandAugment(policy="meter", probability=0)
    options = {"transform": ImageTransform.center_crop(16, rand_augment=augment)}
    (full,), (scaled,) = (
        make(tokenizer, [record(0, images=(data,))], scaled_decoding=scaled, **options)
        for scaled in (False, True)
    )
    assert not np.array_equal(full.images, scaled.images)


def test_the_copy_of_an_image_whose_pixels_move_counts(tokenizer):
    image = pictures(32, 32)["noise"]
    records = [record(0, images=(encoded(image, "png"),))]
    for operation, cost in (("Equalize", image.nbytes), ("Rotate", 2 * image.nbytes)):
        augment = RandAugment(policy="meter", operations=[operation])
        transform = ImageTransform.center_crop(16, rand_augment=augment)
        (batch,) = make(tokenizer, records, transform=transform, max_decode_bytes=cost)
        assert len(batch) == 1
        with pytest.raises(DecodeError, match="max_decode_bytes"):
            list(make(tokenizer, records, transform=transform, max_decode_bytes=cost - 1))
