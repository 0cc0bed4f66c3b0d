"""Draw boxes with labels, captions and contact sheets."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fiber.data import load_image
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.data.masks.codec import decode_masks
from fiber.data.masks.mask import IdMap

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from fiber.data import Record, RecordSet
    from fiber.data.tools.discover import Part

Color = tuple[int, int, int]

#: Box colors by index, distinct on light and dark images.
COLORS: tuple[Color, ...] = tuple(
    (color >> 16, color >> 8 & 255, color & 255)
    for color in (
        *(0xE6194B, 0x3CA04B, 0x006EDC, 0xF58230, 0x911EB4, 0x009696, 0xC828A0, 0x8C6414),
        *(0x5A5AC8, 0x788200, 0x000080, 0x800000, 0xFFE119, 0x46E1F0, 0xFABED4, 0xAAFFC3),
    )
)
#: Common fonts on Linux, macOS and Windows that cover more characters than Pillow's own.
_FONT_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
)
#: A private-use character, rendered as a missing glyph.
_MISSING = "\ue123"
_GAP = 12
#: Share of a mask's color in the pixels that it covers.
_OPACITY = 0.45


@functools.lru_cache(64)
def _fonts(size: int) -> tuple[FreeTypeFont | ImageFont, ...]:
    """Load the installed fonts, followed by Pillow's default font."""
    from PIL import ImageFont

    files: list[str] = [*_FONT_FILES]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        files.append(str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    fonts: list[FreeTypeFont | ImageFont] = []
    for file in files:
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(file, size))
    return (*fonts, ImageFont.load_default(size))


@functools.lru_cache(65536)
def _has(font: FreeTypeFont | ImageFont, character: str) -> bool:
    if character.isascii():
        return True
    drawn, missing = font.getmask(character), font.getmask(_MISSING)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)  # type: ignore[arg-type]


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "no installed font covers all characters of the text, so some characters are replaced;"
        " install the DejaVu or Noto fonts",
        RuntimeWarning,
        stacklevel=2,
    )


def drawable(text: str, size: int) -> tuple[str, FreeTypeFont | ImageFont]:
    """Choose a font that covers all characters of a text; return the text to draw and the font.

    If there is no such font, uncovered characters lose their accents ("é" becomes "e") or become
    "?", and one warning is issued per process. Line breaks become spaces. `size` is in pixels.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    fonts = _fonts(size)
    font = next((font for font in fonts if all(_has(font, c) for c in text)), None)
    if font is not None:
        return text, font
    _warn_once()
    font = max(fonts, key=lambda font: sum(_has(font, c) for c in text))

    def plain(character: str) -> str:
        parts = unicodedata.normalize("NFKD", character)
        return "".join(c for c in parts if not unicodedata.combining(c) and _has(font, c)) or "?"

    return "".join(c if _has(font, c) else plain(c) for c in text), font


def wrap_text(
    text: str, font: FreeTypeFont | ImageFont, width: float, max_lines: int | None = None
) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words if possible.

    If there are more than `max_lines` lines, the last line kept ends with an ellipsis.
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if max_lines is not None and len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[max_lines - 1 :] = [f"{last}…"]
    return lines


def add_caption(
    image: Image,
    texts: Sequence[tuple[str, Color]],
    *,
    size: int,
    max_lines: int | None = None,
    above: bool = False,
) -> Image:
    """Return a copy of an image with wrapped texts on a white band below or above it.

    `size` is the font size in pixels. The band has room for `max_lines` lines, by default as many
    as needed.
    """
    from PIL import Image as PilImage
    from PIL import ImageDraw

    margin, line_height = 4, round(1.25 * size)
    lines = [
        (line, font, color)
        for text, font, color in ((*drawable(text, size), color) for text, color in texts)
        for line in wrap_text(text, font, image.width - 2 * margin, max_lines)
    ]
    count = len(lines) if max_lines is None else max_lines
    band = line_height * count + 2 * margin
    captioned = PilImage.new("RGB", (image.width, image.height + band), "white")
    captioned.paste(image, (0, band if above else 0))
    draw, top = ImageDraw.Draw(captioned), margin + (0 if above else image.height)
    for row, (line, font, color) in enumerate(lines[:count]):
        draw.text((margin, top + row * line_height), line, color, font)
    return captioned


def place_labels(
    boxes_xyxy: Sequence[Sequence[float]],
    label_sizes: Sequence[tuple[float, float]],
    image_size: tuple[int, int],
) -> np.ndarray:
    """Place the labels of boxes greedily so that they overlap as little as possible.

    In order of preference, a label is placed above, below or inside its box, or in the nearest gap.

    Args:
        boxes_xyxy: (n, 4), in pixels.
        label_sizes: (n, 2), width and height in pixels.
        image_size: (height, width) in pixels.

    Returns:
        (n, 4) label rectangles (x0, y0, x1, y1) in pixels, inside the image if they fit.
    """
    image_height, image_width = image_size
    placed = np.zeros((0, 4))
    for (x0, y0, x1, y1), (width, height) in zip(boxes_xyxy, label_sizes, strict=True):
        # Try outside the box first, since a label inside may hide a small object.
        rows = [y0 - height] if y0 >= height else []
        rows += [y1] if y1 + height <= image_height else []
        corners = [(x, y) for y in (*rows, y0, y1 - height) for x in (x0, x1 - width)]
        columns = (x0, *np.linspace(0, max(image_width - width, 0), 25))
        free = itertools.product(columns, np.arange(0, image_height, max(height, 1)))
        corners += sorted(free, key=lambda corner: abs(corner[0] - x0) + abs(corner[1] - y0))
        limit = (max(image_width - width, 0), max(image_height - height, 0))
        corner = np.clip(np.array(corners, float), 0, limit)
        candidates = np.hstack([corner, corner + np.array((width, height))])
        low = np.maximum(candidates[:, None, :2], placed[:, :2])
        high = np.minimum(candidates[:, None, 2:], placed[:, 2:])
        overlap = np.clip(high - low, 0, None).prod(2).sum(1)
        placed = np.vstack([placed, candidates[overlap.argmin()]])
    return placed


def draw_boxes(
    image: Image,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[str],
    colors: Sequence[int],
    line_width: int | None = None,
) -> None:
    """Draw n boxes and their labels on an RGB image in place, with the first box on top.

    Lines are around the boxes, so that they hide nothing of an object, except at the borders of the
    image.

    Args:
        image: modified in place.
        boxes_xyxy: (n, 4), in half-open pixel coordinates.
        labels: "" for a box without a label.
        colors: indices into `COLORS`, modulo its length.
        line_width: in pixels; the default depends on the image size.
    """
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    shades = [COLORS[index % len(COLORS)] for index in colors]
    line_width = line_width or max(2, min(image.size) // 250)
    outer = [_around(box, line_width, image.size) for box in boxes_xyxy]
    for (x0, y0, x1, y1), color in reversed(list(zip(outer, shades, strict=True))):
        # Pillow includes the last pixel.
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=color, width=line_width)

    font_size = max(12, min(image.size) // 35)
    margin = font_size // 4
    texts, sizes = [], []
    for label in labels:
        text, font = drawable(label, font_size)
        (text,) = wrap_text(text, font, image.width - 2 * margin, max_lines=1)
        bottom = font.getbbox("Ág")[3]
        texts.append((text, font))
        sizes.append((font.getlength(text) + 2 * margin, bottom + margin) if text else (0, 0))
    places = place_labels(outer, sizes, (image.height, image.width)).round().tolist()
    for box, (x0, y0, x1, y1), (text, font), color in reversed(
        list(zip(outer, places, texts, shades, strict=True))
    ):
        if not text:
            continue
        if x1 < box[0] - 2 or x0 > box[2] + 2 or y1 < box[1] - 2 or y0 > box[3] + 2:
            # Connect a label to its box if they do not touch.
            start = (min(max(box[0], x0), x1), min(max(box[1], y0), y1))
            draw.line((*start, box[0], box[1]), color, max(1, line_width // 2))
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
        # ITU-R BT.601 luma.
        is_light = np.dot(color, (0.299, 0.587, 0.114)) > 150
        draw.text((x0 + margin, y0 + margin // 2), text, "black" if is_light else "white", font)


def draw_masks(
    image: Image, masks: np.ndarray, labels: Sequence[str], colors: Sequence[int]
) -> Image:
    """Return a copy of an RGB image with n masks and their labels, the first mask on top.

    Args:
        image: the image.
        masks: (n, H, W) bool.
        labels: "" for a mask without a label. An empty mask has none.
        colors: indices into `COLORS`, modulo its length.
    """
    from PIL import Image as PilImage

    pixels = np.asarray(image).astype(np.float32)
    for mask, index in reversed(list(zip(masks, colors, strict=True))):
        shade = np.array(COLORS[index % len(COLORS)], np.float32)
        pixels[mask] += _OPACITY * (shade - pixels[mask])
        pixels[_outline(mask)] = shade
    drawn = PilImage.fromarray(pixels.round().astype(np.uint8))
    places, texts, shades = [], [], []
    for mask, label, index in zip(masks, labels, colors, strict=True):
        rows, columns = np.nonzero(mask)
        if label and len(rows):
            # A pixel of the mask itself, whatever its form: the middle one of the middle row.
            row = int(np.median(rows))
            row = int(rows[np.abs(rows - row).argmin()])
            column = int(np.median(columns[rows == row]))
            places.append((column, row, column + 1, row + 1))
            texts.append(label)
            shades.append(index)
    draw_boxes(drawn, places, texts, shades, 1)
    return drawn


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask with a neighbor outside of it, or at the border of the image."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = (
        mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    )
    return mask & ~inner


def _around(
    box_xyxy: Sequence[float], line_width: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the outer edges of the line around a box, inside of an image of (width, height)."""
    x0, y0, x1, y1 = box_xyxy
    low = (math.floor(x0) - line_width, math.floor(y0) - line_width)
    high = (math.ceil(x1) + line_width, math.ceil(y1) + line_width)
    # A box outside of the image is drawn at its border.
    x0, y0 = (min(max(edge, 0), side - 1) for edge, side in zip(low, size, strict=True))
    x1, y1 = (
        min(max(edge, first + 1), side)
        for edge, first, side in zip(high, (x0, y0), size, strict=True)
    )
    return x0, y0, x1, y1


def draw_dashed_box(image: Image, box_xyxy: Sequence[float], dash: int = 5) -> None:
    """Draw a thin black-and-white dashed line around a box, visible on any image."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    x0, y0, right, bottom = _around(box_xyxy, 1, image.size)
    right, bottom = right - 1, bottom - 1
    draw.rectangle((x0, y0, right, bottom), outline="black")
    for x in range(x0, right, 2 * dash):
        for y in (y0, bottom):
            draw.line((x, y, min(x + dash - 1, right), y), "white")
    for y in range(y0, bottom, 2 * dash):
        for x in (x0, right):
            draw.line((x, y, x, min(y + dash - 1, bottom)), "white")


def make_sheet(tiles: Sequence[Image], columns: int) -> Image:
    """Arrange tiles of the same width in rows on white. A row is as tall as its tallest tile."""
    from PIL import Image as PilImage

    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    pitch = max((tile.width for tile in tiles), default=0) + _GAP
    size = (columns * pitch + _GAP, sum(heights) + _GAP * (len(rows) + 1))
    sheet, y = PilImage.new("RGB", size, "white"), _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * pitch, y))
        y += height + _GAP
    return sheet


class ContactSheet:
    """Sample images of a dataset with their boxes and texts, in one row per part of the dataset."""

    #: Images per row, image side in pixels, lines of text per image, and maximum number of rows.
    COLUMNS, SIDE, LINES, ROWS = 5, 260, 3, 8
    #: Record sources to show first, in this order.
    ORDER = (
        *("detection", "objects365", "panoptic", "label_maps", "expression_masks"),
        *("phrases", "mixed", "referring", "captions"),
    )

    def __init__(self, limits: DecodeLimits = DEFAULT_LIMITS) -> None:
        self._rows: list[tuple[str, str, list[Record]]] = []
        self._limits = limits

    def add(self, part: Part, records: RecordSet) -> None:
        """Sample records of a part at regular intervals; if any have boxes, keep only those."""
        count = len(records)
        seen = [records[i] for i in range(0, count, max(1, count // (4 * self.COLUMNS)))]
        chosen = [record for record in seen if record.boxes_xyxy or record.masks] or seen
        chosen = chosen[:: max(1, len(chosen) // self.COLUMNS)][: self.COLUMNS]
        if chosen:
            self._rows.append((part.source, part.split, chosen))

    @property
    def is_empty(self) -> bool:
        """True if no record was added."""
        return not self._rows

    def draw(self) -> Image:
        """Draw the sheet. An image that cannot be read is replaced by its error message.

        Raises:
            ValueError: if no record was added.
        """
        if self.is_empty:
            raise ValueError("no record can be read for the contact sheet; expected 1 or more")
        order = {source: rank for rank, source in enumerate(self.ORDER)}
        rows = sorted(self._rows, key=lambda row: order.get(row[0], len(order)))
        black, drawn = (0, 0, 0), []
        for source, split, records in rows[: self.ROWS]:
            tiles = []
            for record in records:
                image = _record_image(record, self.SIDE, self._limits)
                texts = [(_record_text(record), black)]
                tiles.append(add_caption(image, texts, size=12, max_lines=self.LINES))
            row = make_sheet(tiles, self.COLUMNS)
            drawn.append(add_caption(row, [(f"{source}, {split}", black)], size=16, above=True))
        return make_sheet(drawn, 1)


def _record_text(record: Record) -> str:
    """Join a record's text, highest-scoring answer and truth value."""
    text = record.text
    if len(record.labels) > 1 and record.boxes_xyxy:
        # If a prompt lists all classes, show only those in the image.
        labels = dict.fromkeys(record.labels[label] for label in record.box_labels)
        text = text if len(record.labels) <= len(labels) else ", ".join(labels)
    answers = record.answers or {}
    answer = max(answers, key=lambda answer: answers[answer], default="")
    if not text and record.phrases:
        text = "; ".join(record.phrases)
    # A map of all classes, shown or not, says nothing of the image.
    elif not (text or (isinstance(record.masks, IdMap) and record.masks.may_lack)):
        text = ", ".join(dict.fromkeys(record.labels[label] for label in record.mask_labels))
    truth = "" if record.truth is None else str(record.truth).lower()
    return "  -  ".join(filter(None, (text, answer, truth)))


def _record_image(record: Record, side: int, limits: DecodeLimits) -> Image:
    """Draw a record's images side by side in a gray square, with the boxes on the first image."""
    from PIL import Image as PilImage
    from PIL import ImageDraw

    square = PilImage.new("RGB", (side, side), (235, 235, 235))
    width = side // len(record.images)
    for index, stored in enumerate(record.images):
        try:
            image = PilImage.fromarray(load_image(stored, **limits._asdict()))
            if index == 0 and record.masks:
                masks = decode_masks(record.masks, image.height, image.width)
                image = draw_masks(image, masks, [""] * len(masks), range(len(masks)))
        except (ValueError, OSError) as problem:
            text, font = drawable(str(problem), 12)
            lines = "\n".join(wrap_text(text, font, width - 12, 12))
            ImageDraw.Draw(square).multiline_text((index * width + 6, 6), lines, (170, 0, 0), font)
            continue
        scale = min(width / image.width, side / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size)
        if index == 0:
            boxes = [[edge * scale for edge in box] for box in record.boxes_xyxy]
            labels = [record.labels[label] for label in record.box_labels] or [""] * len(boxes)
            draw_boxes(image, boxes, labels, record.box_labels or range(len(boxes)))
        square.paste(image, (index * width + (width - size[0]) // 2, (side - size[1]) // 2))
    return square
