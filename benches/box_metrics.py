"""Metrics of `boxes.py`: boxes of phrases, expressions and classes, seen in training or not.

*Seen* are the records of val. *Unseen* are those of novel that name what was held out of training:
a color with a shape (scenes) or a noun (stamps). Few expressions of scenes name such a pair, and no
class does, since classes are shapes; there, unseen is all expressions and images of novel, each of
whose images shows a held-out pair.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiments import Inputs, SeenInputs

from fiber.atomic_io import read_json
from fiber.checkpoints.model_dir import StoredModel
from fiber.data import sources
from fiber.data.record import Record, RecordSet
from fiber.demo.measures import sample
from fiber.evaluation import box_baselines
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision

GROUPS = ("seen", "unseen")
#: Task of `fiber.evaluate`, its metric, and the column of rows.
NUMBERS = (
    ("flickr", "any_recall_at_1", "phrases/recall_at_1"),
    ("flickr", "any_recall_at_5", "phrases/recall_at_5"),
    ("refcoco", "accuracy_at_1", "referring/accuracy"),
    ("coco", "ap50", "detection/ap50"),
    ("coco", "ap", "detection/ap"),
)
#: Maximum number of records per group: captions, expressions, images.
MOST = {"flickr": 400, "refcoco": 500, "coco": 250}

#: Whether a phrase names a held-out concept.
Names = Callable[[str], bool]
#: Values by the name of a column of `NUMBERS` and the group.
Values = dict[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Records of one dataset that every run is measured on."""

    #: By group.
    flickr: Mapping[str, list[Record]]
    refcoco: Mapping[str, list[Record]]
    #: Images; each is queried for all classes.
    coco: list[Record]
    #: Whether boxes of a class in an image count, by group.
    coco_counted: Mapping[str, Callable[[Record, str], bool]]
    #: Boxes of all objects of each image, by `image_id`.
    objects: Mapping[str, list]
    #: Side of the square images in pixels.
    side: int


def side_of(folder: Path) -> int:
    """Read the side of a dataset's square images in pixels."""
    return int(read_json(folder / "dataset.json")["parameters"]["image_size"])


def open_asked(folder: Path) -> Asked:
    """Read what is measured."""
    held_out = read_json(folder / "dataset.json")["held_out"]
    names = names_held_out(held_out)
    phrases = {split: sources.phrases(folder, split) for split in ("val", "novel")}
    expressions = {split: sources.referring(folder, split) for split in ("val", "novel")}
    images = {split: sources.detection(folder, split) for split in ("val", "novel")}
    unseen_phrases = [only_phrases(record, names) for record in phrases["novel"]]
    chosen = [record for split in images for record in sample(images[split], MOST["coco"])]
    unseen_expressions = list(expressions["novel"])
    nouns = held_out.get("nouns")
    if nouns:
        unseen_expressions = [r for r in unseen_expressions if names(head_phrase(r))]
        unseen: frozenset[str] = frozenset(nouns)
        counted = {
            "seen": lambda record, label: label not in unseen,
            "unseen": lambda record, label: label in unseen,
        }
    else:
        novel = {record.image_id for record in images["novel"]}
        counted = {
            "seen": lambda record, label: record.image_id not in novel,
            "unseen": lambda record, label: record.image_id in novel,
        }
    return Asked(
        flickr={
            "seen": sample(phrases["val"], MOST["flickr"]),
            "unseen": sample([r for r in unseen_phrases if r.labels], MOST["flickr"]),
        },
        refcoco={
            "seen": sample(expressions["val"], MOST["refcoco"]),
            "unseen": sample(unseen_expressions, MOST["refcoco"]),
        },
        coco=chosen,
        coco_counted=counted,
        objects={r.image_id: list(r.boxes_xyxy) for rs in images.values() for r in rs},
        side=side_of(folder),
    )


def names_held_out(held_out: Mapping[str, Any]) -> Names:
    """Make the judge of whether a phrase names what `dataset.json` says was held out.

    >>> names_held_out({"nouns": ["sea lion"]})("two large sea lions")
    True
    >>> names_held_out({"color_shape": [["blue", "cross"]]})("a plain blue star")
    False
    """
    nouns, pairs = held_out.get("nouns", []), held_out.get("color_shape", [])
    ends = tuple(f" {noun}{plural}" for noun in nouns for plural in ("", "s", "es"))

    def names(phrase: str) -> bool:
        if ends:
            return f" {phrase}".endswith(ends)
        words = phrase.split()
        return any(
            color in words and words[-1] in (shape, f"{shape}s", f"{shape}es")
            for color, shape in pairs
        )

    return names


def head_phrase(record: Record) -> str:
    """What an expression means, without what it says of other things."""
    return " ".join(record.text[start:end] for start, end in record.label_spans[0])


def only_phrases(record: Record, names: Names) -> Record:
    """Leave of a caption's phrases those that name what was held out; the text stays whole."""
    kept = [i for i, phrase in enumerate(record.labels) if names(phrase)]
    spans = tuple(record.label_spans[i] for i in kept)
    boxes = [
        i
        for i, own in enumerate(record.char_spans)
        if any(span in own for label in spans for span in label)
    ]
    return dataclasses.replace(
        record,
        labels=tuple(record.labels[i] for i in kept),
        label_spans=spans,
        boxes_xyxy=tuple(record.boxes_xyxy[i] for i in boxes),
        char_spans=tuple(record.char_spans[i] for i in boxes),
        box_labels=(),
    )


def measure_boxes(
    model: StoredModel,
    asked: Asked,
    inputs: Inputs = "both",
    classes_per_prompt: int | None = None,
) -> Values:
    """Measure a fine model.

    Args:
        model: a finished one.
        asked: what is measured.
        inputs: what it may see; "text" shows it gray images.
        classes_per_prompt: at most, where classes are detected; None: as many as fit.
    """
    values: Values = {}
    for task in ("flickr", "refcoco"):
        for group, records in getattr(asked, task).items():
            seen = SeenInputs(records, inputs, side=asked.side)
            values |= _named(task, group, evaluate(model, task, data=seen, threads=1))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "boxes.json"
        # Records of both splits have the same numbers.
        records = [dataclasses.replace(r, key=str(i)) for i, r in enumerate(asked.coco)]
        seen = SeenInputs(records, inputs, side=asked.side)
        evaluate(
            model,
            "coco",
            data=seen,
            output=file,
            classes_per_prompt=classes_per_prompt,
            threads=1,
        )
        found = scored_boxes(json.loads(file.read_text()), len(records))
    for group in GROUPS:
        values |= _named("coco", group, average_precision(found, true_boxes(asked, group)))
    return values


def scored_boxes(predictions: Iterable[Mapping[str, Any]], images: int) -> list[ScoredBoxes]:
    """Sort COCO's results by image; image i has the id i, and label l the category l + 1."""
    rows: list[list[Mapping[str, Any]]] = [[] for _ in range(images)]
    for row in predictions:
        rows[row["image_id"]].append(row)
    corners = [
        [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in own)] for own in rows
    ]
    return [
        ScoredBoxes(
            np.array(boxes).reshape(-1, 4),
            [row["score"] for row in own],
            [row["category_id"] - 1 for row in own],
        )
        for boxes, own in zip(corners, rows, strict=True)
    ]


def true_boxes(asked: Asked, group: str, scale: float = 1.0) -> list[TrueBoxes]:
    """The boxes of each image that count for a group, in pixels times `scale`.

    Classes without a true box have no average precision: what is detected of them does not count.
    """
    counts = asked.coco_counted[group]
    truths = []
    for record in asked.coco:
        kept = [
            i for i, label in enumerate(record.box_labels) if counts(record, record.labels[label])
        ]
        boxes = np.array([record.boxes_xyxy[i] for i in kept]).reshape(-1, 4)
        truths.append(TrueBoxes(boxes * scale, [record.box_labels[i] for i in kept]))
    return truths


def guess_by_chance(asked: Asked) -> Values:
    """What one gets who knows every box, but not which is which: boxes in random order."""
    values: Values = {}
    for group in GROUPS:
        phrases = phrases_of(asked.flickr[group])
        objects = [asked.objects[image] for image, _, _ in phrases]
        chance = box_baselines.phrase_chance(objects, [boxes for _, _, boxes in phrases])
        values |= _named("flickr", group, chance)
        expressions = asked.refcoco[group]
        objects = [asked.objects[record.image_id] for record in expressions]
        truths = np.array([record.boxes_xyxy[0] for record in expressions])
        values |= _named("refcoco", group, box_baselines.referring_chance(objects, truths))
        # A class is drawn from all that are asked for, whichever group counts.
        both = [TrueBoxes(record.boxes_xyxy, record.box_labels) for record in asked.coco]
        values |= _named("coco", group, box_baselines.detection_chance(both))
    return values


def guess_frequent_boxes(asked: Asked, training: Mapping[str, RecordSet]) -> Values:
    """What one gets who sees no image and says the most frequent boxes of training.

    A text or class that training has often enough gets its own boxes, any other those of all.

    Args:
        asked: what is measured.
        training: records with boxes by source: "phrases", "referring" and "detection".
    """
    scale, values = 1 / asked.side, dict[tuple[str, str], float]()
    counted = phrases_of(training["phrases"][i] for i in range(len(training["phrases"])))
    said = [training["referring"][i] for i in range(len(training["referring"]))]
    own_of_class, all_boxes = _boxes_by_class(training["detection"], scale)
    for group in GROUPS:
        phrases = phrases_of(asked.flickr[group])
        found = box_baselines.phrase_blind(
            [phrase for _, phrase, _ in counted],
            [boxes * scale for _, _, boxes in counted],
            [phrase for _, phrase, _ in phrases],
            [boxes * scale for _, _, boxes in phrases],
        )
        values |= _named("flickr", group, found)
        found = box_baselines.referring_blind(
            [record.text for record in said],
            np.array([record.boxes_xyxy[0] for record in said]) * scale,
            [record.text for record in asked.refcoco[group]],
            np.array([record.boxes_xyxy[0] for record in asked.refcoco[group]]) * scale,
        )
        values |= _named("refcoco", group, found)
        labels = asked.coco[0].labels
        truths = true_boxes(asked, group, scale)
        # What is said of other classes does not count.
        counted_classes = {label for true in truths for label in true.labels}
        frequent = [
            TrueBoxes(boxes, [place] * len(boxes))
            for place, name in enumerate(labels)
            if place in counted_classes
            for boxes in [own_of_class.get(name, all_boxes)]
        ]
        found = box_baselines.detection_blind(frequent, truths)
        values |= _named("coco", group, found)
    return values


def phrases_of(records: Iterable[Record]) -> list[tuple[str, str, np.ndarray]]:
    """List all phrases that have boxes: image, phrase, (g, 4) boxes in pixels."""
    return [
        (record.image_id, phrase, np.array([record.boxes_xyxy[box] for box in own]))
        for record in records
        for phrase, own in zip(record.labels, sources.label_boxes(record), strict=True)
        if own
    ]


def _boxes_by_class(records: RecordSet, scale: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    own: dict[str, list] = {}
    for record in (records[i] for i in range(len(records))):
        for box, label in zip(record.boxes_xyxy, record.box_labels, strict=True):
            own.setdefault(record.labels[label], []).append(box)
    by_class = {name: np.array(boxes) * scale for name, boxes in own.items()}
    return by_class, np.concatenate(list(by_class.values()))


def _named(task: str, group: str, found: Mapping[str, float]) -> Values:
    return {(column, group): found[key] for of, key, column in NUMBERS if of == task}
