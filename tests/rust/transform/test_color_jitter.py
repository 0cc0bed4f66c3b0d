"""Colour jitter against torchvision's uint8 kernels."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from fiber._core import ColorJitter, ImageTransform, apply_transform, jitter_image
from fiber.data import DataLoader, Record, Tokenizer

pytestmark = pytest.mark.oldest

CHANGES = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}
FACTORS = dict.fromkeys(CHANGES, (0.0, 0.3, 0.77, 1.0, 1.21, 1.9, 5.0)) | {
    "hue": (-0.5, -0.31, -0.1, 0.0, 0.07, 1 / 3, 0.5)
}


def pictures() -> dict[str, np.ndarray]:
    """One pixel, noise, every pair of values, few greys, a size that is no multiple of a block."""
    rng = np.random.default_rng(0)
    pairs = np.stack([*np.indices((256, 256)), np.full((256, 256), 77)], -1).astype(np.uint8)
    return {
        "pixel": np.array([[[10, 100, 200]]], np.uint8),
        "noise": rng.integers(0, 256, (37, 53, 3), np.uint8),
        "pairs": pairs,
        "pairs of red and blue": pairs[..., [0, 2, 1]],
        "greys": rng.integers(0, 4, (9, 65, 1), np.uint8).repeat(3, axis=2) * 85,
        "large": rng.integers(0, 256, (384, 384, 3), np.uint8),
    }


def by_torchvision(image: np.ndarray, change: str, factor: float) -> np.ndarray:
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return CHANGES[change](tensor, factor).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", pictures())
def test_values_are_torchvisions(name, change):
    image = pictures()[name]
    for factor in FACTORS[change]:
        ours = np.asarray(jitter_image(image, change, factor)).astype(int)
        difference = np.abs(ours - by_torchvision(image, change, factor))
        # The mean of a picture is rounded there.
        if change == "contrast":
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.01, factor
        else:
            assert difference.max() == 0, (factor, (difference > 0).mean())


def crop(jitter: ColorJitter | None = None, **options) -> ImageTransform:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return ImageTransform.random_resized_crop(32, color_jitter=jitter, **options, **plain)


def values(transform: ImageTransform, index: int) -> np.ndarray:
    image = pictures()["noise"]
    return np.asarray(apply_transform(image, transform, index=index)[0])


def test_transforms_say_what_they_draw():
    assert crop().describe()["color_jitter"] is None
    assert crop() == crop(ColorJitter()) != crop(ColorJitter(hue=(0, 0.1)))
    described = crop(ColorJitter(hue=(0, 0.1))).describe()
    assert described["color_jitter"]["hue"] == [0, 0.1]
    json.dumps(described)
    assert "hue=(0.0, 0.1)" in repr(ColorJitter(hue=(0, 0.1)))


def test_crop_and_flip_are_drawn_as_without_it_and_come_first():
    transform = crop(ColorJitter(saturation=(0.25, 0.25)))
    for index in range(10):
        plain = np.rint(values(crop(), index) * 255).astype(np.uint8).transpose(1, 2, 0)
        ours = np.rint(values(transform, index) * 255).astype(np.uint8).transpose(1, 2, 0)
        expected = jitter_image(np.ascontiguousarray(plain), "saturation", 0.25)
        assert np.array_equal(ours, np.asarray(expected))


def test_batches_are_jittered():
    stream = io.BytesIO()
    Image.fromarray(pictures()["noise"]).save(stream, "png")
    grey = crop(ColorJitter(saturation=(0, 0)))
    loader = DataLoader(
        [Record(key="a", images=(stream.getvalue(),), text="a cup")],
        "image_text",
        tokenizer=Tokenizer.train(["a cup"], 261),
        transform=grey,
        batch_size=1,
        max_tokens=8,
    )
    images = next(iter(loader)).images
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.std() > 0.05


def test_factors_differ_from_picture_to_picture():
    transform = crop(ColorJitter(brightness=(0.5, 1.5)), scale=(1, 1), flip_probability=0)
    means = [values(transform, index).mean() for index in range(20)]
    assert len(set(means)) == 20
    assert [values(transform, index).mean() for index in range(20)] == means


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hue": (-0.6, 0)}, "hue: .*-0.6.*; expected a range within -0.5 to 0.5"),
        ({"contrast": (1.2, 0.8)}, "contrast: "),
        ({"brightness": (-0.1, 1)}, "brightness: "),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ColorJitter(**settings)


def test_wrong_changes_are_named():
    image = pictures()["pixel"]
    with pytest.raises(ValueError, match=r"change: .*'gamma'; expected"):
        jitter_image(image, "gamma", 1.0)
    with pytest.raises(ValueError, match=r"factor: 0\.6 for hue; expected -0.5 to 0.5"):
        jitter_image(image, "hue", 0.6)
