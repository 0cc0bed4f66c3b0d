"""Alpha that a transform keeps: images are resized as Pillow's RGBA images, from any source."""

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fiber import _core
from fiber.data import ImageTransform, RandAugment, Tokenizer, apply_transform, load_image
from tests.data.loader_records import TEXT, make, record
from tests.golden import METER

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
#: Statistics of CLIP.
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def noise(height: int, width: int) -> np.ndarray:
    """RGBA with every alpha, and a fifth of the pixels opaque and a fifth transparent."""
    random = np.random.default_rng([height, width])
    pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    kind = random.integers(0, 5, (height, width))
    pixels[..., 3][kind == 0], pixels[..., 3][kind == 1] = 0, 255
    return pixels


def encode(kind: str, mode: str = "RGBA", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(60, 75)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def palette_image() -> Image.Image:
    indices = np.random.default_rng(0).integers(0, 4, (60, 75), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 99, 199])
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


#: Encoded images in which some pixels are not opaque.
TRANSPARENT = {
    "png": encode("png"),
    "gray png": encode("png", "LA"),
    "png with a transparent color": saved(palette_image(), "png", transparency=2),
    "png with a palette of alphas": saved(palette_image(), "png", transparency=b"\x00\x80\xff"),
    "gif": saved(palette_image(), "gif", transparency=1),
    "webp": encode("webp", lossless=True, exact=True),
    "tiff": encode("tiff"),
}
#: And those that are opaque.
OPAQUE = {
    "jpeg": encode("jpeg", "RGB"),
    "png": encode("png", "RGB"),
    "gif": saved(palette_image(), "gif"),
    "png with alpha": saved(Image.fromarray(noise(60, 75)).convert("RGB").convert("RGBA"), "png"),
}


def rgba(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGBA")


def resized(image: Image.Image, size: tuple[int, int], kernel: str = "bicubic") -> np.ndarray:
    """Resize RGBA to (height, width) with Pillow, rows first, and drop alpha."""
    method = Image.Resampling[kernel.upper()]
    if image.size == size[::-1]:
        return np.asarray(image.convert("RGB"))
    # Premultiplied in between, as a single call of `resize` does.
    image = image.convert("RGBa").resize((size[1], image.height), method)
    return np.asarray(image.resize(size[::-1], method).convert("RGBA").convert("RGB"))


def transformed(image, transform: ImageTransform) -> np.ndarray:
    pixels, _, size = apply_transform(image, transform)
    return np.asarray(pixels).view(np.float32).reshape(3, *size)


def levels(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * 255).astype(np.uint8).transpose(1, 2, 0)


def squash(size: int, **options) -> ImageTransform:
    return ImageTransform.squash(size, alpha="premultiply", **PLAIN, **options)


def test_one_pixel():
    for alpha, expected in ((0, 0), (255, 200), (128, 199)):
        image = np.array([[[200, 200, 200, alpha]]], np.uint8)
        assert (levels(transformed(image, squash(3))) == expected).all()
        assert (levels(transformed(image, squash(1))) == 200).all()


@pytest.mark.parametrize("size", [(1, 5), (7, 3), (48, 48), (60, 75), (131, 90)], ids=str)
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_resized_images_equal_pillow(size, kernel):
    image = noise(*size)
    for side in (4, 48, 100):
        expected = resized(Image.fromarray(image), (side, side), kernel)
        assert np.array_equal(levels(transformed(image, squash(side, filter=kernel))), expected)


def test_a_single_call_of_pillow_gives_the_same():
    """Where it resizes rows first, which versions do differently."""
    image = Image.fromarray(noise(60, 75))
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC).convert("RGB"))
    ours = levels(transformed(np.asarray(image), squash(48)))
    assert np.abs(ours.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("statistics", ["clip", "imagenet"])
def test_recorded_images(statistics):
    """CLIP's published reader weights colors by alpha, that of Swin drops it."""
    recorded = load_file(METER / "extras.safetensors")
    options = {"alpha": "premultiply", **CLIP} if statistics == "clip" else {}
    transform = ImageTransform.center_crop(48, **options)
    ours = transformed(np.ascontiguousarray(recorded["picture.alpha"]), transform)
    np.testing.assert_allclose(ours, recorded[f"{statistics}.alpha"], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_files_keep_their_alpha(tokenizer, tmp_path, name):
    data = TRANSPARENT[name]
    picture = Image.open(io.BytesIO(data))
    expected = np.asarray(rgba(data))
    path = tmp_path / "image"
    path.write_bytes(data)
    for image in (data, path, picture, expected):
        found = load_image(image, keep_alpha=True)
        assert np.array_equal(found[..., 3], expected[..., 3])
        # Colors of transparent pixels have no weight.
        assert np.array_equal(found[found[..., 3] > 0], expected[expected[..., 3] > 0])
        assert np.array_equal(load_image(image), expected[..., :3])
    expected = resized(rgba(data), (16, 16))
    assert np.array_equal(levels(transformed(data, squash(16))), expected)
    records = [record(index, images=(stored,)) for index, stored in enumerate((data, str(path)))]
    options = {"transform": squash(16), "image_dtype": "uint8"}
    (batch,) = make(tokenizer, records, **options)
    for pixels in batch.images:
        assert np.array_equal(pixels.permute(1, 2, 0), expected)
    # Over a background, no alpha is left.
    color = (12, 200, 77)
    (batch,) = make(tokenizer, records, background=color, **options)
    below = load_image(data, background=color)
    over = levels(transformed(below, ImageTransform.squash(16, **PLAIN)))
    assert np.array_equal(batch.images[0].permute(1, 2, 0), over)


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_files_have_none(tokenizer, name):
    data = OPAQUE[name]
    for image in (data, Image.open(io.BytesIO(data))):
        found = load_image(image, keep_alpha=True)
        assert found.shape == (60, 75, 3)
        assert np.array_equal(found, load_image(image))
    dropping = ImageTransform.squash(16, **PLAIN)
    assert np.array_equal(transformed(data, squash(16)), transformed(data, dropping))
    (kept,), (dropped,) = (
        make(tokenizer, [record(0, images=(data,))], transform=transform)
        for transform in (squash(16), dropping)
    )
    assert np.array_equal(kept.images, dropped.images)


def test_alpha_is_dropped_by_default():
    data = TRANSPARENT["png"]
    colors = np.ascontiguousarray(np.asarray(rgba(data))[..., :3])
    transform = ImageTransform.squash(16, **PLAIN)
    assert not transform.keeps_alpha
    for image in (data, np.asarray(rgba(data))):
        assert np.array_equal(transformed(image, transform), transformed(colors, transform))


def test_flips_crops_and_orientations_take_alpha_with_them(tokenizer):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(60, 75))
    data = saved(image, "png", exif=exif)
    transform = ImageTransform.random_resized_crop(16, alpha="premultiply")
    records = [record(index, images=(data,)) for index in range(12)]
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    for apply_orientation, pixels in ((False, np.asarray(image)), (True, upright)):
        options = {"transform": transform, "apply_orientation": apply_orientation, "seed": 4}
        for batch in make(tokenizer, records, **options):
            for at, key in enumerate(batch.keys):
                index = int(key[1:])
                expected, _, _ = apply_transform(pixels, transform, seed=4, index=index)
                assert np.array_equal(batch.images[at], np.asarray(expected))


def test_operations_before_the_resize_drop_alpha():
    """As published: images become RGB before RandAugment."""
    augment = RandAugment(policy="meter", num_ops=1, operations=["Posterize"])
    transform = squash(16, rand_augment=augment)
    assert squash(16).keeps_alpha
    assert not transform.keeps_alpha
    assert squash(16, rand_augment=RandAugment(policy="meter", num_ops=0)).keeps_alpha
    image = noise(60, 75)
    colors = np.ascontiguousarray(image[..., :3])
    posterized = np.asarray(_core.augment_image(colors, "Posterize", 1.2, policy="meter"))
    expected = transformed(posterized, ImageTransform.squash(16, **PLAIN))
    for stored in (image, saved(Image.fromarray(image), "png")):
        assert np.array_equal(transformed(stored, transform), expected)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="alpha: 'keep'; expected 'drop' or 'premultiply'"):
        ImageTransform.center_crop(8, alpha="keep")
    with pytest.raises(ValueError, match=r"keep_alpha: True.*background"):
        load_image(TRANSPARENT["png"], keep_alpha=True, background=(0, 0, 0))
    with pytest.raises(TypeError, match="keep_alpha"):
        load_image(TRANSPARENT["png"], keep_alpha="yes")
    for shape in ((2, 2), (2, 2, 2), (2, 2, 5)):
        image = np.zeros(shape, np.uint8)
        with pytest.raises(ValueError, match=r"expected .*\(H, W, 4\)"):
            load_image(image)
        with pytest.raises(ValueError, match=r"expected .*\(H, W, 4\)"):
            apply_transform(image, squash(8))
