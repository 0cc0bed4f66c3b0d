"""The contact sheet: pictures with the boxes and answers of the demo's models beside the truth.

A picture shows either the phrases of a caption or a referring expression. Predicted boxes are
drawn in the colour of their text below, true ones dashed in white.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fiber.atomic_io import write_file
from fiber.checkpoints.model_dir import StoredModel
from fiber.data import sources
from fiber.data.box_drawing import COLORS
from fiber.data.record import Record
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.grounding import FOUND_AT

#: Width of a picture on the sheet, in pixels, and pictures in a row.
PICTURE_WIDTH, COLUMNS = 288, 4
_GAP, _FONT_SIZE, _LINE, _LINE_WIDTH = 12, 13, 17, 3

Color = tuple[int, int, int]
_BLACK: Color = (20, 20, 20)
_GREY: Color = (110, 110, 110)
_RED: Color = (190, 20, 20)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A text and the box that the model gave it."""

    text: str
    #: (x0, y0, x1, y1) in pixels of the picture; None if it gave none.
    box_xyxy: Sequence[float] | None
    #: The true boxes.
    truths_xyxy: Sequence[Sequence[float]]

    @property
    def iou(self) -> float:
        """Overlap with the nearest true box."""
        if self.box_xyxy is None:
            return 0.0
        return float(pairwise_iou([self.box_xyxy], list(self.truths_xyxy)).max())


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture of the sheet."""

    image: str
    split: str
    #: The caption that the claims' phrases stand in; empty for a referring expression.
    caption: str
    claims: Sequence[Claim]
    question: str
    answer: str
    #: The right answer.
    truth: str


def draw_sheet(
    path: Path,
    data: Path,
    *,
    coarse: StoredModel,
    fine: StoredModel,
    splits: Sequence[str],
    pictures: int = 8,
) -> None:
    """Ask the models about some pictures of each split and draw what they say.

    Args:
        path: PNG to write.
        data: the data folder.
        coarse: answers questions.
        fine: finds boxes.
        splits: rows of the sheet come from these, in this order.
        pictures: of each split.
    """
    tiles = [
        tile for split in splits for tile in ask(data, split, pictures, coarse=coarse, fine=fine)
    ]
    sheet = lay_out([draw_tile(tile) for tile in tiles])
    write_file(path, lambda part: sheet.save(part, "PNG", optimize=True))


def ask(
    data: Path, split: str, count: int, *, coarse: StoredModel, fine: StoredModel
) -> list[Tile]:
    """Ask the models about `count` pictures of a split, at regular distances through it."""
    kinds = [
        _by_picture(reader(data, split))
        for reader in (sources.phrases, sources.referring, sources.questions)
    ]
    images = [image for image in kinds[0] if all(image in kind for kind in kinds[1:])]
    images = [images[i * len(images) // count] for i in range(min(count, len(images)))]
    if not images:
        return []
    # Another one of its records for each picture, since the first ones are all of one sort.
    captions, expressions, questions = (
        [kind[image][place % len(kind[image])] for place, image in enumerate(images)]
        for kind in kinds
    )
    captions, expressions = captions[::2], expressions[1::2]
    boxes: list[list[Claim]] = [[] for _ in images]
    boxes[::2] = [
        _phrase_claims(record, said)
        for record, said in zip(captions, _predict(fine, "flickr", captions), strict=True)
    ]
    boxes[1::2] = [
        [Claim(text=record.text, box_xyxy=said["box_xyxy"], truths_xyxy=record.boxes_xyxy)]
        for record, said in zip(expressions, _predict(fine, "refcoco", expressions), strict=True)
    ]
    tiles = []
    for place, said in enumerate(_predict(coarse, "vqa", questions)):
        right = questions[place].answers or {}
        tiles.append(
            Tile(
                image=images[place],
                split=split,
                caption="" if place % 2 else captions[place // 2].text,
                claims=boxes[place],
                question=questions[place].text,
                answer=said["answer"],
                truth=max(right, key=lambda answer: right[answer], default="?"),
            )
        )
    return tiles


def _by_picture(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by the picture that they show."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.image_id, []).append(record)
    return groups


def _predict(model: StoredModel, task: str, records: Sequence[Record]) -> list[Any]:
    """Ask a model as the table's measurements do."""
    if not records:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.json"
        evaluate(model, task, data=records, output=file)
        return json.loads(file.read_text(encoding="utf-8"))


def _phrase_claims(record: Record, said: dict[str, Any]) -> list[Claim]:
    return [
        Claim(
            text=found["phrase"],
            box_xyxy=found["boxes_xyxy"][0] if found["boxes_xyxy"] else None,
            truths_xyxy=[record.boxes_xyxy[box] for box in own],
        )
        for found, own in zip(said["phrases"], sources.label_boxes(record), strict=True)
        if own
    ]


def draw_tile(tile: Tile) -> Image.Image:
    """Draw a picture with its boxes, and the texts below it."""
    with Image.open(tile.image) as file:
        image = file.convert("RGB")
    scale = PICTURE_WIDTH / image.width
    image = image.resize((PICTURE_WIDTH, round(image.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    lines: list[tuple[str, Color]] = []
    if tile.caption:
        lines += [(line, _BLACK) for line in wrap(f"{tile.split}: {tile.caption}")]
    else:
        lines += [(f"{tile.split}: find the one that is meant", _BLACK)]
    drawn: list[Sequence[float]] = []
    for number, claim in enumerate(tile.claims):
        color = COLORS[number % len(COLORS)]
        if claim.box_xyxy is not None:
            # Inside the boxes on the same object, which would be hidden.
            overlaps = pairwise_iou([claim.box_xyxy], drawn)
            inset = _LINE_WIDTH * int((overlaps >= FOUND_AT).sum())
            drawn.append(claim.box_xyxy)
            x0, y0, x1, y1 = (float(edge) * scale for edge in claim.box_xyxy)
            x0, y0 = x0 + inset, y0 + inset
            # PIL counts the last pixel of a rectangle in.
            corners = (x0, y0, max(x1 - 1 - inset, x0), max(y1 - 1 - inset, y0))
            draw.rectangle(corners, outline=color, width=_LINE_WIDTH)
        verdict = "found" if claim.iou >= FOUND_AT else "missed"
        lines += [(line, color) for line in wrap(f"{claim.text}: {verdict}, IoU {claim.iou:.2f}")]
    for claim in tile.claims:
        for truth in claim.truths_xyxy:
            _draw_dashed(draw, [float(edge) * scale for edge in truth])
    lines += [(line, _BLACK) for line in wrap(tile.question)]
    right = tile.answer == tile.truth
    words = f"{tile.answer}, right" if right else f"{tile.answer}, wrong, it is {tile.truth}"
    lines += [(line, _GREY if right else _RED) for line in wrap(words)]
    return _with_text(image, lines)


def _with_text(image: Image.Image, lines: Sequence[tuple[str, Color]]) -> Image.Image:
    tile = Image.new("RGB", (image.width, image.height + _LINE * len(lines) + 6), "white")
    tile.paste(image, (0, 0))
    draw = ImageDraw.Draw(tile)
    for row, (text, color) in enumerate(lines):
        place = (2, image.height + 4 + row * _LINE)
        draw.text(place, text, fill=color, font=ImageFont.load_default(_FONT_SIZE))
    return tile


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Sequence[float], dash: int = 5) -> None:
    """Draw a thin dashed box in white on black, which shows on every ground."""
    x0, y0, x1, y1 = box
    sides = [((x0, y), (x1, y)) for y in (y0, y1 - 1)] + [((x, y0), (x, y1)) for x in (x0, x1 - 1)]
    for (ax, ay), (bx, by) in sides:
        draw.line((ax, ay, bx, by), fill=(0, 0, 0), width=1)
        length = max(abs(bx - ax), abs(by - ay), 1.0)
        for start in range(0, int(length), 2 * dash):
            ends = (start / length, min(start + dash, length) / length)
            points = [(ax + (bx - ax) * t, ay + (by - ay) * t) for t in ends]
            draw.line(points, fill=(255, 255, 255), width=1)


def wrap(text: str) -> list[str]:
    """Break a text into lines that fit below a picture."""
    measure: Callable[[str], float] = ImageFont.load_default(_FONT_SIZE).getlength
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure(longer) > PICTURE_WIDTH - 4:
            lines.append(f"  {word}")
        else:
            lines[-1] = longer if not lines[-1].startswith("  ") else f"{lines[-1]} {word}"
    return lines


def lay_out(tiles: Sequence[Image.Image]) -> Image.Image:
    """Put tiles in rows, each row as high as its highest tile."""
    rows = [tiles[at : at + COLUMNS] for at in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = COLUMNS * (PICTURE_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), "white")
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (PICTURE_WIDTH + _GAP), y))
        y += height + _GAP
    return sheet
