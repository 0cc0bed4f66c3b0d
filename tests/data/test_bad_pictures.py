"""What the loader, inspection and the decoder call a picture that cannot be decoded: one word."""

import io
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fiber import DecodeError, _core
from fiber.data import ImageTransform, Record, Tokenizer
from fiber.data.image_file import check_image
from tests.data.loader_records import make, png, record

from ..jpeg_corpus import alter

pytestmark = pytest.mark.filterwarnings("ignore:(skipped|replaced) record:RuntimeWarning")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red cup"] * 3, 300)


def encoded(form: str, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (40, 30), 90).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def jpeg_with(at: int, value: bytes) -> bytes:
    """A JPEG with other bytes in its frame header, counted from the marker."""
    data = encoded("JPEG")
    start = next(start for marker, start, _ in alter.segments(data) if marker == 0xC0) + at
    return data[:start] + value + data[start + len(value) :]


def noisy_webp() -> bytes:
    """One whose coded bytes are decoded whatever they are, others in their place too."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "WEBP")
    return stream.getvalue()


WEBP = noisy_webp()
UNSUPPORTED = {
    "arithmetic": jpeg_with(1, b"\xc9"),
    "12 bits": jpeg_with(4, b"\x0c"),
    "lossless": jpeg_with(1, b"\xc3"),
    "sampling": jpeg_with(11, b"\x31\x00\x02\x21"),
    "avif": b"\0\0\0\x1cftypavif" + bytes(40),
    "heif": b"\0\0\0\x1cftypmif1" + bytes(40),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "jpeg xl": b"\xff\x0a" + bytes(40),
    "tiff of floats": encoded("TIFF", "F"),
    "tiff of JPEG": encoded("TIFF", compression="jpeg"),
}
CORRUPT = {
    "empty": b"",
    "words": b"no picture",
    "png": png(0)[:60] + b"\0" * 40 + png(0)[100:],
    "half a png": png(0)[: len(png(0)) // 2],
    "half a webp": encoded("WEBP")[:-20],
    "a webp without its last byte": WEBP[:-1],
    "a webp without its middle": WEBP[: len(WEBP) // 2] + WEBP[len(WEBP) // 2 + 10 :],
    "a jpeg without scan": encoded("JPEG")[:300],
    "two frames": encoded("JPEG")[:2] + encoded("JPEG"),
}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        *((data, "unsupported") for data in UNSUPPORTED.values()),
        *((data, "corrupt") for data in CORRUPT.values()),
    ],
    ids=[*UNSUPPORTED, *CORRUPT],
)
def test_one_word_everywhere(tokenizer, data, status):
    assert check_image(data).status == status, check_image(data)
    for accept_truncated in (False, True):
        records = [record(0), record(1, images=(data,))]
        options = {"on_error": "skip", "accept_truncated": accept_truncated}
        loader = make(tokenizer, records, transform=ImageTransform.squash(16), **options)
        list(loader)
        assert loader.statuses == {"ok": 1, status: 1}
        assert [(bad.key, bad.status) for bad in loader.skipped] == [("r1", status)]
        assert (status == "unsupported") == ("unsupported" in loader.skipped[0].reason)
    with pytest.raises(DecodeError) as caught:
        _core.decode_image(data)
    assert caught.value.status == status
    assert pickle.loads(pickle.dumps(caught.value)).status == status
    with pytest.raises(DecodeError, match="record 'r1'") as caught:
        list(make(tokenizer, [record(1, images=(data,))], threads=1))
    assert caught.value.status == status


def test_too_many_pixels_are_unsupported(tokenizer):
    data = jpeg_with(5, b"\xff\xff\xff\xff")
    assert check_image(data).status == "unsupported"
    loader = make(tokenizer, [record(0), record(1, images=(data,))], on_error="skip")
    list(loader)
    assert loader.statuses["unsupported"] == 1


class Rows:
    """Rows of which one cannot be read, and of which most hold a broken picture."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Record:
        if index == 3:
            raise ValueError("row 3")
        return record(index, images=(b"no",)) if index >= 8 else record(index)


def test_no_other_record_is_tried_twice_for_a_place(tokenizer):
    for seed in range(20):
        loader = make(tokenizer, Rows(), on_error="resample", batch_size=8, seed=seed)
        batch = next(iter(loader))
        assert len(batch) == 8
        drawn = [_core.draw_below(16, seed, 0, 3, attempt) for attempt in range(10)]
        expected = ["#3"]
        for other in drawn:
            if other < 8 and other != 3:
                break
            expected.append("#3" if other == 3 else f"r{other}")
        # Each is listed once, and counted as often as it was tried.
        assert Counter(bad.key for bad in loader.skipped) == Counter(set(expected))
        assert sum(loader.statuses.values()) - loader.statuses["ok"] == len(expected)
        assert torch.isfinite(batch.images).all()


@pytest.mark.parametrize("progressive", [False, True], ids=["sequential", "progressive"])
def test_a_picture_that_ends_below_its_crop_is_ok(tokenizer, progressive):
    """As docs/loader.md has it: what no transform takes of a sequential JPEG is not read."""
    stream = io.BytesIO()
    noise = Image.open(io.BytesIO(png(0, 128, 128)))
    noise.save(stream, "JPEG", quality=90, progressive=progressive)
    data = stream.getvalue()[: len(stream.getvalue()) * 6 // 10]
    assert check_image(data).status == "truncated"
    records = [record(index, images=(data,)) for index in range(32)]
    for transform, is_whole in (
        (ImageTransform.random_resized_crop(16, scale=(0.05, 0.1)), False),
        (ImageTransform.squash(16), True),
    ):
        loader = make(tokenizer, records, transform=transform, accept_truncated=True)
        list(loader)
        expected = {"truncated"} if progressive or is_whole else {"ok", "truncated"}
        assert set(loader.statuses) == expected
