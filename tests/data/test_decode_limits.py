"""`max_pixels`, `max_decode_bytes` and `threads`: what exceeds them is named."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from fiber import DecodeError, _core
from fiber.data import Collator, DataLoader, Record, Tokenizer, apply_transform, load_image
from fiber.data.image_file import MAX_PIXELS, check_image
from fiber.data.loader_config import MAX_THREADS
from fiber.training.config.run import DataConfig
from tests.data.loader_records import CROP, TEXT, make, record
from tests.limited_memory import run_limited

SIDE = 32
PIXELS = SIDE * SIDE


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8))
    stream = io.BytesIO()
    image.convert("RGB" if mode == "P" else mode).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def coefficients(count: int, is_progressive: bool) -> int:
    """Bytes of `count` blocks of 64 coefficients."""
    return count * (64 * 2 + 8 * is_progressive)


#: File, and the memory that decoding it takes.
COSTS = {
    "jpeg": (encoded("jpeg"), 3 * PIXELS),
    "progressive jpeg": (
        encoded("jpeg", progressive=True, subsampling=0),
        3 * PIXELS + coefficients(3 * PIXELS // 64, True),
    ),
    "png": (encoded("png"), 3 * PIXELS),
    "png with alpha": (encoded("png", "RGBA"), (4 + 3) * PIXELS),
    "gray png": (encoded("png", "L"), (1 + 3) * PIXELS),
    "webp": (encoded("webp", lossless=True), (3 + 4) * PIXELS),
    "gif": (encoded("gif", "P"), (1 + 3) * PIXELS),
    "bmp": (encoded("bmp"), 3 * PIXELS),
    "palette bmp": (encoded("bmp", "P"), 3 * PIXELS),
    "tiff": (encoded("tiff"), (3 + 3 + 3) * PIXELS),
    "palette tiff": (encoded("tiff", "P"), (1 + 1 + 3) * PIXELS),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


@pytest.mark.parametrize(("data", "cost"), COSTS.values(), ids=COSTS)
def test_each_format_is_decoded_with_its_memory_and_not_with_less(data, cost):
    expected = load_image(data)
    assert np.array_equal(load_image(data, max_decode_bytes=cost), expected)
    with pytest.raises(DecodeError) as caught:
        load_image(data, max_decode_bytes=cost - 1)
    for part in (f"{SIDE} x {SIDE} pixels", f"{cost} bytes", f"{cost - 1} (max_decode_bytes)"):
        assert part in str(caught.value)
    assert caught.value.status == "unsupported"


def test_errors_name_file_size_limit_and_parameter(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded("png"))
    for limits, parts in (
        ({"max_pixels": PIXELS - 1}, [f"{PIXELS - 1} (max_pixels)"]),
        ({"max_decode_bytes": 99}, [f"{3 * PIXELS} bytes", "99 (max_decode_bytes)"]),
    ):
        with pytest.raises(DecodeError) as caught:
            load_image(path, **limits)
        assert all(part in str(caught.value) for part in [str(path), "32 x 32 pixels", *parts])
        checked = check_image(str(path), **limits)
        assert (checked.status, parts[-1] in checked.reason) == ("unsupported", True)
        with pytest.raises(DecodeError, match=r"32 x 32 pixels.*\(max_"):
            apply_transform(path.read_bytes(), CROP, **limits)
    assert load_image(path, max_pixels=PIXELS, max_decode_bytes=3 * PIXELS).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "limits", [{"max_pixels": 24 * 32}, {"max_decode_bytes": 3 * 24 * 32}], ids=str
)
@pytest.mark.parametrize("kind", ["png", "progressive jpeg"])
def test_the_loader_reports_the_record(tokenizer, kind, limits, tmp_path):
    """The limits suffice for the first record, of 24 x 32 pixels."""
    path = tmp_path / "large"
    path.write_bytes(COSTS[kind][0])
    records = [record(0), record(1, key="large", images=(str(path),))]
    loader = make(tokenizer, records, on_error="skip", **limits)
    with pytest.warns(RuntimeWarning, match=r"large.*\(max_"):
        assert [batch.keys for batch in loader] == [("r0",)]
    assert loader.statuses == {"ok": 1, "unsupported": 1}
    ((name, value),) = limits.items()
    assert f"{value} ({name})" in loader.skipped[0].reason
    assert str(path) in loader.skipped[0].reason


def test_a_streamed_jpeg_takes_no_memory_of_its_size(tokenizer):
    """The loader decodes it row by row."""
    records = [record(0, images=(COSTS["jpeg"][0],))]
    assert len(next(iter(make(tokenizer, records, max_decode_bytes=1)))) == 1


def test_rotating_an_image_takes_a_copy(tokenizer):
    exif = Image.Exif()
    exif[274] = 6
    records = [record(0, images=(encoded("jpeg", exif=exif),))]
    options = {"apply_orientation": True, "batch_size": 1}
    assert len(next(iter(make(tokenizer, records, max_decode_bytes=6 * PIXELS, **options)))) == 1
    with pytest.raises(DecodeError, match=rf"{6 * PIXELS} bytes.*\(max_decode_bytes\)"):
        list(make(tokenizer, records, max_decode_bytes=6 * PIXELS - 1, **options))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_pixels": 0}, ValueError),
        ({"max_pixels": 1 << 64}, ValueError),
        ({"max_pixels": None}, TypeError),
        ({"max_pixels": 1e6}, TypeError),
        ({"max_decode_bytes": 0}, ValueError),
        ({"max_decode_bytes": -1}, ValueError),
        ({"max_decode_bytes": "1GB"}, TypeError),
        ({"threads": MAX_THREADS + 1}, ValueError),
        ({"threads": 10**6}, ValueError),
    ],
    ids=str,
)
def test_wrong_limits_are_named(tokenizer, options, error):
    ((name, value),) = options.items()
    expected = rf"^{name} is {value!r}; expected "
    with pytest.raises(error, match=expected):
        make(tokenizer, **options)
    with pytest.raises(error, match=expected):
        Collator("image_text", tokenizer=tokenizer, transform=CROP, max_tokens=8, **options)
    if name != "threads":
        with pytest.raises(error, match=expected):
            load_image(b"", **options)


def test_defaults_are_the_same_everywhere(tokenizer):
    loader = make(tokenizer)
    assert isinstance(loader, DataLoader)
    data = DataConfig()
    for config in (loader.config, data):
        assert (config.max_pixels, config.max_decode_bytes) == (MAX_PIXELS, None)
    for wrong in ({"max_pixels": 0}, {"max_decode_bytes": 0}):
        with pytest.raises(ValueError, match=f"data.{next(iter(wrong))}.*0"):
            DataConfig(**wrong)
    bomb = struct.pack("<2sIHHIIiiHH24x", b"BM", 0, 0, 0, 54, 40, 13_378, 13_378, 1, 24)
    with pytest.raises(DecodeError, match=rf"at most {MAX_PIXELS} \(max_pixels\)"):
        load_image(bomb)


def test_rows_of_a_bmp_are_counted_before_memory_is_taken():
    """54 bytes that claim 169 million pixels, with 48 MiB left."""
    ended = run_limited("""
import struct
from fiber import DecodeError, _core
bomb = struct.pack("<2sIHHIIiiHH24x", b"BM", 0, 0, 0, 54, 40, 13_000, 13_000, 1, 24)
with memory_left(48 << 20):
    try:
        _core.decode_image(bomb)
    except DecodeError as error:
        print(error)
""")
    assert "expected 13000 rows of 39000 bytes" in ended.stdout, ended.stderr


def test_a_pass_of_unknown_records_keeps_its_limits(tokenizer):
    """Records of an iterable, and a copy of the loader's options."""
    records = [Record(key="a", images=(encoded("png"),), text="cup")]
    loader = make(tokenizer, iter(records), max_pixels=PIXELS - 1)
    with pytest.raises(DecodeError, match=rf"'a': .*{PIXELS - 1} \(max_pixels\)"):
        list(loader)
    assert loader.max_pixels == PIXELS - 1
    assert _core.decode_image(encoded("png"), max_pixels=PIXELS).shape == (SIDE, SIDE, 3)
