"""Decoding against Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fiber import DecodeError, _core
from fiber.data import load_image

pytestmark = pytest.mark.oldest


def encode(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array, mode).save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Blocks of 8 pixels of one colour, so that no JPEG has much to guess."""
    rng = np.random.default_rng(height * 1000 + width)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), channels), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def png(
    depth: int,
    color: int,
    *,
    width: int = 13,
    height: int = 9,
    extra: bytes = b"",
    limit: int = 256,
) -> bytes:
    """A PNG of any bit depth and colour type, which Pillow cannot write."""
    rng = np.random.default_rng(depth * 10 + color)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row_bytes = -(-width * samples * depth // 8)
    rows = rng.integers(0, limit, (height, row_bytes), dtype=np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def palette(entries: int) -> bytes:
    colors = np.random.default_rng(entries).integers(0, 256, entries * 3, dtype=np.uint8)
    return chunk(b"PLTE", colors.tobytes())


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 1), (40, 56)], ids=str)
def test_probe_and_decode(kind, size):
    data = encode(smooth(*size), kind, **({"lossless": True} if kind == "webp" else {}))
    assert _core.probe_image(data) == (*size, kind)
    decoded = np.asarray(_core.decode_image(data))
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, by_pillow(data))


def test_lossy_webp():
    data = encode(smooth(40, 56), "webp")
    assert np.array_equal(np.asarray(_core.decode_image(data)), by_pillow(data))


@pytest.mark.parametrize("size", [(1, 1), (17, 1), (16, 16), (33, 31), (41, 56), (96, 97)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}],
    ids=str,
)
def test_jpeg(size, options):
    data = encode(smooth(*size), "jpeg", **options)
    assert _core.probe_image(data) == (*size, "jpeg")
    decoded = np.asarray(_core.decode_image(data))
    assert decoded.shape == (*size, 3) and np.array_equal(decoded, by_pillow(data))


def test_grey_and_cmyk_jpeg():
    for data in (
        encode(smooth(24, 32)[..., 0], "jpeg"),
        encode(smooth(24, 32, 4), "jpeg", "CMYK", quality=95),
    ):
        assert np.array_equal(np.asarray(_core.decode_image(data)), by_pillow(data))


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(
    ("depth", "color"),
    [(d, 0) for d in (1, 2, 4, 8)] + [(8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)],
)
def test_png_kinds(depth, color, transparent):
    # Colour types with alpha have no tRNS chunk.
    mark = {0: b"\0\1", 2: b"\0\1\0\1\0\1"}.get(color, b"") if transparent else b""
    data = png(depth, color, extra=chunk(b"tRNS", mark) if mark else b"")
    assert np.array_equal(np.asarray(_core.decode_image(data)), by_pillow(data))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_png(depth, transparent):
    extra = palette(2**depth) + (chunk(b"tRNS", b"\0\x80") if transparent else b"")
    data = png(depth, 3, extra=extra)
    assert np.array_equal(np.asarray(_core.decode_image(data)), by_pillow(data))


def test_grey_of_16_bits_keeps_its_upper_half():
    data = png(16, 0)
    stored = np.asarray(Image.open(io.BytesIO(data))).astype(np.uint16)
    decoded = np.asarray(_core.decode_image(data))
    assert np.array_equal(decoded, np.repeat((stored >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_alpha_is_dropped(kind, mode):
    array = smooth(16, 24, len(mode))
    data = encode(
        array, kind, mode, **({"lossless": True, "exact": True} if kind == "webp" else {})
    )
    assert np.array_equal(np.asarray(_core.decode_image(data)), by_pillow(data))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_animation_gives_its_first_picture(kind):
    frames = [Image.fromarray(smooth(16, 24 + i)[:, :24]) for i in range(3)]
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], **options)
    decoded = np.asarray(_core.decode_image(stream.getvalue()))
    assert np.array_equal(decoded, np.asarray(frames[0]))


def test_orientation_tag_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(smooth(16, 24), "jpeg", exif=exif)
    assert np.asarray(_core.decode_image(data)).shape == (16, 24, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_truncated_bytes_are_an_error(kind):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encode(array, kind)
    for length in (0, 1, 2, 10, 100, len(data) // 2, len(data) - 20):
        with pytest.raises(DecodeError):
            _core.decode_image(data[:length])
    if kind == "jpeg":
        with pytest.raises(DecodeError, match="end marker is missing"):
            _core.decode_image(data[:-1])
    # What stands behind the picture does no harm.
    _core.decode_image(data + b"junk")


def test_broken_bytes_never_end_the_process():
    rng = np.random.default_rng(0)
    sources = [
        encode(smooth(24, 32), "jpeg"),
        encode(smooth(24, 32), "jpeg", progressive=True),
        encode(smooth(24, 32), "png"),
        encode(smooth(24, 32), "webp"),
        encode(smooth(24, 32), "webp", lossless=True),
    ]
    decoded = 0
    for round_ in range(2000):
        data = bytearray(sources[round_ % len(sources)])
        for position in rng.integers(0, len(data), 3):
            data[position] = rng.integers(0, 256)
        try:
            _core.decode_image(bytes(data), max_pixels=10**6)
            decoded += 1
        except DecodeError:
            pass
    assert 0 < decoded < 2000


def test_other_formats_are_named_in_the_error():
    known = "JPEG, PNG, WebP, GIF, BMP or TIFF"
    with pytest.raises(DecodeError, match=rf"^JPEG 2000: unsupported; expected a {known} file"):
        _core.decode_image(encode(smooth(8, 8), "jpeg2000"))
    with pytest.raises(DecodeError, match="empty file; expected a JPEG"):
        _core.probe_image(b"")


def test_too_many_pixels():
    data = encode(smooth(8, 9), "png")
    with pytest.raises(DecodeError, match=r"8 x 9 pixels; expected at most 71 \(max_pixels\)"):
        _core.decode_image(data, max_pixels=71)
    assert _core.decode_image(data, max_pixels=72).shape == (8, 9, 3)


def test_load_image_takes_every_kind(tmp_path):
    array = smooth(10, 12)
    data = encode(array, "png")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for picture in (path, str(path), data, Image.fromarray(array), array):
        loaded = load_image(picture)
        assert loaded.dtype == np.uint8 and np.array_equal(loaded, array)


def test_load_image_errors(tmp_path):
    missing, broken = tmp_path / "missing.png", tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(FileNotFoundError) as caught:
        load_image(missing)
    assert caught.value.filename == str(missing)
    with pytest.raises(DecodeError, match=r"broken\.png: starts with bytes"):
        load_image(broken)
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    with pytest.raises(ValueError, match=r"\(3, 4\) and dtype uint8; expected shape \(H, W, 3\)"):
        load_image(np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="dtype float32"):
        load_image(np.zeros((3, 4, 3), np.float32))
    with pytest.raises(TypeError, match="int; expected a path"):
        load_image(3)


def test_buffer_shares_its_memory():
    buffer = _core.decode_image(encode(smooth(3, 5), "png"))
    first, second = np.asarray(buffer), np.asarray(buffer)
    first[2, 4, 1] = 77
    assert second[2, 4, 1] == 77
    view = memoryview(buffer)
    assert (view.format, view.shape, view.strides) == ("B", (3, 5, 3), (15, 3, 1))
    assert not view.readonly and view.c_contiguous
    del buffer, first
    assert second[2, 4, 1] == 77
    assert repr(_core.permutation(0, 0, 0)) == "Buffer(shape=[0], dtype='int64')"
