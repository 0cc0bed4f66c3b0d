"""A sheet of some pictures of a data set, with their boxes and texts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fiber.data.box_drawing import draw_boxes
from fiber.data.image import load_image
from fiber.data.label_fonts import drawn_as, label_font
from fiber.data.record import Record, RecordSet, StoredImage
from fiber.data.tools.discover import Part

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pictures of a part, and in a row; sources that are shown, most telling first.
PER_PART, ACROSS = 5, 5
ORDER = ("detection", "objects365", "phrases", "mixed", "referring", "captions")
#: Parts of a sheet at most.
MOST_PARTS = 8
_SIDE, _LINES, _LINE_PIXELS, _LINE_LETTERS = 260, 3, 15, 42


class ContactSheet:
    """Collects records as they are read, and draws them."""

    def __init__(self) -> None:
        self._chosen: list[tuple[Part, list[Record]]] = []

    def add(self, part: Part, records: RecordSet) -> None:
        """Choose records of a part, evenly spaced; those with boxes where some have any."""
        count = len(records)
        looked_at = [records[i] for i in range(0, count, max(1, count // (4 * PER_PART)))]
        with_boxes = [record for record in looked_at if record.boxes_xyxy]
        some = with_boxes or looked_at
        self._chosen.append((part, some[:: max(1, len(some) // PER_PART)][:PER_PART]))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(records for _, records in self._chosen)

    def draw(self) -> Image:
        """Draw a row of pictures for each part; a broken picture is a grey field with its fault.

        Raises:
            ValueError: if no record was added.
        """
        from PIL import Image, ImageDraw

        rows = sorted(
            ((part, records) for part, records in self._chosen if records),
            key=lambda row: ORDER.index(row[0].source) if row[0].source in ORDER else len(ORDER),
        )[:MOST_PARTS]
        if not rows:
            raise ValueError("no record can be read; expected some to draw")
        cell = _SIDE + _LINES * _LINE_PIXELS + 12
        sheet = Image.new("RGB", (ACROSS * (_SIDE + 8) + 8, len(rows) * (cell + 22) + 8), "white")
        draw = ImageDraw.Draw(sheet)
        small, large = label_font(12), label_font(15)
        for number, (part, records) in enumerate(rows):
            top = 8 + number * (cell + 22)
            draw.text((8, top), drawn_as(f"{part.source}, {part.split}", large), "black", large)
            for column, record in enumerate(records):
                left = 8 + column * (_SIDE + 8)
                sheet.paste(_cell(record), (left, top + 22))
                said = textwrap.wrap(_about(record), _LINE_LETTERS, max_lines=_LINES)
                for line, text in enumerate(said):
                    place = (left, top + 22 + _SIDE + 4 + line * _LINE_PIXELS)
                    draw.text(place, drawn_as(text, small), "black", small)
        return sheet


def _about(record: Record) -> str:
    """What stands below a picture: its text, and what is known beside its boxes."""
    text = record.text
    if len(record.labels) > 1 and record.boxes_xyxy:
        # Of prompts with every class the picture's own are told.
        own = dict.fromkeys(record.labels[label] for label in record.box_labels)
        text = text if len(record.labels) <= len(own) else ", ".join(own)
    answers = record.answers or {}
    best = max(answers, key=lambda answer: answers[answer]) if answers else ""
    said = [text, best, "" if record.truth is None else str(record.truth).lower()]
    return "  -  ".join(filter(None, said))


def _cell(record: Record) -> Image:
    """Draw the pictures of a record side by side in a square."""
    from PIL import Image

    field = Image.new("RGB", (_SIDE, _SIDE), (235, 235, 235))
    width = _SIDE // len(record.images)
    for place in range(len(record.images)):
        _paste(field, record, place, (place * width, 0, width, _SIDE))
    return field


def _paste(field: Image, record: Record, place: int, inside: tuple[int, int, int, int]) -> None:
    from PIL import Image, ImageDraw

    left, top, width, height = inside
    try:
        stored: StoredImage = record.images[place]
        picture = Image.fromarray(load_image(stored))
    except (ValueError, OSError) as problem:
        lines = textwrap.wrap(str(problem), max(8, width // 7), max_lines=8)
        ImageDraw.Draw(field).multiline_text((left + 6, top + 6), "\n".join(lines), (170, 0, 0))
        return
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    drawn = picture.resize(size)
    if place == 0:
        boxes = [[edge * scale for edge in box] for box in record.boxes_xyxy]
        draw_boxes(drawn, boxes, _labels(record), _colors(record))
    field.paste(drawn, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))


def _labels(record: Record) -> list[str]:
    if not record.box_labels:
        return ["" for _ in record.boxes_xyxy]
    return [textwrap.shorten(record.labels[label], 22) for label in record.box_labels]


def _colors(record: Record) -> Sequence[int]:
    return record.box_labels or range(len(record.boxes_xyxy))
