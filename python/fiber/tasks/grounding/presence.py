"""Calibrate the presence of phrases, phrases of captions, and classes on annotated data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fiber.atomic_io import write_json
from fiber.checkpoints.stages import packaged_name
from fiber.data.datasets.resolve import existing_data, open_source
from fiber.data.prompts.absent import LonePhrase, ObjectWords, absent_phrase, phrases_of
from fiber.data.record import Record, RecordSet
from fiber.data.rng import Rng
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.presence import (
    KINDS,
    PRECISION,
    PRESENCE_FILE,
    Kind,
    Presence,
    calibrate,
    calibration_error,
    false_answers,
    ranking_quality,
    to_json,
)

# Random number stream for what is asked.
_ASKED = 250
#: Maximum number of records of each kind.
RECORDS = 1000
#: IoU from which a box is right.
RIGHT = 0.5
#: Numbers of classes of a prompt, in turn; 0 for as many as fit.
CLASSES_PER_PROMPT = (0, 1, 4)
_IMAGES_AT_ONCE = 16
_SOURCES = ("referring", "phrases", "detection")
_SOURCES_OF: dict[Kind, tuple[str, ...]] = {
    "phrase": ("referring", "phrases"),
    "caption": ("phrases",),
    "classes": ("detection",),
}


class LabelQuestion(NamedTuple):
    """Labels that a model is asked for in one image, in one call."""

    image: Any
    #: A phrase or a list of classes, or a caption with `spans`.
    texts: Sequence[str]
    caption: str | None
    spans: Sequence[Any]
    #: For each label: the boxes of what it names, none if it is absent; None if that is unknown.
    boxes: Sequence[Sequence[Sequence[float]] | None]


class Measured(NamedTuple):
    """What a model answers for labels whose presence is known."""

    #: (n,) best scores; 0 without a box.
    scores: np.ndarray
    #: (n,) bool, whether the image shows what a label names.
    present: np.ndarray
    #: (n,) bool, whether the best box is right.
    right: np.ndarray
    #: (n,) number of labels of each prompt.
    labels: np.ndarray


def calibrate_model(
    model: Any,
    data: str | os.PathLike[str],
    split: str = "val",
    *,
    records: int = RECORDS,
    precision: float = PRECISION,
) -> tuple[Presence, dict[str, float]]:
    """Calibrate a model on the phrases, captions and classes of a split.

    Absent phrases are judged by the annotations; see `fiber.data.prompts.absent`.

    Args:
        model: a `fiber.Model` with the head "grounding".
        data: folder or file with referring expressions, captions with phrases, or boxes of classes.
        split: split to calibrate on.
        records: maximum number of records of each kind.
        precision: precision of the default thresholds.

    Returns:
        The calibrations, and metrics named "kind/metric".

    Raises:
        FileNotFoundError: if the data have none of these.
        ValueError: if a number is out of range, or for no kind of prompt there are enough present
            and absent labels whose scores tell them apart. A warning names the kinds without.
    """
    if records < 1:
        raise ValueError(f"records is {records}; expected 1 or more")
    if not 0 < precision < 1:
        raise ValueError(f"precision is {precision}; expected a number between 0 and 1")
    path = existing_data(data)
    sources = _open_sources(path, split)
    words = ObjectWords(sources.values())
    found: dict[Kind, Any] = {}
    metrics: dict[str, float] = {}
    problems = []
    for kind in KINDS:
        if not set(_SOURCES_OF[kind]).intersection(sources):
            continue
        questions = _questions(kind, sources, words, records)
        measured = measure(model, kind, questions)
        lengths = measured.labels if kind == "classes" else None
        three = measured.scores, measured.present, measured.right
        try:
            own = calibrate(*three, lengths, precision=precision)
        except ValueError as error:
            problems.append(f"{kind} is not calibrated: {error}")
            continue
        found[kind] = own
        share, _ = false_answers(*three)
        probabilities = own.presence(measured.scores, measured.labels)
        metrics |= {
            f"{kind}/threshold": own.threshold,
            f"{kind}/precision": own.precision,
            f"{kind}/recall": own.recall,
            f"{kind}/false_answers_at_95": share,
            f"{kind}/auroc": ranking_quality(measured.scores, measured.present),
            f"{kind}/calibration_error": calibration_error(probabilities, measured.present),
            f"{kind}/present": float(own.present),
            f"{kind}/absent": float(own.absent),
        }
    if not found:
        raise ValueError(
            f"{path}: nothing to calibrate on in split {split!r}: {'; '.join(problems)}"
        )
    for problem in problems:
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    return Presence(**found, data=f"{path.name}, {split}"), metrics


def save_presence(model: Any, presence: Presence, output: Path | None) -> Path:
    """Write calibrations to the folder of a model, or the whole model with them to a new folder.

    Raises:
        ValueError: if the model is not in a folder of its own and `output` is None.
        OSError: if a file cannot be written.
    """
    owner = model.with_head("grounding", "calibrate") if hasattr(model, "with_head") else model
    owner.presence = presence
    if output is not None:
        model.save(output)
        return output
    folder = owner.origin.path
    if folder is None or not folder.is_dir() or packaged_name(folder) is not None:
        raise ValueError(
            f"{owner.origin} is not a model folder of your own; expected --output DIR, to which the"
            " calibrated model is written"
        )
    write_json(folder / PRESENCE_FILE, to_json(presence))
    return folder


def measure(model: Any, kind: Kind, questions: Sequence[LabelQuestion]) -> Measured:
    """Ask a model, without thresholds, and compare its best boxes with those of the data."""
    rows: list[tuple[float, bool, bool, int]] = []
    # Of a length of prompts each, since a call has one.
    for number, per_prompt in enumerate(CLASSES_PER_PROMPT if kind == "classes" else (0,)):
        own = questions[number :: len(CLASSES_PER_PROMPT)] if kind == "classes" else questions
        for at in range(0, len(own), _IMAGES_AT_ONCE):
            some = own[at : at + _IMAGES_AT_ONCE]
            for question, found in zip(some, _ask(model, kind, some, per_prompt), strict=True):
                rows += _compare(question, found, per_prompt)
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    scores, present, right, labels = columns
    return Measured(
        np.array(scores, np.float64),
        np.array(present, bool),
        np.array(right, bool),
        np.array(labels, np.int64),
    )


def _ask(model: Any, kind: Kind, questions: Sequence[LabelQuestion], per_prompt: int) -> list[Any]:
    images = [each.image for each in questions]
    everything = {"score_threshold": 0.0, "max_detections": 100_000}
    if kind == "classes":
        classes = [list(each.texts) for each in questions]
        return model.detect(images, classes, classes_per_prompt=per_prompt, **everything)
    if kind == "caption":
        captions, spans = [q.caption for q in questions], [list(q.spans) for q in questions]
        return model.ground(images, caption=captions, spans=spans, **everything)
    # The span of the object is that of inference, as for users.
    return model.ground(images, [list(each.texts) for each in questions], **everything)


def _compare(
    question: LabelQuestion, found: Any, per_prompt: int
) -> Iterator[tuple[float, bool, bool, int]]:
    count = len(question.boxes)
    length = min(per_prompt, count) if per_prompt else count
    for label, boxes in enumerate(question.boxes):
        if boxes is None:
            continue
        own = np.flatnonzero(found.indices == label)
        best = own[np.argmax(found.scores[own])] if len(own) else None
        score = 0.0 if best is None else float(found.scores[best])
        right = (
            best is not None
            and len(boxes) > 0
            and pairwise_iou(found.boxes_xyxy[best][None], np.array(boxes)).max() >= RIGHT
        )
        yield score, len(boxes) > 0, bool(right), length


def _open_sources(path: Path, split: str) -> dict[str, RecordSet]:
    """Read the sources that data have."""
    found: dict[str, RecordSet] = {}
    missing: Exception | None = None
    for source in _SOURCES:
        try:
            found[source] = open_source(source, path, split)
        except (FileNotFoundError, ValueError) as error:
            # A file is of one source, and is invalid as the others.
            missing = error
    if not found and missing is not None:
        raise missing
    return found


def _questions(
    kind: Kind, sources: dict[str, RecordSet], words: ObjectWords, records: int
) -> list[LabelQuestion]:
    if kind == "classes":
        return [_classes(each) for each in _some(sources["detection"], records)]
    if kind == "caption":
        captions, asked = sources["phrases"], []
        for number, record in enumerate(_some(captions, records)):
            other = captions[Rng(0, _ASKED, number).integer(len(captions))]
            asked += [_caption(record, record, words), _caption(record, other, words)]
        return asked
    phrases: list[LabelQuestion] = []
    for source in ("referring", "phrases"):
        if source in sources:
            for number, record in enumerate(_some(sources[source], records)):
                phrases += _phrases(sources[source], record, words, number)
    return phrases


def _some(records: RecordSet, count: int) -> Iterator[Record]:
    order = Rng(0, _ASKED, len(records)).permuted(len(records))
    return (records[index] for index in islice(order, count))


def _classes(record: Record) -> LabelQuestion:
    boxes: list[list[Sequence[float]]] = [[] for _ in record.labels]
    for box, label in zip(record.boxes_xyxy, record.box_labels, strict=True):
        boxes[label].append(box)
    return LabelQuestion(record.images[0], record.labels, None, (), boxes)


def _caption(record: Record, text: Record, words: ObjectWords) -> LabelQuestion:
    """Ask for the phrases of a caption in its image, or in another one, where some may be true."""
    boxes: list[Any] = [None] * len(text.label_spans)
    for label, spans in enumerate(text.label_spans):
        if text is record:
            named = zip(record.boxes_xyxy, record.char_spans, strict=True)
            own = [box for box, of_box in named if set(spans) & set(of_box)]
            boxes[label] = own or None
        elif len(spans) == 1:
            phrase = text.text[slice(*spans[0])]
            if words.is_absent(record, LonePhrase(phrase, (0, len(phrase)))):
                boxes[label] = ()
    return LabelQuestion(record.images[0], text.labels, text.text, text.label_spans, boxes)


def _phrases(
    records: RecordSet, record: Record, words: ObjectWords, number: int
) -> Iterator[LabelQuestion]:
    """Ask for one phrase of a record and for one that its image does not show."""
    rng = Rng(0, _ASKED, number)
    absent = absent_phrase(records, record, words, rng)
    own = [
        (phrase, boxes)
        for phrase, boxes in zip(phrases_of(record), _boxes_of_phrases(record), strict=False)
        if boxes
    ]
    if absent is None or not own:
        return
    phrase, boxes = rng.choice(own)
    yield LabelQuestion(record.images[0], (phrase.text,), None, (), [boxes])
    yield LabelQuestion(record.images[0], (absent.text,), None, (), [()])


def _boxes_of_phrases(record: Record) -> list[list[Sequence[float]]]:
    """Return the boxes of each phrase of `phrases_of`."""
    spans = [own for own in record.label_spans if len(own) == 1]
    named = list(zip(record.boxes_xyxy, record.char_spans, strict=True))
    return [[box for box, of_box in named if set(own) & set(of_box)] for own in spans]
