"""Resizing against Pillow, value by value.

Recorded with a version that takes rows first, and the one at hand: in one call before Pillow 12, as
in `pip install --no-deps "pillow<12"`, in two from then on, which sees to the order.
"""

import json
import platform
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from fiber import _core
from tests.rust.resize.record_resize import cases, picture

pytestmark = pytest.mark.oldest

RECORDED = json.loads(Path(__file__).with_name("resize.json").read_text())["sums"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def has(instructions: str) -> bool:
    try:
        _core.resize_image(np.zeros((1, 1, 3), np.uint8), 1, 1, instructions=instructions)
    except ValueError:
        return False
    return True


WIDE = ("neon",) if platform.machine() in ("aarch64", "arm64") else ("avx2", "avx512")
INSTRUCTIONS = [
    pytest.param(name, marks=pytest.mark.skipif(not has(name), reason=f"needs {name}"))
    for name in ("scalar", *WIDE)
]


def by_pillow(image: np.ndarray, height: int, width: int, kernel: str) -> np.ndarray:
    """Rows first, then columns: the order of Pillow before version 12, forced since."""
    if int(PIL.__version__.split(".")[0]) < 12:
        return np.asarray(Image.fromarray(image).resize((width, height), FILTERS[kernel]))
    rows = Image.fromarray(image).resize((width, image.shape[0]), FILTERS[kernel])
    return np.asarray(rows.resize((width, height), FILTERS[kernel]))


def assert_same(image: np.ndarray, height: int, width: int, kernel: str, **options) -> None:
    resized = np.asarray(_core.resize_image(image, height, width, kernel, **options))
    if options.get("crop"):
        top, left, h, w = options["crop"]
        image = image[top : top + h, left : left + w]
    expected = by_pillow(image, height, width, kernel)
    different = int((resized != expected).sum())
    assert different == 0, f"{image.shape} to {(height, width)}: {different} values differ"


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_recorded_values(instructions):
    for (h, w, height, width), sums in zip(cases(), RECORDED, strict=True):
        for kernel, expected in zip(FILTERS, sums, strict=True):
            resized = _core.resize_image(
                picture(h, w), height, width, kernel, instructions=instructions
            )
            found = zlib.crc32(np.asarray(resized).tobytes())
            assert found == expected, f"{(h, w)} to {(height, width)}, {kernel}"


def sizes(rng: np.random.Generator) -> list[int]:
    """Two heights and two widths: from alike to a hundred times as large, often one pixel."""
    return [int(n) for n in np.exp(rng.uniform(0, np.log(rng.choice([8, 120, 600])), 4))]


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kernel", FILTERS)
def test_random_sizes(kernel, instructions):
    rng = np.random.default_rng(0)
    for _ in range(200):
        h, w, height, width = sizes(rng)
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        assert_same(image, height, width, kernel, instructions=instructions)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("rows_at_once", [1, 8, 16])
def test_crops_row_by_row(rows_at_once, instructions):
    rng = np.random.default_rng(rows_at_once)
    options = {"rows_at_once": rows_at_once, "instructions": instructions}
    for number in range(60):
        h, w, height, width = sizes(rng)
        top, left = int(rng.integers(0, 40)), int(rng.integers(0, 40))
        below, right = int(rng.integers(0, 40)), int(rng.integers(0, 40))
        shape = (top + h + below, left + w + right, 3)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        kernel = list(FILTERS)[number % 2]
        assert_same(image, height, width, kernel, crop=(top, left, h, w), **options)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize(
    "size",
    [(480, 640, 384, 384), (333, 500, 800, 1201), (1, 3000, 5, 2), (900, 1200, 100, 160)],
    ids=str,
)
def test_sizes_of_recipes(size, kernel, instructions):
    h, w, height, width = size
    image = np.random.default_rng(1).integers(0, 256, (h, w, 3), dtype=np.uint8)
    assert_same(image, height, width, kernel, instructions=instructions)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kernel", FILTERS)
def test_extreme_values_do_not_wrap(kernel, instructions):
    image = (np.indices((31, 47)).sum(0)[..., None] % 2 * 255).repeat(3, axis=2).astype(np.uint8)
    for height, width in ((64, 20), (20, 64), (7, 3)):
        assert_same(image, height, width, kernel, instructions=instructions)
        white = np.full_like(image, 255)
        assert_same(white, height, width, kernel, instructions=instructions)


def difference(image: np.ndarray, height: int, width: int, kernel: str, **options) -> np.ndarray:
    """How many levels each value of a fast resize is off."""
    fast = _core.resize_image(image, height, width, kernel, resize="fast", **options)
    return np.asarray(fast).astype(int) - by_pillow(image, height, width, kernel)


def hard_pictures(rng: np.random.Generator, h: int, w: int) -> list[np.ndarray]:
    """Noise, black and white noise, stripes both ways."""
    whole = [rng.integers(0, 256, (h, w, 3)), rng.integers(0, 2, (h, w, 3)) * 255]
    stripes = [rng.integers(0, 256, (h, 1, 3)), rng.integers(0, 2, (1, w, 3)) * 255]
    shape = (h, w, 3)
    pictures = [*whole, *(np.broadcast_to(each, shape) for each in stripes)]
    return [np.ascontiguousarray(each, np.uint8) for each in pictures]


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kernel", FILTERS)
def test_fast_is_at_most_one_level_off(kernel, instructions):
    rng = np.random.default_rng(4)
    differ, signed = 0, []
    for number in range(120):
        h, w = rng.integers(1, 90, 2)
        height, width = (int(rng.integers(side // 4 + 1, 4 * side + 4)) for side in (h, w))
        rows_at_once = [0, 1, 8][number % 3]
        options = {"instructions": instructions, "rows_at_once": rows_at_once}
        for image in hard_pictures(rng, h, w):
            off = difference(image, height, width, kernel, **options)
            assert abs(off).max() <= 1, f"{image.shape} to {(height, width)}"
            differ += int((off != 0).sum())
            signed.append(off.mean())
    # Only AVX2 gains by it.
    assert (differ > 0) is (instructions == "avx2")
    # A rounding that is left out moves values by half a level, always the same way.
    assert abs(np.mean(signed)) < 0.05


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kernel", FILTERS)
def test_fast_is_exact_where_nothing_is_gained(kernel, instructions):
    options = {"instructions": instructions}
    image = np.random.default_rng(5).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    for height, width in ((100, 300), (300, 150), (60, 90)):
        assert not difference(image, height, width, kernel, **options).any()
    # A size that does not change, and a single colour, stay as they are.
    assert not difference(image, 400, 600, kernel, **options).any()
    for level in (0, 1, 127, 255):
        assert not difference(np.full_like(image, level), 333, 777, kernel, **options).any()


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
    with pytest.raises(ValueError, match=r"filter: .*'nearest'; expected"):
        _core.resize_image(image, 2, 2, "nearest")
    with pytest.raises(ValueError, match=r"resize: .*'quick'; expected 'exact' or"):
        _core.resize_image(image, 2, 2, resize="quick")
    for side in (10**5, 2**63):
        with pytest.raises(ValueError, match=f"{side} x {side} pixels; .* at most 178956970"):
            _core.resize_image(np.zeros((4, 4, 3), np.uint8), side, side)
    with pytest.raises(ValueError, match="0 x 2 pixels; expected 1 or more"):
        _core.resize_image(image, 0, 2)
    with pytest.raises(ValueError, match=r"crop: .* inside an image of 2 x 2 pixels"):
        _core.resize_image(image, 2, 2, crop=(1, 0, 2, 1))
    with pytest.raises(ValueError, match=r"instructions: .*'sse'; expected"):
        _core.resize_image(image, 2, 2, instructions="sse")
    with pytest.raises(ValueError, match="0 x 4"):
        _core.resize_image(np.zeros((0, 4, 3), np.uint8), 2, 2)
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        _core.resize_image(image[..., 0], 2, 2)
    with pytest.raises(TypeError, match=r"expected a uint8 array .* of float32$"):
        _core.resize_image(image.astype(np.float32), 2, 2)
