"""TIFF of every kind that Pillow writes or reads: Pillow's values, or an error with the feature."""

import io
import itertools
import random
import struct

import numpy as np
import pytest
from PIL import Image

from fiber import DecodeError, _core
from tests.peer_versions import needs
from tests.rust.image.test_formats import assert_as_pillow, noise

COMPRESSIONS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]
#: Decoded kinds of pixels that Pillow writes.
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]
ZSTD = needs("pillow", "12", "it did not write ZSTD")


def write(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "tiff", **options)
    return stream.getvalue()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_what_pillow_writes_is_decoded_to_its_values(mode, compression):
    assert_as_pillow(write(noise(mode, 23, 37), compression=compression))


@needs("pillow", "11.1", "it did not write BigTIFF")
@pytest.mark.parametrize("mode", MODES)
def test_bigtiff(mode):
    """Pillow writes it without compression only."""
    data = write(noise(mode, 23, 37), big_tiff=True)
    assert data.startswith(b"II+\0")
    assert _core.probe_image(data) == (23, 37, "tiff")
    assert_as_pillow(data)


@pytest.mark.parametrize(
    ("mode", "compression", "feature"),
    [
        *(("RGB", name, name.upper()) for name in ("jpeg", "lzma")),
        *(("1", name, "CCITT") for name in ("group3", "tiff_ccitt")),
        *(pytest.param(mode, "zstd", "ZSTD", marks=ZSTD) for mode in ("RGB", "P")),
        ("YCbCr", "raw", "YCbCr"),
        ("YCbCr", "tiff_lzw", "YCbCr"),
        ("LAB", "raw", "CIELab"),
        ("F", "raw", "floating point"),
        ("I", "raw", "signed integers"),
    ],
)
def test_what_is_not_decoded_is_named(mode, compression, feature):
    image = Image.new("LAB", (3, 3)) if mode == "LAB" else noise("RGB", 9, 13).convert(mode)
    with pytest.raises(DecodeError, match=f"TIFF: unsupported .*{feature}") as caught:
        _core.decode_image(write(image, compression=compression))
    assert caught.value.status == "unsupported"


# Files of our own, for what Pillow reads and does not write.

SHORT, LONG, LONG8 = 3, 4, 16
#: A big-endian BigTIFF, which Pillow 13 takes for a classic file.
PILLOW_CANNOT = (">", True)
SIZES = {SHORT: 2, LONG: 4, LONG8: 8}


def tiff(
    tags: dict[int, list[int]], strips: list[bytes], order: str = "<", *, is_big: bool = False
) -> bytes:
    """A TIFF of uncompressed strips or tiles; `tags` are those besides their offsets and sizes."""
    word = LONG8 if is_big else LONG
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}HHH", 43, 8, 0) if is_big else struct.pack(f"{order}H", 42)
    start = len(mark + head) + SIZES[word]
    offsets = list(itertools.accumulate(map(len, strips), initial=start))
    place, sizes = (324, 325) if 322 in tags else (273, 279)
    tags = {**tags, place: offsets[:-1], sizes: [len(strip) for strip in strips]}
    body, entries = b"".join(strips), b""
    for tag, values in sorted(tags.items()):
        kind = word if tag in (place, sizes) else SHORT
        code = {SHORT: "H", LONG: "I", LONG8: "Q"}
        stored = struct.pack(f"{order}{len(values)}{code[kind]}", *values)
        if len(stored) > SIZES[word]:
            offset = start + len(body)
            body, stored = body + stored, struct.pack(f"{order}{code[word]}", offset)
        entries += struct.pack(f"{order}HH{code[word]}", tag, kind, len(values))
        entries += stored.ljust(SIZES[word], b"\0")
    directory = struct.pack(f"{order}{code[word]}", start + len(body))
    count = struct.pack(f"{order}{'Q' if is_big else 'H'}", len(tags))
    return mark + head + directory + body + count + entries + bytes(SIZES[word])


def tags_of(height: int, width: int, bits: list[int], photometric: int, **more) -> dict:
    extra = {} if len(bits) in (1, 3) or photometric == 5 else {338: [2]}
    return {
        256: [width],
        257: [height],
        258: bits,
        259: [1],
        262: [photometric],
        277: [len(bits)],
        278: [height],
        **extra,
        **more,
    }


@pytest.mark.parametrize("is_big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("channels", "photometric"), [(3, 2), (4, 2), (4, 5)])
def test_separate_planes(channels, photometric, order, is_big):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 9, 13), dtype=np.uint8)
    tags = tags_of(9, 13, [8] * channels, photometric) | {284: [2], 278: [4]}
    # Strips of four rows, the last of one, of one plane after the other.
    strips = [plane[top : top + 4].tobytes() for plane in pixels for top in (0, 4, 8)]
    planar = tiff(tags, strips, order, is_big=is_big)
    chunky = tiff(tags | {284: [1], 278: [9]}, [np.moveaxis(pixels, 0, -1).tobytes()], order)
    assert_as_pillow(chunky)
    decoded = np.asarray(_core.decode_image(planar))
    assert np.array_equal(decoded, np.asarray(_core.decode_image(chunky)))
    if photometric == 2 and (order, is_big) != PILLOW_CANNOT:
        assert_as_pillow(planar)


def test_separate_planes_in_tiles_of_16_bits():
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (3, 32, 48), dtype=np.uint16)
    tags = tags_of(32, 48, [16] * 3, 2) | {284: [2], 322: [16], 323: [16]}
    del tags[278]
    corners = [(y, x) for y in (0, 16) for x in (0, 16, 32)]
    tiles = [plane[y : y + 16, x : x + 16].tobytes() for plane in pixels for y, x in corners]
    decoded = np.asarray(_core.decode_image(tiff(tags, tiles)))
    assert np.array_equal(decoded, np.moveaxis(pixels >> 8, 0, -1))
    with pytest.raises(DecodeError, match=r"TIFF: unsupported separate planes in tiles"):
        _core.decode_image(tiff(tags | {257: [20]}, tiles))


@pytest.mark.parametrize("is_big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1, 3], ids=["white is 0", "black is 0", "palette"])
def test_few_bits_per_pixel(photometric, bits, order, is_big):
    draw = np.random.default_rng(bits)
    rows = draw.integers(0, 256, (7, -(-13 * bits // 8)), dtype=np.uint8)
    colors = draw.integers(0, 1 << 16, 3 << bits).tolist()
    more = {320: colors} if photometric == 3 else {}
    tags = tags_of(7, 13, [bits], photometric) | more
    data = tiff(tags, [rows.tobytes()], order, is_big=is_big)
    if (order, is_big) != PILLOW_CANNOT:
        assert_as_pillow(data)
        return
    classic = tiff(tags, [rows.tobytes()], order)
    decoded, expected = (np.asarray(_core.decode_image(each)) for each in (data, classic))
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_bigtiff(orientation, order):
    """Read as from a classic file; the loader applies it, `decode_image` does not."""
    from fiber.data import Collator, ImageTransform, Record, Tokenizer

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    tags = tags_of(8, 8, [8] * 3, 2) | {274: [orientation]}
    collate = Collator(
        "image_text",
        tokenizer=Tokenizer.train(["a cup"] * 9, 270),
        transform=ImageTransform.squash(8),
        max_tokens=8,
        apply_orientation=True,
        image_dtype="uint8",
    )
    files = [tiff(tags, [pixels.tobytes()], order, is_big=is_big) for is_big in (False, True)]
    records = [Record(key=str(at), images=(data,), text="cup") for at, data in enumerate(files)]
    classic, big = collate(records, epoch=0).images
    assert (classic == big).all()
    assert (classic.movedim(0, -1).numpy() == pixels).all() == (orientation == 1)


def test_palettes_without_colors():
    """A missing palette is an error; indices after its end are black."""
    tags = tags_of(1, 2, [8], 3)
    with pytest.raises(DecodeError, match=r"TIFF: .*ColorMap"):
        _core.decode_image(tiff(tags, [bytes(2)]))
    data = tiff(tags | {320: [9 << 8, 8 << 8, 7 << 8]}, [bytes([0, 1])])
    assert np.asarray(_core.decode_image(data)).tolist() == [[[9, 8, 7], [0, 0, 0]]]


@pytest.mark.parametrize("rows", [4, 40], ids=["strips", "one strip"])
def test_damaged_group_4_is_an_error_or_read_as_libtiff_does(rows, capfd):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 60)) != 0)
    image.paste(0, (10, 10, 50, 30))
    data = write(image, compression="group4", tiffinfo={278: rows})
    with Image.open(io.BytesIO(data)) as stored:
        offsets, sizes = stored.tag_v2[273], stored.tag_v2[279]
    assert_as_pillow(data)
    places = [
        at for start, size in zip(offsets, sizes, strict=True) for at in range(start, start + size)
    ]
    draw, refused = random.Random(rows), 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[draw.choice(places)] ^= 1 << draw.randrange(8)
        try:
            _core.decode_image(bytes(damaged))
        except DecodeError as error:
            assert error.status == "corrupt" and "group 4" in str(error)
            refused += 1
        else:
            assert_as_pillow(bytes(damaged))
    assert 75 < refused < 150
    capfd.readouterr()  # libtiff's warnings


@pytest.mark.parametrize("bits", [1, 8])
def test_the_other_order_of_bits_is_named(bits):
    tags = tags_of(7, 16, [bits], 1) | {266: [2]}
    with pytest.raises(DecodeError, match=r"TIFF: unsupported order of bits") as caught:
        _core.decode_image(tiff(tags, [bytes(range(7 * 2 * bits))]))
    assert caught.value.status == "unsupported"
