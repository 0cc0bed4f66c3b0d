"""`apply_orientation`: pictures of every format are turned as by Pillow's `exif_transpose`."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fiber.data import ImageTransform, Tokenizer
from tests.data.loader_records import TEXT, make, record
from tests.peer_versions import needs

KINDS = ("jpeg", "png", "webp", "tiff")
OPTIONS = {"webp": {"lossless": True}}
SIDE = 12
STORED = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def tags(orientation: int, order: str = "<") -> bytes:
    """EXIF data with a width and an orientation, `order` "<" or ">"."""
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, 2)
    width = struct.pack(f"{order}HHII", 0x0100, 4, 1, 30)
    return start + width + struct.pack(f"{order}HHIHHI", 0x0112, 3, 1, orientation, 0, 0)


def encode(kind: str, orientation: int | None = None) -> bytes:
    stream = io.BytesIO()
    options = dict(OPTIONS.get(kind, {}))
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    Image.fromarray(STORED).save(stream, kind, **options)
    return stream.getvalue()


def with_exif(kind: str, data: bytes) -> bytes:
    """The picture with any bytes where EXIF data stand; of a PNG and a WebP behind the pixels."""
    whole = encode(kind)
    if kind == "jpeg":
        body = b"Exif\0\0" + data
        return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + whole[2:]
    if kind == "png":
        chunk = b"eXIf" + data
        chunk = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return whole[:-12] + chunk + whole[-12:]
    height, width = STORED.shape[:2]
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    # The flag says that there are EXIF data.
    chunks = b"VP8X" + struct.pack("<II", 10, 8) + canvas + whole[12:]
    chunks += b"EXIF" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def loaded(tokenizer, data: bytes, *, apply_orientation: bool = True, **fields):
    batch_type = "grounding" if fields else "image_text"
    (batch,) = make(
        tokenizer,
        [record(0, images=(data,), **fields)],
        batch_type,
        transform=ImageTransform.squash(SIDE),
        apply_orientation=apply_orientation,
        image_dtype="uint8",
    )
    return batch


def squashed(picture: Image.Image) -> torch.Tensor:
    """Rows first, then columns, by Pillow."""
    picture = picture.convert("RGB")
    for size in ((SIDE, picture.height), (SIDE, SIDE)):
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def assert_turned_as_by_pillow(tokenizer, data: bytes) -> None:
    batch = loaded(tokenizer, data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert torch.equal(batch.images[0], squashed(upright))
    assert batch.original_sizes.tolist() == [[upright.height, upright.width]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_turned_on_demand(tokenizer, kind, orientation):
    data = encode(kind, orientation)
    assert_turned_as_by_pillow(tokenizer, data)
    batch = loaded(tokenizer, data, apply_orientation=False)
    # Pillow turns a TIFF when it opens it, so what is stored is taken from one without the tag.
    assert torch.equal(batch.images[0], squashed(Image.open(io.BytesIO(encode(kind)))))
    assert batch.original_sizes.tolist() == [[20, 30]]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "prefix",
    [b"", pytest.param(b"Exif\0\0", marks=needs("pillow", "11", "it ignored a second prefix"))],
    ids=["bare", "prefix"],
)
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_exif_behind_the_pixels_is_read(tokenizer, kind, prefix, order):
    data = with_exif(kind, prefix + tags(6, order))
    assert loaded(tokenizer, data).original_sizes.tolist() == [[30, 20]]
    assert_turned_as_by_pillow(tokenizer, data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_those_of_the_turned_picture(tokenizer, kind, orientation):
    width, height = (20, 30) if orientation >= 5 else (30, 20)
    fields = {"boxes_xyxy": ((0, 0, width, height),), "char_spans": (((0, 1),),)}
    batch = loaded(tokenizer, encode(kind, orientation), **fields)
    assert batch.boxes_xyxy.tolist() == [[0, 0, SIDE, SIDE]]


MALFORMED = {
    "empty": b"",
    "a letter": b"I",
    "no directory": b"II*\0",
    "a far directory": b"II*\0\xff\xff\xff\xff",
    "cut": tags(6)[:-8],
    "not TIFF": b"XX*\0" + tags(6)[4:],
    "orientation 0": tags(0),
    "orientation 9": tags(9),
    "many entries": tags(6)[:8] + b"\xff\xff" + bytes(20),
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_malformed_exif_turns_nothing(tokenizer, kind, data):
    batch = loaded(tokenizer, with_exif(kind, data))
    assert torch.equal(batch.images[0], squashed(Image.open(io.BytesIO(encode(kind)))))
    assert batch.statuses == ("ok",)


@pytest.mark.parametrize("field", [2, 4, 8], ids=["kind", "count", "value"])
def test_a_malformed_orientation_of_a_tiff_turns_nothing(tokenizer, field):
    data = bytearray(encode("tiff", 6))
    at = data.index(struct.pack("<HHI", 0x0112, 3, 1)) + field
    data[at : at + 2] = struct.pack("<H", 9)
    batch = loaded(tokenizer, bytes(data))
    assert torch.equal(batch.images[0], squashed(Image.open(io.BytesIO(encode("tiff")))))


@pytest.mark.parametrize(
    ("kind", "said", "lie"),
    [
        ("png", struct.pack(">I", len(tags(6))) + b"eXIf", b"\xff\xff\xff\xffeXIf"),
        ("webp", b"EXIF" + struct.pack("<I", len(tags(6))), b"EXIF\xff\xff\xff\xff"),
    ],
    ids=["png", "webp"],
)
def test_exif_that_reaches_past_the_end_turns_nothing(tokenizer, kind, said, lie):
    """The pixels are whole, so the picture comes out all the same."""
    data = with_exif(kind, tags(6))
    assert data.count(said) == 1
    batch = loaded(tokenizer, data.replace(said, lie))
    assert batch.original_sizes.tolist() == [[20, 30]]


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [
        ("png", struct.pack(">I", len(tags(6))) + b"eXIf" + tags(6) + bytes(4)),
        ("webp", b"EXIF" + struct.pack("<I", len(tags(6))) + tags(6)),
    ],
    ids=["png", "webp"],
)
def test_exif_behind_the_end_of_a_picture_is_not_read(tokenizer, kind, chunk):
    batch = loaded(tokenizer, encode(kind) + chunk)
    assert batch.original_sizes.tolist() == [[20, 30]]
