"""Words on pictures are drawn in letters that the font has."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFont

from fiber.data import label_fonts
from fiber.data.label_fonts import drawn_as, label_font


def ink(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bytes:
    image = Image.new("L", (200, 30), 255)
    ImageDraw.Draw(image).text((2, 2), text, 0, font)
    return image.tobytes()


@pytest.fixture
def bare(monkeypatch):
    """Only Pillow's own font is there."""
    monkeypatch.setattr(label_fonts, "_FILES", ())
    label_font.cache_clear()
    yield label_font(14)
    label_font.cache_clear()


def test_letters_that_a_font_lacks_are_drawn_as_others(bare):
    assert drawn_as("a café, naïve", bare) == "a cafe, naive"
    assert drawn_as("Ǆ 犬", bare) == "DZ ?"
    assert drawn_as("plain «text»", bare) == "plain «text»"
    # What is drawn in its place has ink of its own, which a letter that is lacked has not.
    assert ink("é", bare) == ink("\ue123", bare) != ink(drawn_as("é", bare), bare)


def test_an_installed_font_draws_more():
    label_font.cache_clear()
    font = label_font(14)
    if font.getname()[0] == "Aileron":
        pytest.skip("none of the fonts with more letters is installed")
    assert drawn_as("café Straße", font) == "café Straße"
    assert drawn_as("cafe\u0301", font) == "café"
    assert ink("é", font) != ink("e", font) != ink("\ue123", font)
