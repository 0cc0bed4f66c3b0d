"""Resizing against Pillow, value by value."""

import numpy as np
import pytest
from PIL import Image

from fiber import _core

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def by_pillow(image: np.ndarray, height: int, width: int, kernel: str) -> np.ndarray:
    """Rows first, then columns, in two calls: the order of Pillow before version 13."""
    rows = Image.fromarray(image).resize((width, image.shape[0]), FILTERS[kernel])
    return np.asarray(rows.resize((width, height), FILTERS[kernel]))


def assert_same(image: np.ndarray, height: int, width: int, kernel: str) -> None:
    resized = np.asarray(_core.resize_image(image, height, width, kernel))
    expected = by_pillow(image, height, width, kernel)
    different = int((resized != expected).sum())
    assert different == 0, f"{image.shape} to {(height, width)}: {different} values differ"


@pytest.mark.parametrize("kernel", FILTERS)
def test_random_sizes(kernel):
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w, height, width = (int(n) for n in rng.integers(1, 120, 4))
        assert_same(rng.integers(0, 256, (h, w, 3), dtype=np.uint8), height, width, kernel)


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize(
    "size", [(480, 640, 384, 384), (333, 500, 800, 1201), (1, 3000, 5, 2)], ids=str
)
def test_sizes_of_recipes(size, kernel):
    h, w, height, width = size
    image = np.random.default_rng(1).integers(0, 256, (h, w, 3), dtype=np.uint8)
    assert_same(image, height, width, kernel)


@pytest.mark.parametrize("kernel", FILTERS)
def test_extreme_values_do_not_wrap(kernel):
    image = (np.indices((31, 47)).sum(0)[..., None] % 2 * 255).repeat(3, axis=2).astype(np.uint8)
    assert_same(image, 64, 20, kernel)
    assert_same(image, 20, 64, kernel)


def test_one_pixel_and_the_same_size():
    image = np.array([[[1, 2, 3]]], np.uint8)
    assert (np.asarray(_core.resize_image(image, 3, 4)) == [1, 2, 3]).all()
    image = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(_core.resize_image(image, 5, 7)), image)


def test_an_array_that_is_not_contiguous():
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for view in (image[::-1, ::2], image.transpose(1, 0, 2), image[..., ::-1]):
        assert_same(view, 9, 9, "bicubic")


def test_errors():
    image = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="filter: 'nearest' is no filter"):
        _core.resize_image(image, 2, 2, "nearest")
    with pytest.raises(ValueError, match="cannot resize to 0 x 2 pixels"):
        _core.resize_image(image, 0, 2)
    with pytest.raises(ValueError, match="0 x 4"):
        _core.resize_image(np.zeros((0, 4, 3), np.uint8), 2, 2)
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        _core.resize_image(image[..., 0], 2, 2)
    with pytest.raises(TypeError, match="expected a uint8 array"):
        _core.resize_image(image.astype(np.float32), 2, 2)
