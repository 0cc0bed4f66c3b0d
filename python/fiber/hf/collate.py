"""`TrainingCollator`: records to what the models of `fiber.hf` train on, for `Trainer`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiber.data import ImageTransform, Record, load_image
from fiber.data.batch import GroundingBatch, ImageTextBatch, QuestionBatch, ReasoningBatch
from fiber.data.collate import Collator
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.data.loader_config import BatchType
from fiber.data.skip_report import counted
from fiber.hf.processing import FiberVLProcessor, fiber_tokenizer
from fiber.losses.cross_entropy import IGNORED
from fiber.messages import shown, shown_names

_RECORD_FIELDS = {each.name for each in fields(Record)}


class TrainingCollator:
    """Turn records into the arguments of `forward`, with labels: `data_collator` of `Trainer`.

    A row of the data is a `fiber.data.Record`, or a mapping with its fields, in which

    - `image` may be given instead of `images`, as a path, bytes, a PIL image, or what an `Image`
      column of the datasets library holds with `decode=False` (which decodes faster);
    - `answers` may be a single answer, whose score is then 1;
    - `key` may be missing.

    `Trainer` removes fields that `forward` does not have from mappings, so set
    `TrainingArguments(remove_unused_columns=False)`.

    | head | a row has, besides the image and `text` |
    |---|---|
    | grounding | `boxes_xyxy`, half-open pixels of the image, and `char_spans` of each box |
    | vqa | `answers` with their scores, of `answers` of the collator |
    | snli | `answers`: "contradiction", "neutral" or "entailment" |
    | nlvr2 | `truth`, and two images in `images` |
    | itm | `truth`: True if the text is of the image |
    | mlm, caption | nothing |

    Args:
        processor: processor of the model.
        head: head to train.
        answers: for "vqa", the answers in logit order: `model.config.answers`.
        transform: transform of training images, such as one that crops and flips. Default: that of
            the processor. Boxes follow it, and words for left and right if it flips.
        mlm_probability: for "mlm", probability of a token to be masked.

    Raises:
        ValueError: if the head has no labels for single pairs, or "vqa" has no answers.
    """

    def __init__(
        self,
        processor: FiberVLProcessor,
        head: str,
        *,
        answers: Sequence[str] = (),
        transform: ImageTransform | None = None,
        mlm_probability: float = 0.15,
    ) -> None:
        if head not in _TRAINED:
            raise ValueError(
                f"head: expected one of {', '.join(map(repr, _TRAINED))}, got {shown(head)}"
            )
        if head == "vqa" and not answers:
            raise ValueError(
                "answers: the head 'vqa' needs the answers in logit order, such as"
                " model.config.answers; got none"
            )
        self.head = head
        self.answers = ENTAILMENT if head == "snli" else tuple(answers)
        self._collator = Collator(
            _TRAINED[head].layout,
            tokenizer=fiber_tokenizer(processor.tokenizer),
            transform=transform or processor.image_processor.image_transform,
            max_tokens=processor.tokenizer.model_max_length,
            answers=self.answers,
            mlm_probability=mlm_probability if head == "mlm" else 0.0,
        )

    def __call__(self, rows: Sequence[Record | Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows. Random numbers follow `torch.manual_seed`, as those of `Trainer` do.

        Returns:
            `pixel_values`, `image_sizes`, `input_ids`, `attention_mask` and `labels`.

        Raises:
            DecodeError, FileNotFoundError, TypeError, ValueError: if a row is bad; the message
                gives its key or index, and the field.
        """
        records = [self._record(index, row) for index, row in enumerate(rows)]
        batch: Any = self._collator(records)
        made: dict[str, Any] = {
            "pixel_values": batch.images,
            "image_sizes": batch.image_sizes,
            "input_ids": batch.token_ids,
            "attention_mask": batch.text_mask.long(),
        }
        return made | _TRAINED[self.head].labels(batch, records)

    def _record(self, index: int, row: Any) -> Record:
        """Convert a row to a record, and check that it has the labels of the head."""
        if not isinstance(row, Record):
            row = _as_record(index, row)
        labeled_by = _TRAINED[self.head].labeled_by
        # An image without boxes has no spans.
        is_labeled = bool(row.char_spans) or not row.boxes_xyxy
        if labeled_by != "char_spans":
            is_labeled = getattr(row, labeled_by) is not None
        if not is_labeled:
            raise ValueError(
                f"row {shown(row.key)} has no {labeled_by}, which training the head"
                f" {self.head!r} needs"
            )
        if labeled_by == "answers" and not set(row.answers or ()).intersection(self.answers):
            raise ValueError(
                f"row {shown(row.key)}: answers: none of {shown_names(list(row.answers or ()))} is"
                f" among the {counted(len(self.answers), 'answers')} of the collator"
            )
        return row


def _as_record(index: int, row: Any) -> Record:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"row {index} is a {type(row).__name__}; expected a fiber.data.Record, or a mapping"
            " with its fields"
        )
    values = dict(row)
    if "image" in values:
        values["images"] = (values.pop("image"),)
    lacks = [name for name in ("images", "text") if name not in values]
    if lacks:
        raise ValueError(
            f"row {index} lacks {' and '.join(lacks)}; it has {shown_names(list(row))}. Trainer"
            " removes fields unless remove_unused_columns=False"
        )
    if unknown := [name for name in values if name not in _RECORD_FIELDS]:
        raise ValueError(
            f"row {index} has the unknown fields {shown_names(unknown)}; expected those of"
            f" fiber.data.Record: {', '.join(sorted(_RECORD_FIELDS))}"
        )
    images = values["images"]
    several = images if isinstance(images, (list, tuple)) else (images,)
    values["images"] = tuple(_stored(image) for image in several)
    if isinstance(values.get("answers"), str):
        values["answers"] = {values["answers"]: 1.0}
    for name in ("boxes_xyxy", "char_spans"):
        if name in values:
            values[name] = _tuples(values[name])
    values.setdefault("key", f"#{index}")
    return Record(**values)


def _tuples(value: Any) -> Any:
    """Convert lists, also those in lists, and arrays to tuples."""
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _stored(image: Any) -> Any:
    """Return an image as a path or encoded bytes, which the Rust loader reads."""
    if isinstance(image, Mapping):
        # Of the datasets library, for images that are not decoded.
        return image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, (str, bytes, os.PathLike)):
        return image
    from PIL import Image

    encoded = io.BytesIO()
    array = load_image(image, keep_alpha=True)
    Image.fromarray(array).save(encoded, format="PNG", compress_level=1)
    return encoded.getvalue()


def _grounding_labels(batch: GroundingBatch, records: Sequence[Record]) -> dict[str, Any]:
    counts = batch.boxes_per_image.tolist()
    boxes, named = batch.boxes_xyxy.split(counts), batch.positive_map.split(counts)
    rows = zip(boxes, named, strict=True)
    return {"labels": [{"boxes": own, "positive_map": map_} for own, map_ in rows]}


def _class_labels(batch: QuestionBatch, records: Sequence[Record]) -> dict[str, Any]:
    return {"labels": batch.targets.argmax(1)}


def _match_labels(batch: ImageTextBatch, records: Sequence[Record]) -> dict[str, Any]:
    return {"labels": torch.tensor([int(bool(record.truth)) for record in records])}


def _masked_labels(batch: ImageTextBatch, records: Sequence[Record]) -> dict[str, Any]:
    return {"input_ids": batch.masked_ids, "labels": batch.mlm_labels}


def _caption_labels(batch: ImageTextBatch, records: Sequence[Record]) -> dict[str, Any]:
    return {"labels": batch.token_ids.masked_fill(~batch.text_mask, IGNORED)}


def _answer_labels(batch: QuestionBatch, records: Sequence[Record]) -> dict[str, Any]:
    return {"labels": batch.targets}


def _truth_labels(batch: ReasoningBatch, records: Sequence[Record]) -> dict[str, Any]:
    return {"labels": batch.truths}


@dataclass(frozen=True)
class _Trained:
    """What a head is trained on."""

    layout: BatchType
    #: Function from a batch and its records to arguments of `forward`.
    labels: Callable[[Any, Sequence[Record]], dict[str, Any]]
    #: Field of a record that has the labels.
    labeled_by: str = "text"


_TRAINED = {
    "grounding": _Trained("grounding", _grounding_labels, "char_spans"),
    "vqa": _Trained("question", _answer_labels, "answers"),
    "snli": _Trained("question", _class_labels, "answers"),
    "nlvr2": _Trained("reasoning", _truth_labels, "truth"),
    "itm": _Trained("image_text", _match_labels, "truth"),
    "mlm": _Trained("image_text", _masked_labels),
    "caption": _Trained("image_text", _caption_labels),
}
