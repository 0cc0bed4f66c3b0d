"""Choose the example images of the demo's report by fixed rules, and predict their boxes.

Images are read in file order. `Twice` are the first images with two referring expressions for
different objects, and the first ones with two relations. `Scored` are the first images of `novel`
on which everything is right, and the first ones with a mistake.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiber.checkpoints.model_dir import StoredModel
from fiber.data import sources
from fiber.data.record import Record
from fiber.evaluation.box_baselines import referring_chance
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.grounding import FOUND_AT

#: Two expressions for different objects of an image.
Pair = tuple[Record, Record]

#: Number of images of a split that are looked at.
LOOKED_AT = 100
#: Number of images shown: with two expressions in each split, as many with two relations, and all
#: right or with a mistake.
TWICE, SCORED = 2, 4


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

    @property
    def is_found(self) -> bool:
        """True if the IoU is at least `FOUND_AT`."""
        return self.iou >= FOUND_AT


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with predicted boxes and, unless its question is empty, an answer."""

    #: Path relative to the dataset.
    image: str
    split: str
    boxes: Sequence[PredictedBox]
    question: str = ""
    answer: str = ""
    #: Ground-truth answer.
    truth: str = ""

    @property
    def is_right(self) -> bool:
        """True if every box is found and the answer is right."""
        return all(box.is_found for box in self.boxes) and self.answer == self.truth


@dataclass(frozen=True, kw_only=True)
class Twice:
    """Images of a split that are asked for two different objects."""

    split: str
    #: Number of images looked at, and of those on which both objects are found.
    count: int
    both_found: int
    #: Expected number for two objects picked at random.
    by_chance: float
    #: The first images, with two boxes each.
    shown: Sequence[Example]
    #: The first images on which both expressions are relations.
    relations: Sequence[Example]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Images of a split with the phrases of their first caption and their first question."""

    split: str
    #: Number of images looked at, and of those on which everything is right.
    count: int
    right: int
    #: The first images on which everything is right, and the first ones with a mistake.
    hits: Sequence[Example]
    misses: Sequence[Example]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """All examples of a report."""

    twice: Sequence[Twice]
    scored: Scored


def find_examples(data: Path, *, coarse: StoredModel, fine: StoredModel) -> Examples:
    """Choose images and run the models on them.

    The model `coarse` answers questions, and `fine` predicts boxes.
    """
    return Examples(
        twice=[_find_twice(data, split, fine) for split in ("val", "novel")],
        scored=_find_scored(data, "novel", coarse=coarse, fine=fine),
    )


def to_json(examples: Examples) -> dict[str, Any]:
    """Convert to JSON values."""
    return asdict(examples)


def from_json(values: Mapping[str, Any]) -> Examples:
    """Convert from the values of `to_json`."""

    def images(given: Sequence[Mapping[str, Any]]) -> list[Example]:
        return [
            Example(**{**own, "boxes": [PredictedBox(**box) for box in own["boxes"]]})
            for own in given
        ]

    scored = values["scored"]
    both = {name: images(scored[name]) for name in ("hits", "misses")}
    return Examples(
        twice=[
            Twice(**{**own, **{name: images(own[name]) for name in ("shown", "relations")}})
            for own in values["twice"]
        ],
        scored=Scored(**{**scored, **both}),
    )


def two_targets(records: Sequence[Record]) -> Pair | None:
    """Return an image's first expression and the first one for another object, if any."""
    for other in records[1:]:
        if other.boxes_xyxy[0] != records[0].boxes_xyxy[0]:
            return records[0], other
    return None


def split_by_score(
    examples: Sequence[Example], most: int = SCORED
) -> tuple[list[Example], list[Example]]:
    """Return the first examples on which everything is right, and the first ones with a mistake."""
    hits = [example for example in examples if example.is_right]
    misses = [example for example in examples if not example.is_right]
    return hits[:most], misses[:most]


def _find_twice(data: Path, split: str, fine: StoredModel) -> Twice:
    images = list(_by_image(sources.referring(data, split)).values())
    pairs = _pairs(images)[:LOOKED_AT]
    relations = _pairs([[r for r in own if r.group == "relation"] for own in images])[:TWICE]
    examples = _ask_pairs([*pairs, *relations], data, split, fine)
    objects = {r.image_id: list(r.boxes_xyxy) for r in sources.detection(data, split)}
    chances = [
        [
            referring_chance([objects[r.image_id]], np.array(r.boxes_xyxy[:1]))["accuracy_at_1"]
            for r in pair
        ]
        for pair in pairs
    ]
    return Twice(
        split=split,
        count=len(pairs),
        both_found=sum(example.is_right for example in examples[: len(pairs)]),
        by_chance=float(sum(np.prod(pair) for pair in chances)),
        shown=examples[: min(TWICE, len(pairs))],
        relations=examples[len(pairs) :],
    )


def _pairs(images: Sequence[Sequence[Record]]) -> list[Pair]:
    found = (two_targets(records) for records in images if records)
    return [pair for pair in found if pair is not None]


def _ask_pairs(pairs: Sequence[Pair], data: Path, split: str, fine: StoredModel) -> list[Example]:
    """Predict the boxes of two expressions per image."""
    records = [record for pair in pairs for record in pair]
    boxes = [
        PredictedBox(
            text=record.text,
            box_xyxy=predicted["box_xyxy"],
            truths_xyxy=[list(record.boxes_xyxy[0])],
        )
        for record, predicted in zip(records, _predict(fine, "refcoco", records), strict=True)
    ]
    return [
        Example(image=_relative(pair[0], data), split=split, boxes=boxes[2 * i : 2 * i + 2])
        for i, pair in enumerate(pairs)
    ]


def _find_scored(data: Path, split: str, *, coarse: StoredModel, fine: StoredModel) -> Scored:
    captions, questions = (
        _by_image(reader(data, split)) for reader in (sources.phrases, sources.questions)
    )
    images = [image for image in captions if image in questions][:LOOKED_AT]
    first_captions = [captions[image][0] for image in images]
    first_questions = [questions[image][0] for image in images]
    predicted = zip(
        first_captions,
        _predict(fine, "flickr", first_captions),
        first_questions,
        _predict(coarse, "vqa", first_questions),
        strict=True,
    )
    examples = []
    for caption, phrases, question, answered in predicted:
        truths = question.answers or {}
        examples.append(
            Example(
                image=_relative(caption, data),
                split=split,
                boxes=_phrase_boxes(caption, phrases),
                question=question.text,
                answer=answered["answer"],
                truth=max(truths, key=lambda answer: truths[answer], default="?"),
            )
        )
    hits, misses = split_by_score(examples)
    right = sum(example.is_right for example in examples)
    return Scored(split=split, count=len(examples), right=right, hits=hits, misses=misses)


def _relative(record: Record, data: Path) -> str:
    return str(Path(str(record.images[0])).relative_to(data))


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
            truths_xyxy=[list(record.boxes_xyxy[box]) for box in own],
        )
        for found, own in zip(predicted["phrases"], sources.label_boxes(record), strict=True)
        if own
    ]
