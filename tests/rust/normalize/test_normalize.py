"""Values of a batch against torchvision's `ToTensor` and `Normalize`, bit by bit."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from fiber import _core
from tests.rust.resize.test_resize import INSTRUCTIONS

pytestmark = pytest.mark.oldest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: The fine stage's: values of 0 to 255, from which only a mean is taken.
BYTES = ((0.40789655, 0.44719303, 0.48035), (1 / 255, 1 / 255, 1 / 255))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ours(image: np.ndarray, height: int, width: int, dtype: str, layout: str, **options):
    written = _core.normalize_image(image, height, width, dtype=dtype, layout=layout, **options)
    values = torch.frombuffer(written, dtype=DTYPES.get(dtype, torch.uint8))
    return values.reshape((3, height, width) if layout == "chw" else (height, width, 3))


def expected(image: np.ndarray, height, width, dtype, layout, *, flip, channel_order, mean, std):
    picture = torch.from_numpy(image[:, ::-1].copy() if flip else image)
    if dtype == "uint8":
        values = picture.permute(2, 0, 1)
    else:
        values = functional.normalize(functional.to_tensor(picture.numpy()), mean, std)
        values = values.to(DTYPES[dtype])
    if channel_order == "bgr":
        values = values.flip(0)
    padded = torch.zeros(3, height, width, dtype=values.dtype)
    padded[:, : values.shape[1], : values.shape[2]] = values
    return padded if layout == "chw" else padded.permute(1, 2, 0)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("dtype", [*DTYPES, "uint8"])
@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
@pytest.mark.parametrize("flip", [False, True], ids=["plain", "flip"])
def test_values_are_torchvisions(flip, channel_order, dtype, layout, instructions):
    # One pixel, around the blocks of 5, 8, 16, 32 and 64 pixels, and past the segments of 512.
    for width in (1, 2, 4, 5, 6, 11, 31, 33, 64, 65, 127, 200, 511, 512, 513, 1100):
        image = noise(3, width)
        padding = width % 7
        for mean, std in (IMAGENET, BYTES):
            options = {"flip": flip, "channel_order": channel_order, "mean": mean, "std": std}
            found = ours(
                image, 4, width + padding, dtype, layout, instructions=instructions, **options
            )
            wanted = expected(image, 4, width + padding, dtype, layout, **options)
            assert torch.equal(found, wanted), f"{width} pixels, mean {mean}"


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_every_byte_of_random_settings(layout, instructions):
    image = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    rng = np.random.default_rng(0)
    for _ in range(100):
        mean, std = tuple(rng.uniform(-1, 2, 3)), tuple(np.exp(rng.uniform(-12, 8, 3)))
        options = {"flip": False, "channel_order": "rgb", "mean": mean, "std": std}
        for dtype in DTYPES:
            found = ours(image, 1, 256, dtype, layout, instructions=instructions, **options)
            assert torch.equal(found, expected(image, 1, 256, dtype, layout, **options))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_scales_of_which_little_is_left(layout, instructions):
    # Reciprocals so small that their second parts lose bits, or whose values pass all bounds.
    image = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for std in ((1e30, 1e35, 3e38), (3e-39, 1e-40, 1.0), (1e-20, 1e20, 1e37)):
        mean = (0.1, 0.3, 0.7)
        options = {"flip": False, "channel_order": "rgb", "mean": mean, "std": std}
        found = ours(image, 1, 256, "float32", layout, instructions=instructions, **options)
        wanted = expected(image, 1, 256, "float32", layout, **options)
        assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0)), std


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize(("dtype", "offset"), [("bfloat16", 256), ("float16", 2048)])
def test_ties_go_to_even(dtype, offset, layout, instructions):
    # Whole numbers of one bit more than the type holds.
    image = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    mean, std = (-offset / 255,) * 3, (1 / 255,) * 3
    options = {"flip": False, "channel_order": "rgb", "mean": mean, "std": std}
    single = expected(image, 1, 256, "float32", layout, **options)
    ties = (single % 4 == 1).sum(), (single % 4 == 3).sum()
    assert min(ties) > 20
    found = ours(image, 1, 256, dtype, layout, instructions=instructions, **options)
    assert torch.equal(found, expected(image, 1, 256, dtype, layout, **options))


def test_no_rows_leave_zeros():
    assert not ours(np.zeros((0, 3, 3), np.uint8), 2, 4, "float32", "chw").any()
    assert not ours(np.zeros((0, 3, 3), np.uint8), 2, 4, "float16", "hwc").any()
    assert np.asarray(_core.normalize_image(np.zeros((0, 0, 3), np.uint8), 0, 0)).size == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 1}, "row 1 .* 9 bytes; expected .* 1 x 3 pixels"),
        ({"width": 2}, "row 0 .* 9 bytes; expected .* 2 x 2 pixels"),
        ({"layout": "nchw"}, "layout: .*'nchw'; expected"),
        ({"dtype": "float64"}, "dtype: .*'float64'; expected"),
        ({"channel_order": "grb"}, "channel_order: 'grb'"),
        ({"std": (1, 0, 1)}, "std: "),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        _core.normalize_image(noise(2, 3), **({"height": 2, "width": 3} | options))
