"""Targets of rust/fuzz, read through the extension module, so that pytest reads their corpus."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fiber import DecodeError, _core
from fiber.data import Tokenizer
from tests.fuzz import tokenizer_json

#: Pixel limit; larger images would only take longer.
MAX_PIXELS = 1 << 16
_JPEG_SEEDS = Path(__file__).parents[1] / "jpeg_seeds"
_TEXT = "the red cat's  mat\n\u00e9\u4e2d <mask>"
#: Images that Pillow writes: format, mode, options.
_KINDS = (
    ("png", "RGBA", {}),
    ("png", "P", {}),
    ("gif", "P", {}),
    ("bmp", "RGB", {}),
    ("bmp", "P", {}),
    ("webp", "RGB", {"lossless": True}),
    ("webp", "RGBA", {"quality": 50}),
    ("tiff", "RGB", {}),
    ("tiff", "P", {"compression": "tiff_lzw"}),
    ("tiff", "1", {"compression": "group4"}),
    ("tiff", "CMYK", {"compression": "tiff_adobe_deflate"}),
    ("tiff", "L", {"compression": "packbits"}),
    ("tiff", "LA", {}),
    ("tiff", "RGB", {"big_tiff": True}),
)


def images(data: bytes, folder: Path) -> bool:
    """Decode an image; the pixels have the size in the header."""
    try:
        pixels = np.asarray(
            _core.decode_image(data, max_pixels=MAX_PIXELS, background=(9, 99, 199))
        )
    except DecodeError:
        return False
    size = _core.probe_image(data)[:2]
    assert pixels.shape == (*size, 3)
    kept, dropped = (
        np.asarray(_core.decode_image(data, max_pixels=MAX_PIXELS, keep_alpha=keep_alpha))
        for keep_alpha in (True, False)
    )
    assert kept.shape in ((*size, 3), (*size, 4))
    assert np.array_equal(kept[..., :3], dropped)
    assert kept.shape[2] == 3 or kept[..., 3].min() < 255
    return True


def image_seeds() -> list[bytes]:
    """Images of every format but JPEG."""
    draw, found = np.random.default_rng(0), []
    for kind, mode, options in _KINDS:
        image = Image.fromarray(draw.integers(0, 256, (7, 5, 3), dtype=np.uint8)).convert(mode)
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def jpegs(data: bytes, folder: Path) -> bool:
    """Decode a JPEG with the options in its last byte, as rust/fuzz/targets/jpeg.rs does."""
    choice, content = (data[-1], data[:-1]) if data else (0, b"")
    try:
        _core.decode_jpeg(
            content,
            divisor=1 << (choice & 3),
            stop_row=choice >> 3 if choice & 4 else None,
            max_pixels=MAX_PIXELS,
        )
    except DecodeError:
        return False
    return True


def jpeg_seeds() -> list[bytes]:
    """Small JPEGs of every kind of scan."""
    return [path.read_bytes() for path in sorted(_JPEG_SEEDS.glob("*.jpg"))]


def texts(data: bytes, folder: Path) -> bool:
    """Encode a text with a trained vocabulary."""
    tokenizer = Tokenizer.train([_TEXT, "aaaa bbbb abab"] * 9, 300)
    tokenizer.encode(data.decode(errors="replace"))
    return True


def text_seeds() -> list[bytes]:
    """A text of letters, numbers, marks and special tokens."""
    return [_TEXT.encode()]


def tokenizer_files(data: bytes, folder: Path) -> bool:
    """Read a tokenizer.json, encode a text and decode it, and write the file."""
    try:
        tokenizer = Tokenizer.from_json(data.decode())
        ids, _ = tokenizer.encode(_TEXT, max_tokens=40)
        tokenizer.decode(ids)
        tokenizer.to_json()
    except ValueError:
        return False
    return True


def tokenizer_seeds() -> list[bytes]:
    """A small tokenizer.json, and sound ones of every kind of part."""
    made = (json.dumps(tokenizer_json.Source(seed).tokenizer()).encode() for seed in range(300))
    sound = [data for data in made if tokenizer_files(data, Path())]
    return [Tokenizer.train([_TEXT] * 9, 270).to_json().encode(), *sound[:20]]
