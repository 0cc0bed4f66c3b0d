"""Masks of phrases: COCO annotations with `sentences`, as prepared files of RefCOCO; or REFER's.

{"images": [...], "annotations": [
    {"id": 1, "image_id": 7, "segmentation": [[...]], "category_id": 3,
     "sentences": [{"sent_id": 0, "sent": "the left dog"}]}]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_boxes import annotated_size, sorted_categories
from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    read_json,
    without_garbage_collection,
)
from fiber.data.formats.json_values import id_key
from fiber.data.masks.refer import is_references, read_refer
from fiber.data.masks.segmentation import by_image, image_root, masks_of
from fiber.data.record import AnyPath

KIND = "masks of expressions"


@without_garbage_collection()
def expression_masks(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read the masks of phrases, one record per image with phrases.

    A sentence is `sent`, or else `raw`. Sentences of an image with the same `sent_id` and text are
    one phrase, whose masks are those of all of their objects; without `sent_id`, each is a phrase
    of its own. `text` is empty.

    Arguments are as in `fiber.data.masks.panoptic.panoptic`; the default file is
    "expression_masks_<split>.json". `annotations` may also be REFER's refs(*).p; see
    `fiber.data.masks.refer`.

    Raises:
        FileNotFoundError: if the file or the image folder is missing.
        ValueError: if an entry is invalid; the error names the file, entry and key.
    """
    path = (
        Path(folder) / f"expression_masks_{split}.json"
        if annotations is None
        else Path(annotations)
    )
    if is_references(path):
        file = read_refer(path, split)
    else:
        file = read_json(path, KIND).require_list("images")
    categories = sorted_categories(file)
    label_index = {id_key(entry["id"]): index for index, entry in enumerate(categories)}
    classes = tuple(entry["name"] for entry in categories)
    label_ids = tuple(entry["id"] for entry in categories)
    out, objects = RecordList(), by_image(file)
    out.classes = classes
    root = image_root(file, folder, images)
    for entry in file.images():
        own = [pair for pair in objects.get(id_key(entry["id"]), []) if pair[1].get("sentences")]
        for index, annotation in own:
            if not annotation.get("segmentation"):
                file.at("annotations", annotation, index)
                raise file.error("has 'sentences' but no 'segmentation'")
        fields = masks_of(file, own, label_index, out)
        phrases, chosen = _phrases(file, own)
        if not phrases:
            out.skip("pictures without phrases")
            continue
        file.at("images", entry)
        out.append(
            file.record(
                entry["id"],
                f"{root}/{entry['file_name']}",
                image_size=annotated_size(file, entry),
                text="",
                labels=classes,
                label_ids=label_ids,
                phrases=phrases,
                phrase_masks=chosen,
                **fields,
            )
        )
    return out


def _phrases(
    file: AnnotationFile, own: list[tuple[int, dict[str, Any]]]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Return the phrases of an image, and the masks of each."""
    phrases: dict[Any, tuple[str, list[int]]] = {}
    for mask, (index, entry) in enumerate(own):
        file.at("annotations", entry, index)
        for number, sentence in enumerate(file.objects(entry, "sentences")):
            text = file.text(sentence, "sent" if "sent" in sentence else "raw")
            key: Any = (mask, number)
            if "sent_id" in sentence:
                key = (id_key(file.get(sentence, "sent_id", int, str)), text)
            masks = phrases.setdefault(key, (text, []))[1]
            if mask not in masks[-1:]:
                masks.append(mask)
    texts = tuple(text for text, _ in phrases.values())
    return texts, tuple(tuple(masks) for _, masks in phrases.values())
