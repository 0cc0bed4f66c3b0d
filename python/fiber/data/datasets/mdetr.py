"""Readers of boxes for the words of a text, in the form that MDETR wrote several data sets in.

Flickr30k Entities, the expressions of RefCOCO, RefCOCO+ and RefCOCOg, and the mixed set of COCO's
and Visual Genome's pictures. An entry of `images` is one text about one picture.

Source: MDETR (Kamath et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.data.char_spans import CharSpan
from fiber.data.formats.annotation_boxes import boxes_by_image, char_spans, read_boxes, told_size
from fiber.data.formats.annotation_file import (
    RecordList,
    SourceFile,
    annotation_file,
    folder_with,
    images_folder,
    read_json,
    without_garbage_collection,
)
from fiber.data.record import Record

AnyPath = str | PathLike[str]


#: The mixed set in messages, and its files; the first without the pictures of COCO's val2017.
MIXED = "MDETR's mixed set"
MIXED_FILES = ("final_mixed_train_no_coco.json", "final_mixed_train.json")
#: Where the pictures of the mixed set lie below the data folder, by the `data_source` of a text;
#: those of Visual Genome are GQA's. The first of each that is there counts.
MIXED_PICTURES = {
    "coco": ("refcoco/train2014", "coco/train2014", "train2014", "images/train2014"),
    "vg": ("gqa/images", "images/gqa", "gqa", "images"),
}


@without_garbage_collection
def phrases(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    on_error: str = "raise",
) -> RecordList:
    """Read captions with phrases and boxes (Flickr30k Entities in MDETR's form).

    One record for each caption. `labels` and `label_spans` are the phrases of
    `tokens_positive_eval` (without it, the different `tokens_positive`); a box has the spans of all
    phrases that name it and the first of them as `box_labels`: see `label_boxes`.

    Args:
        folder: a data folder.
        split: such as "train".
        annotations: the file, if it is not "flickr_<split>.json" in the folder.
        images: where its file names start, if neither in "images" in the folder nor where the
            published code looks for them.
        on_error: "raise", or "skip": boxes outside their pictures are cut, what is no box is left
            out, and both are counted.

    Raises:
        FileNotFoundError: if the file or the folder of pictures is missing.
        ValueError: if an entry is not as expected, with file, entry and key.
    """
    path = annotation_file(folder, split, "phrases", annotations)
    file = read_json(path, "Flickr30k Entities, MDETR's form")
    file.skips_errors = on_error == "skip"
    places = (f"flickr30k/flickr30k_images/{split}", "flickr30k/flickr30k_images", "flickr30k")
    root = _root(file, folder, images, (*places, f"flickr30k_images/{split}", "flickr30k_images"))
    return _phrase_records(file, lambda _: root)


@without_garbage_collection
def mixed(
    folder: AnyPath, split: str, *, annotations: AnyPath | None = None, on_error: str = "raise"
) -> RecordList:
    """Read MDETR's mixed set: captions with phrases and boxes on pictures of COCO and of GQA.

    Arguments, records and errors are those of `phrases`; where the pictures lie is told by
    `data_source`, as in `MIXED_PICTURES`. The set has a training split alone.
    """
    path = Path(folder) / MIXED_FILES[0] if annotations is None else Path(annotations)
    file = read_json(path, MIXED)
    file.skips_errors = on_error == "skip"
    names: dict[str, list[str]] = {}
    for entry in file.pictures():
        source = file.get(entry, "data_source", str)
        names.setdefault("coco" if source == "coco" else "vg", []).append(entry["file_name"])
    roots = {}
    for source, own in names.items():
        places = [base / name for base in _bases(folder) for name in MIXED_PICTURES[source]]
        found = folder_with(own, places)
        if found is None:
            raise FileNotFoundError(
                f"{path} names {len(own)} pictures of data_source {source!r}, such as {own[0]!r};"
                f" those that were looked for are not in {', '.join(map(str, places))}"
            )
        roots[source] = str(found)
    return _phrase_records(file, lambda e: roots["coco" if e["data_source"] == "coco" else "vg"])


def _bases(folder: AnyPath) -> list[Path]:
    """Folders that names of folders of pictures start from: annotations may have their own."""
    return [Path(folder), Path(folder).parent]


def _root(
    file: SourceFile, folder: AnyPath, images: AnyPath | None, places: tuple[str, ...]
) -> str:
    """Find where a file's names of pictures start: where they are, else in "images"."""
    if images is None:
        names = [entry["file_name"] for entry in file.pictures()]
        bases = _bases(folder)
        roots = [Path(folder) / "images", *(base / name for base in bases for name in places)]
        found = folder_with(names, roots)
        if found is not None:
            return str(found)
    return images_folder(folder, images)


def _phrase_records(file: SourceFile, root: Callable[[dict[str, Any]], str]) -> RecordList:
    """Make the records of `phrases`; `root` gives the folder of an entry's picture."""
    boxes = boxes_by_image(file)
    out = RecordList()
    for entry in file.pictures():
        text = file.text(entry, "caption")
        key = f"{file.path.stem}/{entry['id']}"
        found = read_boxes(file, key, entry, boxes.get(entry["id"], []), out)
        spans = []
        for _, box in found:
            file.at("annotations", box)
            spans.append(char_spans(file, box, "tokens_positive", text, out))
        file.at("images", entry)
        evaluated = entry.get("tokens_positive_eval")
        labels = (
            [*dict.fromkeys(spans)]
            if evaluated is None
            else [char_spans(file, {"spans": phrase}, "spans", text, out) for phrase in evaluated]
        )
        for own in spans:
            if not any(_shares(label, own) for label in labels):
                labels.append(own)
        image = f"{root(entry)}/{entry['file_name']}"
        out.append(
            file.record(
                key=key,
                images=(image,),
                image_id=image,
                image_size=told_size(entry),
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
    on_error: str = "raise",
) -> RecordList:
    """Read referring expressions (RefCOCO in MDETR's form): one record for each expression.

    Each has one label, the expression, and its boxes (one, in the public sets). Expressions whose
    boxes were all dropped are left out and counted.

    Args:
        folder: a data folder.
        split: such as "train".
        annotations: the file, if it is not "refcoco_<split>.json" in the folder.
        images: where its file names start, if neither in "images" in the folder nor where the
            published code looks for them.
        whole_expression: spans cover the whole text; otherwise they are the file's
            `tokens_positive`: its head phrase, "the star" of "the star left of the ring".
        on_error: see `phrases`.

    Raises:
        FileNotFoundError: if the file or the folder of pictures is missing.
        ValueError: if an entry is not as expected, with file, entry and key.
    """
    path = annotation_file(folder, split, "referring", annotations)
    file = read_json(path, "RefCOCO, MDETR's form")
    file.skips_errors = on_error == "skip"
    root = _root(file, folder, images, MIXED_PICTURES["coco"])
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
            spans = char_spans(file, found[0][1], "tokens_positive", text, out)
        file.at("images", entry)
        out.append(
            file.record(
                key=key,
                images=(f"{root}/{entry['file_name']}",),
                image_id=f"{root}/{entry['file_name']}",
                image_size=told_size(entry),
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
