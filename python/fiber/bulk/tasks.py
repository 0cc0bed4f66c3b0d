"""Tasks of `Annotator` and `fiber map`: methods of models, their texts, options and columns.

A column is described by its name and one of `COLUMN_TYPES`, without pyarrow; `schema` makes the
Parquet schema of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fiber.bulk.perceptual_hash import HASH_WIDTH, hash_images
from fiber.config_io import nearest
from fiber.data.masks.codec import encode_rle
from fiber.inference.by_head import METHOD_HEADS
from fiber.messages import shown

#: Types of columns, by name, and what they hold.
COLUMN_TYPES = {
    "vector": "float32, of the width of the task or else of the model",
    "text": "string",
    "score": "float32",
    "texts": "list of strings",
    "scores": "list of float32",
    "indices": "list of int32",
    "boxes": "list of four float32 each, half-open xyxy in pixels",
    "areas": "list of int64, in pixels",
    "flags": "list of bools",
}

#: Columns of results, a list of one value for each record.
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class BulkTask:
    """A task that `Annotator` runs on many images."""

    name: str
    #: Method of `fiber.Model`, for its heads and messages; None if the task needs no model.
    method: str | None
    #: Texts that a record or the user may give, by name; the first that is there is used.
    texts: tuple[str, ...]
    #: Options of the method that the user may give.
    options: tuple[str, ...]
    #: Type of each column of the result.
    columns: Mapping[str, str]
    #: Function of (model, images, texts by name, options).
    run: Callable[[Any, list[Any], Mapping[str, list[Any]], Mapping[str, Any]], Columns]
    #: True if it runs without any text.
    may_lack_texts: bool = False
    #: True if a text is truncated to the model's maximum, instead of refused.
    truncates: bool = False
    #: Width of its vectors; None means that of the model's embeddings.
    width: int | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads of which a model needs one."""
        return () if self.method is None else METHOD_HEADS[self.method]


def _embed(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    return {"embedding": list(model.embed_images(images))}


def _hash(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    return {"hash": hash_images(images)}


def _caption(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    return {"caption": model.caption(images, **options)}


def _answer(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    found = model.answer(images, texts["question"], **options)
    return {
        "question": texts["question"],
        "answers": [[each.answer for each in own] for own in found],
        "scores": [[each.score for each in own] for own in found],
    }


def _match(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    scores = model.match_pairs(images, texts["text"])
    return {"text": texts["text"], "score": scores.tolist()}


def _ground(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    if "phrases" in texts:
        found = model.ground(images, _one_or_each(texts["phrases"]), **options)
    else:
        spans = {"spans": texts["spans"]} if "spans" in texts else {}
        found = model.ground(images, caption=texts["caption"], **spans, **options)
    return _boxes(found)


def _detect(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    classes = _one_or_each(texts["classes"]) if "classes" in texts else None
    return _boxes(model.detect(images, classes, **options))


def _boxes(found: Sequence[Any]) -> Columns:
    return {
        "boxes_xyxy": [own.boxes_xyxy for own in found],
        "scores": [own.scores for own in found],
        "labels": [own.labels for own in found],
        "indices": [own.indices for own in found],
    }


def _segment(model: Any, images: list[Any], texts: Any, options: Any) -> Columns:
    if "phrases" in texts:
        return _segments(model.segment(images, phrases=_one_or_each(texts["phrases"]), **options))
    if "classes" not in texts:
        return _segments(model.segment(images, **options))
    found: list[Any] = [None] * len(images)
    # The method takes one list of classes.
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, classes in enumerate(texts["classes"]):
        rows_of.setdefault(tuple(classes), []).append(row)
    for classes, rows in rows_of.items():
        own = model.segment([images[row] for row in rows], list(classes), **options)
        for row, each in zip(rows, own, strict=True):
            found[row] = each
    return _segments(found)


def _segments(found: Sequence[Any]) -> Columns:
    masks = [own.masks for own in found]
    return {
        "kind": [own.kind for own in found],
        "labels": [own.labels for own in found],
        "indices": [own.indices for own in found],
        "is_thing": [[each.is_thing for each in own.segments] for own in found],
        "scores": [own.scores for own in found],
        "boxes_xyxy": [own.boxes_xyxy for own in found],
        "areas": [own.sum((1, 2), dtype=np.int64) for own in masks],
        "masks": [[encode_rle(mask).counts for mask in own] for own in masks],
    }


def _one_or_each(lists: list[Any]) -> list[Any]:
    """Return one list for all images if they have the same, so that its prompts are made once."""
    return lists[0] if all(each == lists[0] for each in lists) else lists


_BOX_COLUMNS = {
    "boxes_xyxy": "boxes",
    "scores": "scores",
    "labels": "texts",
    "indices": "indices",
}
_BOX_OPTIONS = (
    *("score_threshold", "presence_threshold", "nms_threshold", "max_detections"),
    *("negatives", "class_agnostic"),
)

#: Tasks by name.
TASKS = {
    task.name: task
    for task in (
        BulkTask(
            "embed", "embed_images", (), (), {"embedding": "vector"}, _embed, may_lack_texts=True
        ),
        BulkTask(
            "hash",
            None,
            (),
            (),
            {"hash": "vector"},
            _hash,
            may_lack_texts=True,
            width=HASH_WIDTH,
        ),
        BulkTask(
            "caption",
            "caption",
            (),
            ("num_beams", "max_tokens", "sample", "seed"),
            {"caption": "text"},
            _caption,
            may_lack_texts=True,
        ),
        BulkTask(
            "ground",
            "ground",
            ("phrases", "caption"),
            ("boxes_per_phrase", *_BOX_OPTIONS),
            _BOX_COLUMNS,
            _ground,
            truncates=True,
        ),
        BulkTask(
            "detect",
            "detect",
            ("classes",),
            ("classes_per_prompt", *_BOX_OPTIONS),
            _BOX_COLUMNS,
            _detect,
            may_lack_texts=True,
        ),
        BulkTask(
            "answer",
            "answer",
            ("question",),
            ("top_k",),
            {"question": "text", "answers": "texts", "scores": "scores"},
            _answer,
            truncates=True,
        ),
        BulkTask(
            "match",
            "match_pairs",
            ("text",),
            (),
            {"text": "text", "score": "score"},
            _match,
            truncates=True,
        ),
        BulkTask(
            "segment",
            "segment",
            ("phrases", "classes"),
            (
                *("stuff", "kind", "together", "score_threshold"),
                *("overlap_threshold", "max_instances"),
            ),
            {
                "kind": "text",
                "labels": "texts",
                "indices": "indices",
                "is_thing": "flags",
                "scores": "scores",
                "boxes_xyxy": "boxes",
                "areas": "areas",
                "masks": "texts",
            },
            _segment,
            may_lack_texts=True,
        ),
    )
}


def find_bulk_task(name: str) -> BulkTask:
    """Return a task by its name.

    Raises:
        ValueError: if it is unknown.
    """
    if name not in TASKS:
        raise ValueError(f"task {shown(name)} does not exist; {nearest(str(name), TASKS)}")
    return TASKS[name]
