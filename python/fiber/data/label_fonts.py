"""Fonts for words on pictures: one with the letters of many languages where one is installed."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

#: Files that Linux, macOS or Windows have, those with the most letters first.
_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
)
#: A character that no font has.
_NONE = "\ue123"


@functools.cache
def label_font(size: int) -> FreeTypeFont | ImageFont:
    """Return a font of a size in pixels; as a last resort Pillow's own, for English."""
    from PIL import ImageFont

    for name in _FILES:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size=size)


def drawn_as(text: str, font: FreeTypeFont | ImageFont) -> str:
    """Say a text in letters that a font has: "é" as "e" where there is no "é", else "?"."""
    return "".join(
        letter if _has(font, letter) else _plain(letter, font)
        for letter in unicodedata.normalize("NFC", text)
    )


def _plain(letter: str, font: FreeTypeFont | ImageFont) -> str:
    parts = unicodedata.normalize("NFKD", letter)
    kept = "".join(part for part in parts if not unicodedata.combining(part) and _has(font, part))
    return kept or "?"


@functools.lru_cache(4096)
def _has(font: FreeTypeFont | ImageFont, letter: str) -> bool:
    if letter.isascii() or letter.isspace():
        return True
    return _ink(font, letter) != _ink(font, _NONE)


def _ink(font: FreeTypeFont | ImageFont, letter: str) -> bytes:
    from PIL import Image, ImageDraw

    side = 2 * round(font.getlength("W")) + 8
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((4, 4), letter, 255, font)
    return image.tobytes()
