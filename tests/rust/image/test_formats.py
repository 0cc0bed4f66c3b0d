"""GIF, BMP, TIFF, and alpha over a colour, against Pillow; broken files of all but JPEG."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fiber import DecodeError, _core
from tests.peer_versions import needs

pytestmark = pytest.mark.oldest

SIZES = [(1, 1), (1, 9), (17, 1), (23, 37)]
#: Kinds of pixels that Pillow writes in each format, with alpha or without.
MODES = {
    "gif": ["1", "L", "P", "RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "tiff": ["1", "L", "LA", "RGB", "RGBA", "CMYK"],
    "png": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "webp": ["RGB", "RGBA"],
}
OPTIONS = {"webp": {"lossless": True, "exact": True}}
KINDS = sorted(MODES)


def noise(mode: str, height: int, width: int) -> Image.Image:
    """Random pixels; half of those with alpha are a part transparent."""
    rng = np.random.default_rng(height * 100 + width + len(mode))
    array = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    array[::2, :, 3] = 255
    image = Image.fromarray(array)
    if mode == "CMYK":
        return Image.fromarray(array, "CMYK")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode, colors=200)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **(OPTIONS.get(kind, {}) | options))
    return stream.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def assert_as_pillow(data: bytes) -> None:
    decoded, expected = np.asarray(_core.decode_image(data)), by_pillow(data)
    assert decoded.shape == expected.shape == (*_core.probe_image(data)[:2], 3)
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k in KINDS for m in MODES[k]])
def test_every_kind_of_pixel(kind, mode, size):
    data = encode(noise(mode, *size), kind)
    assert _core.probe_image(data) == (*size, kind)
    assert_as_pillow(data)


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (12, 200, 77)], ids=str)
@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k in KINDS for m in MODES[k]])
def test_alpha_over_a_colour(kind, mode, background):
    data = encode(noise(mode, 23, 37), kind)
    stored = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.new("RGB", stored.size, background)
    expected.paste(stored, mask=stored.getchannel("A"))
    decoded = np.asarray(_core.decode_image(data, background=background))
    assert np.array_equal(decoded, np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparent_palette_png_over_a_colour():
    image = noise("P", 9, 13)
    data = encode(image, "png", transparency=bytes(range(0, 200, 1)))
    stored = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.new("RGB", stored.size, (9, 99, 199))
    expected.paste(stored, mask=stored.getchannel("A"))
    decoded = np.asarray(_core.decode_image(data, background=(9, 99, 199)))
    assert np.array_equal(decoded, np.asarray(expected))


@pytest.mark.parametrize("background", [(1, 2), (1, 2, 300), "red"], ids=str)
def test_wrong_colours_are_refused(background):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        _core.decode_image(encode(noise("RGB", 2, 2), "png"), background=background)


# GIF


def gif(
    canvas: tuple[int, int],
    box: tuple[int, int, int, int],
    *,
    transparent: int | None = None,
    interlaced: bool = False,
) -> bytes:
    """A frame at (left, top, width, height) of a canvas (width, height), written by Pillow."""
    left, top, width, height = box
    image = noise("P", height, width).convert("P")
    whole = encode(image, "gif", interlace=interlaced, optimize=False)
    at = whole.index(b"\x2c\0\0\0\0")
    frame = whole[at:]
    frame = b"\x2c" + struct.pack("<HHHH", left, top, width, height) + frame[9:]
    palette = image.getpalette("RGB")
    colors = bytes(palette + [0] * (768 - len(palette)))
    start = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0xF7, 5, 0) + colors
    if transparent is not None:
        start += b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    # The local palette, if any, is part of the frame.
    return start + frame


@pytest.mark.parametrize("transparent", [None, 0, 3, 200])
@pytest.mark.parametrize(
    "box", [(0, 0, 20, 10), (5, 3, 10, 4), (15, 8, 12, 9), (25, 12, 4, 4)], ids=str
)
def test_a_gif_frame_lies_on_its_canvas(box, transparent):
    assert_as_pillow(gif((20, 10), box, transparent=transparent))


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9, 40])
def test_interlaced_gif(height):
    image = noise("P", height, 21)
    data = encode(image, "gif", interlace=True)
    assert_as_pillow(data)
    assert np.array_equal(np.asarray(_core.decode_image(data)), np.asarray(image.convert("RGB")))


def test_first_frame_of_a_gif():
    frames = [noise("P", 16, 24).rotate(90 * n) for n in range(3)]
    data = encode(frames[0], "gif", save_all=True, append_images=frames[1:], duration=50)
    assert_as_pillow(data)


# BMP


def bmp(
    bits: int,
    pixels: bytes,
    *,
    size: tuple[int, int] = (13, 7),
    compression: int = 0,
    extra: bytes = b"",
    header: int = 40,
    colors: int = 0,
    from_top: bool = False,
) -> bytes:
    """A bitmap with a header of our own; `extra` stands between header and pixels."""
    width, height = size
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height if from_top else height, 1, bits, compression,
        len(pixels), 0, 0, colors, 0,
    )  # fmt: skip
    start = 14 + 40 + len(extra)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + info + extra + pixels


def rows(bits: int, size: tuple[int, int] = (13, 7)) -> bytes:
    rng = np.random.default_rng(bits)
    return rng.integers(0, 256, (size[0] * bits + 31) // 32 * 4 * size[1], np.uint8).tobytes()


def colors(count: int) -> bytes:
    return np.random.default_rng(count).integers(0, 256, 4 * count, np.uint8).tobytes()


@pytest.mark.parametrize("from_top", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8, 16, 24, 32])
def test_bmp_of_any_depth(bits, from_top):
    palette = colors(2**bits) if bits <= 8 else b""
    assert_as_pillow(bmp(bits, rows(bits), extra=palette, from_top=from_top))


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x07E0, 0x001F)),
        (16, (0x7C00, 0x03E0, 0x001F)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
    ],
)
def test_bmp_with_masks(bits, masks):
    assert_as_pillow(bmp(bits, rows(bits), compression=3, extra=struct.pack("<III", *masks)))


def test_old_bmp_header():
    pixels, size = rows(8), (13, 7)
    info = struct.pack("<IHHHH", 12, *size, 1, 8) + bytes(range(256)) * 3
    start = 14 + len(info)
    data = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + info + pixels
    assert_as_pillow(data)


@needs("pillow", "13", "it read some run lengths differently")
@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_of_run_lengths(bits):
    """Runs, pixels as they are with their padding, ends of rows, steps, and a run too long."""
    literal = bytes([0, 5, 1, 2, 3, 4, 5, 0]) if bits == 8 else bytes([0, 5, 0x12, 0x34, 0x50, 0])
    end = b"\0\0"
    runs = b"\x04\x07" + literal + b"\x04\x21" + end + b"\x0f\x03" + end + literal + end
    # One row up and three pixels to the right, then ten more.
    runs += b"\x01\x03" + b"\0\x02\x03\x01" + b"\x09\x32" + end
    runs += b"\x0d\x45" + end + b"\x0d\x67" + b"\0\x01"
    assert_as_pillow(bmp(bits, runs, compression=3 - bits // 4, extra=colors(2**bits)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bmp(8, rows(8)[:-1], extra=colors(256)), "bytes of pixel.*; expected 7 rows of 16 bytes"),
        (bmp(8, b"\x04\x07", compression=1, extra=colors(256)), "ends inside the RLE data"),
        (bmp(8, b"", extra=colors(9)), "ends inside the palette"),
        (bmp(8, b"")[:30], "ends inside the header"),
        (bmp(2, rows(8), extra=colors(4)), "unsupported 2 bits per pixel with compression 0"),
        (bmp(24, rows(24), compression=4), "unsupported 24 bits per pixel with compression 4"),
        (bmp(24, rows(24), header=39), "unsupported header .*39"),
        (bmp(24, rows(24), size=(0, 7)), "7 x 0 pixels"),
        (bmp(24, b"", size=(100_000, 100_000)), "at most 178956970 .*max_pixels"),
    ],
    ids=str,
)
def test_bmp_faults_are_named(data, reason):
    with pytest.raises(DecodeError, match=reason):
        _core.decode_image(data)


# TIFF


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_compressed_tiff(mode, compression):
    data = encode(noise(mode, 40, 33), "tiff", compression=compression)
    assert_as_pillow(data)


def test_fax_tiff():
    assert_as_pillow(encode(noise("1", 40, 33), "tiff", compression="group4"))


def test_tiff_of_16_bits_keeps_its_upper_half():
    stored = np.random.default_rng(0).integers(0, 1 << 16, (9, 13), dtype=np.uint16)
    data = encode(Image.fromarray(stored), "tiff")
    decoded = np.asarray(_core.decode_image(data))
    assert np.array_equal(decoded, np.repeat((stored >> 8)[..., None], 3, axis=2))


# WebP


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("quality", [5, 60, 99])
def test_lossy_webp_of_any_size(mode, quality):
    for size in (*SIZES, (16, 16), (33, 2), (2, 35), (64, 47)):
        data = encode(noise(mode, *size), "webp", quality=quality, lossless=False)
        assert b"VP8 " in data
        assert_as_pillow(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_first_frame_of_a_webp(mode):
    frames = [noise(mode, 23, 37), noise(mode, 23, 37).rotate(180)]
    data = encode(frames[0], "webp", save_all=True, append_images=frames[1:], duration=50)
    assert b"ANMF" in data
    assert_as_pillow(data)


# Broken files


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_an_error(kind):
    data = encode(noise("RGB", 40, 50), kind)
    # A GIF's last four bytes only end it.
    last = 5 if kind == "gif" else 13
    for length in (0, 1, 2, 6, 10, 20, 40, 100, len(data) // 3, len(data) // 2, len(data) - last):
        with pytest.raises(DecodeError):
            _core.decode_image(data[:length])
    # What stands behind the picture does no harm: the first bytes tell what it is.
    expected = np.asarray(_core.decode_image(data))
    for behind in (b"junk", encode(noise("RGB", 8, 8), "png"), b"PK\x03\x04"):
        assert np.array_equal(np.asarray(_core.decode_image(data + behind)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_changed_bytes_never_end_the_process(kind, mode):
    rng = np.random.default_rng(0)
    source = encode(noise(mode, 24, 32), kind) if mode in MODES[kind] else b"BM"
    outcomes = {"decoded": 0, "refused": 0}
    for _ in range(600):
        data = bytearray(source)
        # Headers are a small part of a file, but decide what is read and how much memory is taken.
        span = len(data) if rng.random() < 0.5 else min(len(data), 60)
        for position in rng.integers(0, span, 3):
            data[position] = rng.integers(0, 256)
        try:
            _core.decode_image(bytes(data), max_pixels=10**6)
            outcomes["decoded"] += 1
        except DecodeError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0
    # A PNG has a checksum for everything.
    assert outcomes["decoded"] > 0 or kind == "png" or len(source) == 2


def bombs() -> dict[str, bytes]:
    """Small files that say they hold 65,500 x 65,500 pixels."""
    side = 65_500
    found = {"bmp": bmp(24, b"", size=(side, side))}
    small_gif = bytearray(gif((4, 4), (0, 0, 4, 4)))
    small_gif[6:10] = struct.pack("<HH", side, side)
    found["gif"] = bytes(small_gif)
    png = bytearray(encode(noise("RGB", 1, 1), "png"))
    png[16:24] = struct.pack(">II", side, side)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    found["png"] = bytes(png)
    entries = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, side), (279, 4, 1 << 30)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    found["tiff"] = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)
    return found


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_a_bomb_is_refused_by_its_header(kind):
    with pytest.raises(DecodeError, match=r"at most 178956970 \(max_pixels\)"):
        _core.decode_image(bombs()[kind])


def test_a_webp_bomb_is_refused_by_its_header():
    data = bytearray(encode(noise("RGB", 1, 1), "webp"))
    start = data.index(b"VP8L") + 9
    # Width and height less one, 14 bits each.
    data[start : start + 4] = struct.pack("<I", 16382 | 16382 << 14)
    with pytest.raises(DecodeError, match="16383 x 16383 pixels; expected at most 178956970"):
        _core.decode_image(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_that_of_the_picture(kind):
    data = encode(noise("RGB", 8, 9), kind)
    with pytest.raises(DecodeError, match=r"8 x 9 pixels; expected at most 71 \(max_pixels\)"):
        _core.decode_image(data, max_pixels=71)
    assert _core.decode_image(data, max_pixels=72).shape == (8, 9, 3)


def test_names_mean_nothing(tmp_path):
    path = tmp_path / "really.jpg"
    image = noise("RGB", 5, 6)
    for kind in KINDS:
        path.write_bytes(encode(image, kind))
        assert np.asarray(_core.read_image(path)).shape == (5, 6, 3)
