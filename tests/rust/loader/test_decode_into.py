"""What the loader writes into a batch: the pixels of a plain pipeline, in every form."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fiber import DecodeError, _core
from fiber.data import ColorJitter, ImageTransform, RandAugment, Tokenizer
from tests.data.loader_records import TEXT, make, png, record

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of waves, as a JPEG holds them well."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(a * y + b * x + c) for a, b, c in random.uniform(0.3, 2, (3, 3))]
    return np.uint8(127 + 120 * np.stack(waves, axis=-1))


def jpeg(height: int, width: int, seed: int = 0, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(smooth(height, width, seed)).save(stream, "jpeg", quality=92, **options)
    return stream.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def resized(pixels: np.ndarray, height: int, width: int, kernel: str = "bicubic") -> np.ndarray:
    """Rows first, then columns, by Pillow."""
    method = Image.Resampling[kernel.upper()]
    picture = Image.fromarray(pixels).resize((width, pixels.shape[0]), method)
    return np.asarray(picture.resize((width, height), method))


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """As torchvision's ToTensor and Normalize."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return values.sub(mean).div(std)


def only(tokenizer, data: bytes | list[bytes], batch_type="image_text", **options):
    many = data if isinstance(data, list) else [data]
    fields = {} if batch_type == "image_text" else {"boxes_xyxy": (), "char_spans": ()}
    records = [record(i, images=(content,), **fields) for i, content in enumerate(many)]
    (batch,) = make(tokenizer, records, batch_type, batch_size=len(many), **options)
    return batch


FILES = {
    "jpeg": jpeg(61, 83),
    "jpeg of all colours": jpeg(61, 83, subsampling=0),
    "progressive jpeg": jpeg(61, 83, progressive=True),
    "png": png(3, 61, 83),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [1, 24, 100])
def test_a_squashed_picture_is_that_of_pillow_and_torchvision(tokenizer, name, size):
    batch = only(tokenizer, FILES[name], transform=ImageTransform.squash(size))
    expected = normalised(resized(pixels_of(FILES[name]), size, size))
    assert torch.equal(batch.images[0], expected)
    assert batch.statuses == ("ok",)


def test_pictures_of_many_sizes_are_padded_with_zeros(tokenizer):
    """Also where the memory was another batch's before."""
    transform = ImageTransform.shorter_side([20], 50, filter="bilinear", divisor=16)
    sizes = [(61, 83), (30, 90), (64, 64), (90, 31)]
    files = [jpeg(*size, seed) for seed, size in enumerate(sizes)]
    records = [record(i, images=(files[i % 4],), boxes_xyxy=(), char_spans=()) for i in range(24)]
    loader = make(tokenizer, records, "grounding", transform=transform, batch_size=3, prefetch=1)
    first = set()
    for batch in loader:
        first.add(batch.images.data_ptr())
        for at, key in enumerate(batch.keys):
            height, width = batch.image_sizes[at].tolist()
            pixels = pixels_of(files[int(key[1:]) % 4])
            expected = torch.zeros(batch.images.shape[1:])
            expected[:, :height, :width] = normalised(resized(pixels, height, width, "bilinear"))
            assert torch.equal(batch.images[at], expected)
        del batch
    assert len(first) < 8


@pytest.mark.parametrize("kind", ["squash", "shorter side"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_every_form_holds_the_same_picture(tokenizer, dtype, kind):
    transform = ImageTransform.squash(24)
    if kind == "shorter side":
        transform = ImageTransform.shorter_side([24], 60)
    files, options = [FILES["jpeg"], FILES["png"]], {"transform": transform}
    expected = only(tokenizer, files, "grounding", **options).images.to(getattr(torch, dtype))
    if dtype == "uint8":
        expected = torch.zeros(expected.shape, dtype=torch.uint8)
        for at, data in enumerate(files):
            size = (24, 24) if kind == "squash" else (24, 32)
            pixels = resized(pixels_of(data), *size, "bicubic" if kind == "squash" else "bilinear")
            expected[at, :, : size[0], : size[1]] = torch.from_numpy(pixels.copy()).movedim(2, 0)
    for channels_last in (False, True):
        form = {"image_dtype": dtype, "channels_last": channels_last}
        images = only(tokenizer, files, "grounding", **options, **form).images
        assert torch.equal(images, expected)
        assert images.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sizes", [[61], [61, 30]], ids=str)
def test_pixels_that_need_no_resize_are_taken_as_they_are(tokenizer, name, sizes):
    transform = ImageTransform.shorter_side(sizes, 200, crop_probability=0.5, divisor=1)
    fields = {"boxes_xyxy": (), "char_spans": ()}
    records = [record(i, images=(FILES[name],), **fields) for i in range(12)]
    pixels, as_they_are = pixels_of(FILES[name]), 0
    for batch in make(tokenizer, records, "grounding", transform=transform, batch_size=1):
        expected, _, size = _core.apply_transform(pixels, transform, index=int(batch.keys[0][1:]))
        assert torch.equal(batch.images[0], torch.from_numpy(np.asarray(expected)))
        if tuple(size) == pixels.shape[:2]:
            as_they_are += 1
            assert torch.equal(batch.images[0], normalised(pixels))
    assert as_they_are


def test_pairs_of_pictures_stand_side_by_side(tokenizer):
    records = [record(0, images=(FILES["png"], FILES["jpeg"]))]
    for channels_last in (False, True):
        (batch,) = make(
            tokenizer,
            records,
            "reasoning",
            transform=ImageTransform.squash(8),
            channels_last=channels_last,
        )
        for at, name in enumerate(("png", "jpeg")):
            assert torch.equal(
                batch.images[0, at], normalised(resized(pixels_of(FILES[name]), 8, 8))
            )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rand_augment": RandAugment(num_ops=2)},
        {"color_jitter": ColorJitter(hue=(-0.1, 0.1), contrast=(0.5, 2.0))},
    ],
    ids=["plain", "operations", "colours"],
)
def test_crops_and_flips_take_the_pixels_that_the_transform_says(tokenizer, options):
    """The loader against the same transform on decoded pixels."""
    transform = ImageTransform.random_resized_crop(16, **options)
    records = [record(i, images=(FILES["jpeg"],)) for i in range(12)]
    pixels = pixels_of(FILES["jpeg"])
    for batch in make(tokenizer, records, transform=transform, seed=4):
        for at, key in enumerate(batch.keys):
            expected, _, _ = _core.apply_transform(pixels, transform, seed=4, index=int(key[1:]))
            assert torch.equal(batch.images[at], torch.from_numpy(np.asarray(expected)))


def test_a_truncated_picture_is_refused_or_filled_and_told(tokenizer):
    data = jpeg(64, 96)[:-700]
    transform = ImageTransform.squash(32)
    with pytest.raises(DecodeError, match="record 'r0': JPEG"):
        only(tokenizer, data, transform=transform)
    batch = only(tokenizer, [data, jpeg(64, 96)], transform=transform, accept_truncated=True)
    assert batch.statuses == ("truncated", "ok")
    whole = normalised(resized(pixels_of(jpeg(64, 96)), 32, 32))
    assert torch.equal(batch.images[1], whole)
    filled, reason = _core.decode_jpeg(data)
    assert reason
    assert torch.equal(batch.images[0], normalised(resized(np.asarray(filled), 32, 32)))
    assert not torch.equal(batch.images[0], whole)


def test_fast_resizing_is_at_most_one_level_off(tokenizer):
    exact, fast = (ImageTransform.squash(50, resize=name) for name in ("exact", "fast"))
    assert exact != fast
    assert "resize='fast'" in repr(fast) and fast.describe()["resize"] == "fast"
    files = [jpeg(64, 96), jpeg(33, 41)]
    options = {"image_dtype": "uint8"}
    expected = only(tokenizer, files, transform=exact, **options).images
    found = only(tokenizer, files, transform=fast, **options).images
    assert (found.int() - expected.int()).abs().max() <= 1
    # The values of the resize by itself, with the processor's widest instructions.
    for content, picture in zip(files, found, strict=True):
        own = _core.resize_image(pixels_of(content), 50, 50, resize="fast")
        assert torch.equal(picture, torch.from_numpy(np.asarray(own)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "divisor"), [((63, 200), 1), ((64, 64), 2), ((128, 130), 4), ((256, 300), 8)], ids=str
)
def test_large_pictures_can_be_decoded_smaller(tokenizer, size, divisor):
    data, transform = jpeg(*size), ImageTransform.squash(32, filter="bilinear")
    found = only(tokenizer, data, transform=transform, scaled_decoding=True).images[0]
    picture = Image.open(io.BytesIO(data))
    scaled = (-(-size[1] // divisor), -(-size[0] // divisor))
    picture.draft("RGB", (size[1] // divisor, size[0] // divisor))
    assert picture.size == scaled
    assert torch.equal(found, normalised(resized(np.asarray(picture), 32, 32, "bilinear")))
    whole = only(tokenizer, data, transform=transform).images[0]
    assert torch.equal(found, whole) == (divisor == 1)


@pytest.mark.parametrize("batch_type", ["image_text", "grounding", "reasoning"])
def test_pictures_that_are_decoded_together_are_those_decoded_alone(tokenizer, batch_type):
    """Long beside short ones, damaged, progressive, with restarts, and of other formats."""
    kinds = [
        {},
        {"subsampling": "4:4:4"},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"subsampling": "4:2:2", "optimize": True},
    ]
    sizes = [(8, 8), (200, 330), (61, 47), (330, 200)]
    files = [jpeg(*sizes[i % 4], seed=i, **kinds[i % 5]) for i in range(20)]
    files[5] = files[5][: len(files[5]) // 2]
    files[12] = png(12)
    grey = io.BytesIO()
    Image.fromarray(smooth(90, 70)[..., 0]).save(grey, "jpeg")
    files[9] = grey.getvalue()
    if batch_type == "reasoning":
        pictures = [(files[i], files[(7 * i + 3) % 20]) for i in range(20)]
    else:
        pictures = [(content,) for content in files]
    fields = {"boxes_xyxy": (), "char_spans": ()}
    records = [record(i, images=both, **fields) for i, both in enumerate(pictures)]
    transform = ImageTransform.squash(48)
    if batch_type == "grounding":
        transform = ImageTransform.shorter_side([48], 96, divisor=1)
    options = {"transform": transform, "accept_truncated": True}
    for threads in (1, 3):
        loader = make(tokenizer, records, batch_type, batch_size=20, threads=threads, **options)
        (together,) = loader
        assert together.statuses.count("truncated") == (2 if batch_type == "reasoning" else 1)
        for place, one in enumerate(records):
            (alone,) = make(tokenizer, [one], batch_type, batch_size=1, **options)
            height, width = alone.images.shape[-2:]
            assert torch.equal(together.images[place, ..., :height, :width], alone.images[0])
