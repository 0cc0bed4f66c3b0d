"""Transforms of pictures and the boxes in them."""

import json

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize, to_tensor

from fiber import _core
from fiber._core import ImageTransform, apply_transform
from tests.golden import FINE

GOLDEN = FINE / "data_geometry.json"


def picture(height: int, width: int, box=None) -> np.ndarray:
    """Black, with a white box (x0, y0, x1, y1) of whole pixels."""
    image = np.zeros((height, width, 3), np.uint8)
    if box is not None:
        x0, y0, x1, y1 = box
        image[y0:y1, x0:x1] = 255
    return image


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def bright_box(values: np.ndarray) -> list[float]:
    """The box of what is brighter than half."""
    ys, xs = np.nonzero(values[0] > 0.5)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_no_boxes():
    for boxes in (None, []):
        values, left, size = apply_transform(picture(3, 4), ImageTransform.squash(5), boxes)
        assert (values.shape, left, size) == ((3, 5, 5), [], (5, 5))


def test_squash_scales_each_axis():
    _, boxes, _ = apply_transform(picture(10, 20), ImageTransform.squash(40), [(1, 2, 5.5, 10)])
    assert boxes == [[2.0, 8.0, 11.0, 40.0]]


def test_boxes_follow_the_bright_part():
    """Whatever is cropped, resized and mirrored: the box stays on what it names."""
    crop = ImageTransform.random_resized_crop(64, **PLAIN)
    shorter = ImageTransform.shorter_side([40, 64, 100], 200, flip_probability=0.5, **PLAIN)
    seen = 0
    for index in range(200):
        rng = np.random.default_rng(index)
        height, width = (int(n) for n in rng.integers(60, 120, 2))
        x0, y0 = (int(n) for n in rng.integers(0, 30, 2))
        box = (x0, y0, x0 + int(rng.integers(10, 30)), y0 + int(rng.integers(10, 30)))
        for transform in (crop, shorter):
            values, boxes, _ = apply_transform(
                picture(height, width, box), transform, [box], index=index
            )
            if boxes:
                seen += 1
                # Half a pixel of the output, and the blur of the resize.
                assert np.abs(np.array(bright_box(np.asarray(values))) - boxes[0]).max() < 1.5
    assert 250 < seen < 400


def test_crop_drops_boxes_that_it_cuts_away():
    transform = ImageTransform.random_resized_crop(
        50, scale=(0.25, 0.25), ratio=(1, 1), flip_probability=0
    )
    kept = [
        len(apply_transform(picture(100, 100), transform, [(0, 0, 20, 20)], index=index)[1])
        for index in range(300)
    ]
    # A crop of 50 pixels holds the centre at 10 where it starts at 0 to 10 of 51 places, each way.
    expected = 300 * (11 / 51) ** 2
    assert abs(sum(kept) - expected) < 4 * expected**0.5


def test_flip_mirrors():
    transform = ImageTransform.shorter_side([10], 100, flip_probability=1.0, divisor=1, **PLAIN)
    values, boxes, _ = apply_transform(picture(10, 20, (1, 2, 4, 6)), transform, [(1, 2, 4, 6)])
    assert boxes == [[16.0, 2.0, 19.0, 6.0]] == [bright_box(np.asarray(values))]


def test_boxes_are_clipped_to_the_picture():
    _, boxes, _ = apply_transform(picture(10, 20), ImageTransform.squash(10), [(-1, 5, 20.5, 11)])
    assert boxes == [[0.0, 5.0, 10.0, 10.0]]


@pytest.mark.parametrize("box", [(-1.5, 0, 9, 9), (0, 0, 500, 5), (3, 3, 5, 11.01)], ids=str)
def test_a_box_that_reaches_far_outside_is_a_fault_of_the_annotation(box):
    expected = r"box 1 is .* outside the image of height 10 and width 20 pixels; expected at most"
    with pytest.raises(ValueError, match=expected):
        apply_transform(picture(10, 20), ImageTransform.squash(10), [(0, 0, 1, 1), box])


@pytest.mark.parametrize("box", [(20, 0, 30, 5), (-4, 0, 0, 5)], ids=str)
def test_a_box_outside_is_a_fault_of_the_annotation(box):
    with pytest.raises(ValueError, match=r"box 1 is .* height 10 and width 20 pixels"):
        apply_transform(picture(10, 20), ImageTransform.squash(10), [(0, 0, 1, 1), box])


def test_padding_and_divisor():
    transform = ImageTransform.shorter_side([33], 100, divisor=32)
    values, _, size = apply_transform(picture(10, 20, (0, 0, 20, 10)), transform)
    assert size == (33, 66) and values.shape == (3, 64, 96)
    array = np.asarray(values)
    assert (array[:, 33:] == 0).all() and (array[:, :, 66:] == 0).all()
    assert (array[:, :33, :66] > 1).all()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_values_equal_torchvision(order):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    values, _, _ = apply_transform(image, ImageTransform.squash(9, channel_order=order))
    expected = normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    got = torch.from_numpy(np.asarray(values))
    assert torch.equal(got if order == "rgb" else got.flip(0), expected)


def test_draws_depend_on_the_sample_only():
    transform = ImageTransform.random_resized_crop(16)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def run(**key):
        return np.asarray(apply_transform(image, transform, **key)[0]).tobytes()

    assert run(seed=1, epoch=2, index=3) == run(seed=1, epoch=2, index=3)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({run(seed=s, epoch=e, index=i) for s, e, i in keys}) == 4


def test_bytes_are_decoded():
    import io

    from PIL import Image

    stream = io.BytesIO()
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(image).save(stream, "png")
    transform = ImageTransform.squash(8)
    from_bytes, from_array = (
        np.asarray(apply_transform(source, transform)[0]) for source in (stream.getvalue(), image)
    )
    assert np.array_equal(from_bytes, from_array)


def test_sizes_of_the_published_detector():
    for case in json.loads(GOLDEN.read_text())["resize_get_size"]:
        transform = ImageTransform.shorter_side([case["min"]], case["max"], divisor=1)
        _, _, size = apply_transform(np.zeros((case["h"], case["w"], 3), np.uint8), transform)
        assert list(size) == case["out_hw"], case


@pytest.mark.parametrize("shape", [(1, 3000), (9000, 1), (2, 9000), (1, 1400)], ids=str)
def test_the_longer_side_of_extreme_pictures_has_a_bound(shape):
    transform = ImageTransform.shorter_side([800], 1333, divisor=1)
    image = np.zeros((*shape, 3), np.uint8)
    boxes = [(0.0, 0.0, float(shape[1]), float(shape[0]))]
    values, moved, size = apply_transform(image, transform, boxes)
    assert sorted(size) == [1, 1333]
    assert np.asarray(values).shape == (3, *size)
    assert list(map(tuple, moved)) == [(0.0, 0.0, float(size[1]), float(size[0]))]


def test_normalization_of_the_published_detector():
    case = json.loads(GOLDEN.read_text())["normalize_bgr255"]
    rgb = np.array(case["rgb01"])
    byte = np.round(rgb * 255)
    transform = ImageTransform.squash(2, channel_order="bgr")
    values, _, _ = apply_transform(np.moveaxis(byte.astype(np.uint8), 0, 2).copy(), transform)
    # Only values that a byte can hold can be compared.
    whole = np.isclose(rgb * 255, byte, atol=1e-4)[::-1]
    assert whole.sum() >= 5
    difference = np.asarray(values)[whole] - np.array(case["out"])[whole]
    assert np.abs(difference).max() < 1e-6 * np.abs(case["out"]).max()


def test_describe_and_compare():
    transform = ImageTransform.shorter_side([480, 800], 1333, channel_order="bgr")
    described = transform.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["kind"] == "shorter_side" and described["sizes"] == [480, 800]
    assert repr(transform).startswith("ImageTransform.shorter_side(sizes=[480, 800], max_size=1333")
    assert transform == ImageTransform.shorter_side([480, 800], 1333, channel_order="bgr")
    assert transform != ImageTransform.shorter_side([480, 800], 1333)
    assert not transform.is_square and ImageTransform.squash(3).is_square


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ImageTransform.squash(0),
            "size: 0 x 0 pixels; expected 1 or more",
        ),
        (lambda: ImageTransform.squash(-1), "size: -1; expected 0 or more"),
        (lambda: ImageTransform.shorter_side([8, -2], 8), "sizes: -2; expected 0 or more"),
        (lambda: ImageTransform.squash(8, filter="nearest"), "filter: 'nearest'"),
        (lambda: ImageTransform.squash(8, resize="quick"), "resize: 'quick'"),
        (lambda: ImageTransform.squash(8, channel_order="gbr"), "channel_order: 'gbr'"),
        (lambda: ImageTransform.squash(8, std=(1, 0, 1)), "std: "),
        (lambda: ImageTransform.random_resized_crop(8, scale=(0, 1)), "scale: "),
        (lambda: ImageTransform.random_resized_crop(8, ratio=(2, 1)), "ratio: "),
        (lambda: ImageTransform.random_resized_crop(8, flip_probability=2), "flip_probability: 2"),
        (lambda: ImageTransform.shorter_side([], 8), "sizes: "),
        (lambda: ImageTransform.shorter_side([8], 0), "max_size, divisor: 0"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_permutation():
    assert np.asarray(_core.permutation(0, 0, 0)).tolist() == []
    order = np.asarray(_core.permutation(1000, 1, 2))
    assert sorted(order) == list(range(1000)) and list(order[:5]) != [0, 1, 2, 3, 4]


@pytest.mark.parametrize("box", [(9, 9, 3, 3), (1, 5, 4, 5), (1, float("nan"), 4, 5)])
def test_boxes_that_are_none_are_told_apart_from_those_outside(box):
    image = np.zeros((12, 12, 3), np.uint8)
    with pytest.raises(ValueError, match="expected numbers with x0 < x1 and y0 < y1"):
        apply_transform(image, ImageTransform.squash(8), [box])
    with pytest.raises(ValueError, match=r"box 0 is .* inside the image of height 12"):
        apply_transform(image, ImageTransform.squash(8), [(20, 3, 30, 9)])
