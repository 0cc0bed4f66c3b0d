"""Draw the example images of the demo, one by one and as a contact sheet.

Predicted boxes have the numbers of their texts; ground-truth boxes are dashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fiber.atomic_io import write_file
from fiber.demo.examples import Example, Examples, Twice
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.grounding import FOUND_AT
from fiber.visualize import Color, add_caption, draw_boxes, draw_dashed_box, make_sheet

#: Width in pixels that enlarged images have at most, and images per row of the sheet.
IMAGE_WIDTH, COLUMNS = 288, 4
#: Indices into `COLORS` that are no colors of scenes, so that a box is not taken for an object.
BOX_COLORS = (3, 6, 7, 9)
_FONT_SIZE, _TITLE_SIZE, _LINE_WIDTH = 15, 20, 4

_BLACK: Color = (20, 20, 20)
_RED: Color = (190, 20, 20)


def draw_sheet(path: Path, data: Path, examples: Examples) -> None:
    """Save a PNG sheet of examples, with one title per kind."""
    rows = []
    for title, shown in (
        ("The same picture, asked twice", one_box_each(examples.twice)),
        ("Everything right", examples.scored.hits),
        ("With a mistake", examples.scored.misses),
    ):
        if shown:
            row = make_sheet([draw_tile(example, data) for example in shown], COLUMNS)
            rows.append(add_caption(row, [(title, _BLACK)], size=_TITLE_SIZE, above=True))
    sheet = make_sheet(rows, 1)
    write_file(path, lambda part: sheet.save(part, "PNG", optimize=True))


def one_box_each(twice: Sequence[Twice]) -> list[Example]:
    """Return images twice, each time with one of the boxes.

    These are the first image of each split, and the first one with two relations or else the second
    image.
    """
    images = [
        example
        for split in twice
        for example in (*split.shown[:1], *(split.relations[:1] or split.shown[1:2]))
    ]
    return [replace(example, boxes=[box]) for example in images for box in example.boxes]


def draw_image(example: Example, data: Path) -> Image.Image:
    """Draw an image of the dataset `data` with its boxes, enlarged by a whole number."""
    with Image.open(data / example.image) as file:
        image = file.convert("RGB")
    # Without interpolation, so that the pixels are those that the model sees.
    scale = max(1, IMAGE_WIDTH // image.width)
    size = (image.width * scale, image.height * scale)
    image = image.resize(size, Image.Resampling.NEAREST)
    boxes: list[Sequence[float]] = []
    scaled, numbers = [], []
    for number, found in enumerate(example.boxes):
        if found.box_xyxy is None:
            continue
        # Farther out, so that earlier boxes of the same object stay visible.
        out = _LINE_WIDTH * int((pairwise_iou([found.box_xyxy], boxes) >= FOUND_AT).sum())
        x0, y0, x1, y1 = (float(edge) * scale for edge in found.box_xyxy)
        scaled.append((x0 - out, y0 - out, x1 + out, y1 + out))
        boxes.append(found.box_xyxy)
        numbers.append(number)
    labels = [str(number + 1) if len(example.boxes) > 1 else "" for number in numbers]
    colors = [BOX_COLORS[number % len(BOX_COLORS)] for number in numbers]
    draw_boxes(image, scaled, labels, colors, _LINE_WIDTH)
    # Last, since the line of a good box is where the truth's is, and wider.
    for truth in (truth for found in example.boxes for truth in found.truths_xyxy):
        draw_dashed_box(image, [float(edge) * scale for edge in truth])
    return image


def draw_tile(example: Example, data: Path) -> Image.Image:
    """Draw an image with its boxes, and the texts below it."""
    texts: list[tuple[str, Color]] = []
    for number, found in enumerate(example.boxes):
        start = f"{number + 1}  " if len(example.boxes) > 1 else ""
        verdict, color = ("found", _BLACK) if found.is_found else ("missed", _RED)
        texts.append((f"{start}{found.text}: {verdict}", color))
    if example.question:
        texts.append((example.question, _BLACK))
        if example.answer == example.truth:
            texts.append((f"{example.answer}: right", _BLACK))
        else:
            texts.append((f"{example.answer}: wrong, it is {example.truth}", _RED))
    return add_caption(draw_image(example, data), texts, size=_FONT_SIZE)
