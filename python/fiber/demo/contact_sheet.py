"""Contact sheet of the demo: images with predicted boxes and answers, and the ground truth.

An image shows either the phrases of a caption or a referring expression. Predicted boxes are drawn
in the color of their text below the image; ground-truth boxes are dashed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fiber.atomic_io import write_file
from fiber.checkpoints.model_dir import StoredModel
from fiber.data import sources
from fiber.data.record import Record
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.grounding import FOUND_AT
from fiber.visualize import COLORS, Color, add_caption, draw_boxes, draw_dashed_box, make_sheet

#: Image width on the sheet in pixels, images per row, and images per split.
IMAGE_WIDTH, COLUMNS, IMAGES = 288, 4, 8
_FONT_SIZE, _LINE_WIDTH = 13, 3

_BLACK: Color = (20, 20, 20)
_GRAY: Color = (110, 110, 110)
_RED: Color = (190, 20, 20)


@dataclass(frozen=True, kw_only=True)
class PredictedBox:
    """A text with its predicted box, if any, and its ground-truth boxes."""

    text: str
    #: (x0, y0, x1, y1) in pixels of the image; None if nothing was predicted.
    box_xyxy: Sequence[float] | None
    #: Ground-truth boxes.
    truths_xyxy: Sequence[Sequence[float]]

    @property
    def iou(self) -> float:
        """IoU with the best-matching ground-truth box."""
        if self.box_xyxy is None:
            return 0.0
        return float(pairwise_iou([self.box_xyxy], list(self.truths_xyxy)).max())


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of the sheet."""

    image: str
    split: str
    #: Caption that contains the box phrases; empty for a referring expression.
    caption: str
    boxes: Sequence[PredictedBox]
    question: str
    answer: str
    #: Ground-truth answer.
    truth: str


def draw_sheet(
    path: Path, data: Path, *, coarse: StoredModel, fine: StoredModel, splits: Sequence[str]
) -> None:
    """Run the models on images of each split and save a PNG sheet of their predictions.

    The model `coarse` answers questions, and `fine` predicts boxes. Splits are drawn in order.
    """
    tiles = [
        draw_tile(tile)
        for split in splits
        for tile in _predict_tiles(data, split, coarse=coarse, fine=fine)
    ]
    sheet = make_sheet(tiles, COLUMNS)
    write_file(path, lambda part: sheet.save(part, "PNG", optimize=True))


def _predict_tiles(data: Path, split: str, *, coarse: StoredModel, fine: StoredModel) -> list[Tile]:
    """Run the models on images sampled from a split at regular intervals."""
    kinds = [
        _by_image(reader(data, split))
        for reader in (sources.phrases, sources.referring, sources.questions)
    ]
    images = [image for image in kinds[0] if all(image in kind for kind in kinds[1:])]
    images = [images[i * len(images) // IMAGES] for i in range(min(IMAGES, len(images)))]
    if not images:
        return []
    # Avoid the first record of each image, since first records are all of the same kind.
    captions, expressions, questions = (
        [kind[image][place % len(kind[image])] for place, image in enumerate(images)]
        for kind in kinds
    )
    captions, expressions = captions[::2], expressions[1::2]
    boxes: list[list[PredictedBox]] = [[] for _ in images]
    boxes[::2] = [
        _phrase_boxes(record, predicted)
        for record, predicted in zip(captions, _predict(fine, "flickr", captions), strict=True)
    ]
    for place, predicted in enumerate(_predict(fine, "refcoco", expressions)):
        record, box = expressions[place], predicted["box_xyxy"]
        boxes[2 * place + 1] = [
            PredictedBox(text=record.text, box_xyxy=box, truths_xyxy=record.boxes_xyxy)
        ]
    tiles = []
    for place, predicted in enumerate(_predict(coarse, "vqa", questions)):
        truths = questions[place].answers or {}
        tiles.append(
            Tile(
                image=images[place],
                split=split,
                caption="" if place % 2 else captions[place // 2].text,
                boxes=boxes[place],
                question=questions[place].text,
                answer=predicted["answer"],
                truth=max(truths, key=lambda answer: truths[answer], default="?"),
            )
        )
    return tiles


def _by_image(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.image_id, []).append(record)
    return groups


def _predict(model: StoredModel, task: str, records: Sequence[Record]) -> list[Any]:
    """Run `evaluate`, as for the metrics, and return its predictions."""
    if not records:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.json"
        evaluate(model, task, data=records, output=file)
        return json.loads(file.read_text(encoding="utf-8"))


def _phrase_boxes(record: Record, predicted: dict[str, Any]) -> list[PredictedBox]:
    return [
        PredictedBox(
            text=found["phrase"],
            box_xyxy=found["boxes_xyxy"][0] if found["boxes_xyxy"] else None,
            truths_xyxy=[record.boxes_xyxy[box] for box in own],
        )
        for found, own in zip(predicted["phrases"], sources.label_boxes(record), strict=True)
        if own
    ]


def draw_tile(tile: Tile) -> Image.Image:
    """Draw an image with its boxes, and the texts below it."""
    with Image.open(tile.image) as file:
        image = file.convert("RGB")
    scale = IMAGE_WIDTH / image.width
    image = image.resize((IMAGE_WIDTH, round(image.height * scale)), Image.Resampling.BICUBIC)
    title = tile.caption or "referring expression"
    texts: list[tuple[str, Color]] = [(f"{tile.split}: {title}", _BLACK)]
    boxes: list[Sequence[float]] = []
    scaled, colors = [], []
    for number, found in enumerate(tile.boxes):
        verdict = "found" if found.iou >= FOUND_AT else "missed"
        color = COLORS[number % len(COLORS)]
        texts.append((f"{found.text}: {verdict}, IoU {found.iou:.2f}", color))
        if found.box_xyxy is None:
            continue
        # Inset, so that earlier boxes of the same object stay visible.
        inset = _LINE_WIDTH * int((pairwise_iou([found.box_xyxy], boxes) >= FOUND_AT).sum())
        x0, y0, x1, y1 = (float(edge) * scale for edge in found.box_xyxy)
        x0, y0 = x0 + inset, y0 + inset
        scaled.append((x0, y0, max(x1 - inset, x0), max(y1 - inset, y0)))
        boxes.append(found.box_xyxy)
        colors.append(number)
    draw_boxes(image, scaled, [""] * len(scaled), colors, _LINE_WIDTH)
    for truth in (truth for found in tile.boxes for truth in found.truths_xyxy):
        draw_dashed_box(image, [float(edge) * scale for edge in truth])
    texts.append((tile.question, _BLACK))
    if tile.answer == tile.truth:
        texts.append((f"{tile.answer}: correct", _GRAY))
    else:
        texts.append((f"{tile.answer}: wrong, expected {tile.truth}", _RED))
    return add_caption(image, texts, size=_FONT_SIZE)
