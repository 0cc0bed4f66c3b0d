"""Drawings of several sizes, for which boxes and answers of graphs and networks are compared."""

from __future__ import annotations

from PIL import Image, ImageDraw

#: (width, height) in pixels. The last two share a padded size, so they are run together.
SIZES = ((200, 180), (320, 200), (90, 250), (224, 224), (220, 222))
COLORS = ("red", "green", "blue", "purple", "orange")


def drawings() -> list[Image.Image]:
    """Draw a circle, a square and a triangle in each image."""
    images = []
    for number, (width, height) in enumerate(SIZES):
        image = Image.new("RGB", (width, height), (230, 225, 215))
        draw = ImageDraw.Draw(image)
        side = min(width, height) // 3
        circle, square, triangle = (COLORS[(number + n) % len(COLORS)] for n in (0, 2, 1))
        draw.ellipse((6, 10, 6 + side, 10 + side), fill=circle)
        x, y = width - side - 12, height - side - 8
        draw.rectangle((x, y, x + side, y + side), fill=square)
        x, y = 10, height - side - 4
        draw.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=triangle)
        images.append(image)
    return images
