"""Shorter side, then the central square: METER's transform, bit for bit as recorded."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fiber import _core
from fiber.data import ImageTransform
from tests.golden import METER

#: Statistics of CLIP; ours default to those of ImageNet.
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
STATISTICS = {"clip": CLIP, "imagenet": {}}


@pytest.fixture(scope="module")
def recorded():
    return load_file(METER / "extras.safetensors")


def apply(image, transform):
    values, _, size = _core.apply_transform(np.ascontiguousarray(image), transform)
    assert size == (transform.describe()["size"],) * 2
    return np.asarray(values).view(np.float32).reshape(3, *size)


@pytest.mark.parametrize("image", ["wide", "tall"])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_equals_the_recorded_transform(recorded, image, statistics):
    transform = ImageTransform.center_crop(48, **STATISTICS[statistics])
    ours = apply(recorded[f"picture.{image}"], transform)
    # Bytes are equal; their normalization rounds in another order.
    np.testing.assert_allclose(ours, recorded[f"{statistics}.{image}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 32), (48, 48), (200, 49), (97, 300)])
def test_equals_pillow(size):
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    ours = apply(image, ImageTransform.center_crop(48, **plain)) * 255
    short = min(size)
    resized = [48 if side == short else int(48 * side / short) for side in size]
    # In two steps, since Pillow resizes columns first for some shapes.
    picture = Image.fromarray(image).resize((resized[1], height), Image.Resampling.BICUBIC)
    picture = picture.resize(resized[::-1], Image.Resampling.BICUBIC)
    top, left = (round((side - 48) / 2) for side in resized)
    expected = np.asarray(picture.crop((left, top, left + 48, top + 48)))
    np.testing.assert_allclose(ours.transpose(1, 2, 0), expected, atol=1e-3)


def test_settings_are_described_and_boxes_refused():
    transform = ImageTransform.center_crop(48)
    assert transform.is_square
    assert repr(transform).startswith("ImageTransform.center_crop(size=48, ")
    image = np.zeros((60, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="center_crop cannot be used with boxes"):
        _core.apply_transform(image, transform, [(0.0, 0.0, 9.0, 9.0)])
    with pytest.raises(ValueError, match="size"):
        ImageTransform.center_crop(0)
