"""Grounding datasets in MDETR's format.

Supports Flickr30k Entities, RefCOCO, RefCOCO+, RefCOCOg, and the mixed dataset of COCO and Visual
Genome images. Each entry in `images` pairs one text with one image.

Source: MDETR (Kamath et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fiber.data.char_spans import CharSpan
from fiber.data.formats.annotation_boxes import (
    EntryBoxes,
    annotated_size,
    boxes_by_image,
    char_spans,
    read_boxes,
    span_key,
)
from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    annotation_path,
    find_images_folder,
    images_folder,
    read_json,
    without_garbage_collection,
)
from fiber.data.formats.json_values import id_key
from fiber.data.masks.segmentation import masks_of_boxes
from fiber.data.record import AnyPath, Record
from fiber.messages import shown

#: Maximum number of characters of all phrases of a caption, which may overlap.
MAX_PHRASE_CHARACTERS = 1_000_000
#: Name of the mixed dataset in messages.
MIXED = "MDETR's mixed set"
#: Image folders of the mixed dataset by `data_source`, relative to the data folder; the best match
#: is used. The Visual Genome images are those of GQA.
MIXED_IMAGES = {
    "coco": ("refcoco/train2014", "coco/train2014", "train2014", "images/train2014"),
    "vg": ("gqa/images", "images/gqa", "gqa", "images"),
}


@without_garbage_collection()
def phrases(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    on_error: str = "raise",
    masks: bool = False,
) -> RecordList:
    """Read captions with phrases and boxes (Flickr30k Entities in MDETR's format).

    There is one record per caption. `labels` and `label_spans` contain the phrases listed in
    `tokens_positive_eval` or, if it is absent, the distinct `tokens_positive` of the boxes. The
    `char_spans` of a box are those of all its phrases, but `box_labels` has only the first phrase;
    see `label_boxes`.

    Args:
        folder: data folder.
        split: split name, such as "train".
        annotations: annotation file; default: "flickr_<split>.json" in the folder.
        images: image folder; default: "images" in the folder, or one of the folders that the
            published code uses.
        on_error: "raise", or "skip" to clip boxes that exceed their images, drop invalid boxes, and
            count both.
        masks: if True, also read the masks of boxes, `segmentation` of their entries, if they
            have any.

    Raises:
        FileNotFoundError: if the file or the image folder is missing.
        ValueError: if an entry is invalid; the error names the file, entry and key.
    """
    path = annotation_path(folder, split, "phrases", annotations)
    file = read_json(path, "Flickr30k Entities, MDETR format")
    names = (f"flickr30k/flickr30k_images/{split}", "flickr30k/flickr30k_images", "flickr30k")
    root = _root(file, folder, images, (*names, f"flickr30k_images/{split}", "flickr30k_images"))
    return _phrase_records(file, lambda _: root, on_error, masks=masks)


def mixed(
    folder: AnyPath, split: str, *, annotations: AnyPath, on_error: str = "raise"
) -> RecordList:
    """Read captions with phrases and boxes for COCO and GQA images (MDETR's mixed dataset).

    Arguments, records and errors are as in `phrases`, but the image folder is determined by the
    `data_source` of each entry (see `MIXED_IMAGES`). The only split is "train".
    """
    file = read_json(Path(annotations), MIXED)
    names: dict[str, list[str]] = {}
    for entry in file.images():
        file.text(entry, "data_source")
        names.setdefault(_source(entry), []).append(entry["file_name"])
    roots = {}
    for source, own in names.items():
        candidates = _candidates(folder, MIXED_IMAGES[source])
        found = find_images_folder(own, candidates)
        if found is None:
            raise FileNotFoundError(
                f"{file.path}: no folder found for the {len(own)} images with data_source"
                f" {source!r}, such as {shown(own[0])}; tried {', '.join(map(str, candidates))}"
            )
        roots[source] = str(found)
    return _phrase_records(file, lambda entry: roots[_source(entry)], on_error)


def _source(entry: dict[str, Any]) -> str:
    return "coco" if entry["data_source"] == "coco" else "vg"


def _candidates(folder: AnyPath, names: Sequence[str]) -> list[Path]:
    """Return candidate image folders in `folder` and its parent, which may be the data folder."""
    return [parent / name for parent in (Path(folder), Path(folder).parent) for name in names]


def _root(
    file: AnnotationFile, folder: AnyPath, images: AnyPath | None, folders: tuple[str, ...]
) -> str:
    """Find the folder that a file's image names are relative to."""
    if images is None:
        names = [entry["file_name"] for entry in file.images()]
        found = find_images_folder(names, [Path(folder) / "images", *_candidates(folder, folders)])
        if found is not None:
            return str(found)
    return images_folder(folder, images)


def _texts(
    file: AnnotationFile, out: RecordList, on_error: str
) -> Iterator[tuple[dict[str, Any], str, EntryBoxes]]:
    """Yield each entry of `images` with its caption and boxes."""
    file.skips_errors = on_error == "skip"
    boxes = boxes_by_image(file)
    for entry in file.images():
        text = file.text(entry, "caption")
        yield entry, text, read_boxes(file, entry, boxes.get(id_key(entry["id"]), []), out)


def _phrase_records(
    file: AnnotationFile,
    root: Callable[[dict[str, Any]], str],
    on_error: str,
    *,
    masks: bool = False,
) -> RecordList:
    """Create the records of a file. `root` maps an entry to its image folder."""
    out, without = RecordList(), RecordList()
    for entry, text, found in _texts(file, out, on_error):
        spans = [_box_spans(file, box, text, out) for _, box in found]
        file.at("images", entry)
        labels = _Labels(text)
        evaluated = entry.get("tokens_positive_eval")
        if evaluated is None:
            for own in spans:
                labels.add_new(own)
        else:
            for phrase in file.get(entry, "tokens_positive_eval", list):
                named = {"tokens_positive_eval": phrase}
                labels.add(char_spans(file, named, "tokens_positive_eval", text, out))
        for own in spans:
            if labels.index(own) is None:
                labels.add(own)
        if labels.characters > MAX_PHRASE_CHARACTERS:
            raise file.error(
                f"has phrases of {labels.characters:,} characters in all; expected at most"
                f" {MAX_PHRASE_CHARACTERS:,}"
            )
        box_labels = tuple(map(labels.index, spans))
        own_masks = masks_of_boxes(file, found, box_labels, without) if masks else {}
        file.at("images", entry)
        out.append(
            file.record(
                entry["id"],
                f"{root(entry)}/{entry['file_name']}",
                **own_masks,
                image_size=annotated_size(file, entry),
                text=text,
                boxes_xyxy=tuple(box for box, _ in found),
                char_spans=tuple(spans),
                box_labels=box_labels,
                labels=tuple(" ".join(text[a:b] for a, b in label) for label in labels.spans),
                label_spans=tuple(labels.spans),
                group=file.optional_text(entry, "group"),
            )
        )
    _report(out, without)
    return out


def _report(out: RecordList, without: RecordList) -> None:
    """Count boxes without a mask, but in a file of boxes, which has no masks at all."""
    if any(record.masks for record in out):
        out.add_report(without)


def _box_spans(
    file: AnnotationFile, box: dict[str, Any], text: str, out: RecordList
) -> tuple[CharSpan, ...]:
    """Return the spans of the phrases of a box, of which there is one or more."""
    file.at("annotations", box)
    if spans := char_spans(file, box, "tokens_positive", text, out):
        return spans
    raise file.error("has an empty 'tokens_positive'; expected a list of [start, end] pairs")


class _Labels:
    """Phrases of a caption, as spans, in time that is linear in the number of spans."""

    def __init__(self, text: str) -> None:
        self.spans: list[tuple[CharSpan, ...]] = []
        #: Number of characters of all phrases.
        self.characters = 0
        self._length = len(text)
        self._known = set[bytes]()
        #: The first phrase with a span.
        self._first: dict[bytes, int] = {}

    def add(self, spans: tuple[CharSpan, ...]) -> None:
        """Append a phrase."""
        for span in spans:
            self._first.setdefault(span_key(span), len(self.spans))
            self.characters += min(span[1], self._length) - min(span[0], self._length)
        self.spans.append(spans)

    def add_new(self, spans: tuple[CharSpan, ...]) -> None:
        """Append a phrase unless it was added before by this method."""
        key = b" ".join(map(span_key, spans))
        if key not in self._known:
            self._known.add(key)
            self.add(spans)

    def index(self, spans: tuple[CharSpan, ...]) -> int | None:
        """Return the index of the first phrase that has one of the spans, or None."""
        found = (self._first.get(span_key(span)) for span in spans)
        return min((index for index in found if index is not None), default=None)


def label_boxes(record: Record) -> list[list[int]]:
    """Return a list of box indices for each label.

    A box with several phrases appears in several lists. `Record.box_labels` has only the first of
    its phrases.
    """
    return [
        [i for i, own in enumerate(record.char_spans) if _shares(label, own)]
        for label in record.label_spans
    ]


def _shares(label: tuple[CharSpan, ...], spans: tuple[CharSpan, ...]) -> bool:
    """Return whether a label and a box have a span in common."""
    return any(span in spans for span in label)


@without_garbage_collection()
def referring(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    whole_expression: bool = False,
    on_error: str = "raise",
    masks: bool = False,
) -> RecordList:
    """Read referring expressions (RefCOCO in MDETR's format), one record per expression.

    The only label of a record is its expression, which has one box in the public datasets.
    Expressions without a valid box are skipped and counted.

    Arguments and errors are as in `phrases`; the default file is "refcoco_<split>.json". If
    `whole_expression` is True, spans cover the whole text. Otherwise they are the `tokens_positive`
    of the file, which cover the head phrase ("the star" in "the star left of the ring").
    """
    path = annotation_path(folder, split, "referring", annotations)
    file = read_json(path, "RefCOCO, MDETR format")
    root = _root(file, folder, images, MIXED_IMAGES["coco"])
    out, without = RecordList(), RecordList()
    for entry, text, found in _texts(file, out, on_error):
        if not found:
            out.skip("expressions without a box")
            continue
        spans = ((0, len(text)),)
        if not whole_expression:
            spans = _box_spans(file, found[0][1], text, out)
        own_masks = masks_of_boxes(file, found, (0,) * len(found), without) if masks else {}
        file.at("images", entry)
        out.append(
            file.record(
                entry["id"],
                f"{root}/{entry['file_name']}",
                **own_masks,
                image_size=annotated_size(file, entry),
                text=text,
                boxes_xyxy=tuple(box for box, _ in found),
                char_spans=(spans,) * len(found),
                box_labels=(0,) * len(found),
                labels=(text,),
                label_spans=(spans,),
                group=file.optional_text(entry, "group"),
            )
        )
    _report(out, without)
    return out
