"""Readers of boxes for the words of a text, in the form that MDETR wrote several data sets in.

Flickr30k Entities, the expressions of RefCOCO, RefCOCO+ and RefCOCOg, and the mixed set of COCO's
and Visual Genome's pictures. An entry of `images` is one text about one picture.

Source: MDETR (Kamath et al. 2021).
"""

from __future__ import annotations

from os import PathLike

from fiber.data.records import CharSpan, Record
from fiber.data.source_files import (
    RecordList,
    annotation_file,
    boxes_by_image,
    char_spans,
    images_folder,
    read_boxes,
    read_json,
    without_garbage_collection,
)

AnyPath = str | PathLike[str]


@without_garbage_collection
def phrases(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read captions with phrases and boxes (Flickr30k Entities in MDETR's form).

    One record for each caption. `labels` and `label_spans` are the phrases of
    `tokens_positive_eval` (without it, the different `tokens_positive`); a box has the spans of all
    phrases that name it and the first of them as `box_labels`: see `label_boxes`.
    Arguments and errors are those of `captions`; the file is "flickr_<split>.json".
    """
    path = annotation_file(folder, split, "phrases", annotations)
    file, root = read_json(path, "Flickr30k Entities, MDETR's form"), images_folder(folder, images)
    boxes = boxes_by_image(file)
    out = RecordList()
    for entry in file.pictures():
        text = file.text(entry, "caption")
        key = f"{path.stem}/{entry['id']}"
        found = read_boxes(file, key, entry, boxes.get(entry["id"], []), out)
        spans = []
        for _, box in found:
            file.at("annotations", box)
            spans.append(char_spans(file, box, "tokens_positive"))
        file.at("images", entry)
        evaluated = entry.get("tokens_positive_eval")
        labels = (
            [*dict.fromkeys(spans)]
            if evaluated is None
            else [char_spans(file, {"spans": phrase}, "spans") for phrase in evaluated]
        )
        for own in spans:
            if not any(_shares(label, own) for label in labels):
                labels.append(own)
        out.append(
            file.record(
                key=key,
                images=(f"{root}/{entry['file_name']}",),
                image_id=f"{root}/{entry['file_name']}",
                text=text,
                boxes_xyxy=tuple(box for box, _ in found),
                char_spans=tuple(spans),
                box_labels=tuple(
                    next(i for i, label in enumerate(labels) if _shares(label, own))
                    for own in spans
                ),
                labels=tuple(" ".join(text[a:b] for a, b in label) for label in labels),
                label_spans=tuple(labels),
                group=entry.get("group", ""),
            )
        )
    return out


def label_boxes(record: Record) -> list[list[int]]:
    """Return, for each of a record's labels, the indices of all boxes that it names.

    A box that several phrases name is in several lists; `Record.box_labels` has room for one.
    """
    return [
        [i for i, own in enumerate(record.char_spans) if _shares(label, own)]
        for label in record.label_spans
    ]


def _shares(label: tuple[CharSpan, ...], spans: tuple[CharSpan, ...]) -> bool:
    """Whether a label and a box have a span in common."""
    return any(span in spans for span in label)


@without_garbage_collection
def referring(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    whole_expression: bool = False,
) -> RecordList:
    """Read referring expressions (RefCOCO in MDETR's form): one record for each expression.

    Each has one label, the expression, and its boxes (one, in the public sets). Expressions whose
    boxes were all dropped are left out and counted.

    Args:
        folder: a data folder.
        split: such as "train".
        annotations: the file, if it is not "refcoco_<split>.json" in the folder.
        images: where its file names start, if not "images" in the folder.
        whole_expression: spans cover the whole text; otherwise they are the file's
            `tokens_positive`: its head phrase, "the star" of "the star left of the ring".

    Raises:
        FileNotFoundError: if the file or the folder of pictures is missing.
        ValueError: if an entry is not as expected, with file, entry and key.
    """
    path = annotation_file(folder, split, "referring", annotations)
    file, root = read_json(path, "RefCOCO, MDETR's form"), images_folder(folder, images)
    boxes = boxes_by_image(file)
    out = RecordList()
    for entry in file.pictures():
        text = file.text(entry, "caption")
        key = f"{path.stem}/{entry['id']}"
        found = read_boxes(file, key, entry, boxes.get(entry["id"], []), out)
        if not found:
            out.add("expressions without a box")
            continue
        spans = ((0, len(text)),)
        if not whole_expression:
            file.at("annotations", found[0][1])
            spans = char_spans(file, found[0][1], "tokens_positive")
        file.at("images", entry)
        out.append(
            file.record(
                key=key,
                images=(f"{root}/{entry['file_name']}",),
                image_id=f"{root}/{entry['file_name']}",
                text=text,
                boxes_xyxy=tuple(box for box, _ in found),
                char_spans=(spans,) * len(found),
                box_labels=(0,) * len(found),
                labels=(text,),
                label_spans=(spans,),
                group=entry.get("group", ""),
            )
        )
    return out
