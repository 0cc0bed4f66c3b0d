"""Flickr30k Entities in its original layout.

    val.txt                       one image id per line
    Sentences/1007129816.txt      captions with phrases in brackets: [/EN#1/people The man] sits
    Annotations/1007129816.xml    boxes with the ids of their phrases

The files are in the data folder or its subfolder "flickr30k_entities" or "flickr30k". The words of
a caption are joined by single spaces, as in the published JSON files. Box coordinates are not
adjusted, since the published evaluation treats them as half-open.

Source: Plummer et al. 2015.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fiber.data.char_spans import CharSpan
from fiber.data.formats.annotation_boxes import Box
from fiber.data.formats.annotation_file import RecordList, named, read_text
from fiber.data.formats.json_values import MAX_NUMBER
from fiber.data.record import AnyPath, Record
from fiber.messages import shown, shown_names

#: File type in messages.
KIND = "Flickr30k Entities, original layout"
#: Image folders, relative to the data folder, the folder of the image list, or its parent.
IMAGE_FOLDERS = (
    *("flickr30k/flickr30k_images/{split}", "flickr30k_images/{split}", "images"),
    *("flickr30k-images", "flickr30k_images", "flickr30k/flickr30k_images"),
    "flickr30k/flickr30k-images",
)
_SIDES = ("xmin", "ymin", "xmax", "ymax")
#: Maximum number of captions and of objects of an image, and of phrases of a caption. All captions
#: share the objects, and a box has the spans of all of its phrases.
_MOST = 1000
#: Maximum length of an image id, which is the stem of file names.
_MAX_ID_CHARACTERS = 200


class Phrase(NamedTuple):
    """A phrase in a caption."""

    span: CharSpan
    #: Id by which boxes refer to the phrase; "0" for phrases without a box.
    number: str
    #: Category, such as "people"; multiple categories are joined by "/".
    kind: str


def flickr_entities(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath,
    images: AnyPath | None = None,
    on_error: str = "raise",
    masks: bool = False,
) -> RecordList:
    """Read captions with phrases and boxes, one record per caption.

    The dataset has no masks, so `masks` has no effect.

    As in the published evaluation, phrases without a box are dropped, as are captions without any
    remaining phrases. `labels` contains the phrases, and `label_groups` their categories. The
    `char_spans` of a box are those of all its phrases.

    `annotations` is the image list; the other files are in the same folder. `images` defaults to
    the first of `IMAGE_FOLDERS` that exists. If `on_error` is "skip", objects with an invalid box
    are dropped and counted.

    Raises:
        FileNotFoundError: if a file or the image folder is missing.
        ValueError: if a file is invalid; the error names the file and the line or object.
    """
    listed, out = Path(annotations), RecordList()
    names, parent = read_text(listed, KIND).split(), listed.parent
    root = _images_root(Path(folder), parent, split, images)
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{listed} has image id {shown(twice)} twice; expected unique ids")
    for name in names:
        if "/" in name or not name.isprintable() or len(name) > _MAX_ID_CHARACTERS:
            raise ValueError(
                f"{listed} has image id {shown(name)}; expected one such as 1007129816 (read as"
                f" {KIND})"
            )
        skipped = out if on_error == "skip" else None
        boxes = _read_boxes(parent / "Annotations" / f"{name}.xml", skipped)
        known = {number for _, numbers in boxes for number in numbers}
        path = parent / "Sentences" / f"{name}.txt"
        lines = [line for line in read_text(path, KIND).split("\n") if line.strip()]
        _check_count(path, len(lines), "captions")
        for number, line in enumerate(lines):
            where = f"{path}: caption {number}"
            text, phrases = read_sentence(line, where)
            _check_count(where, len(phrases), "phrases")
            kept = [phrase for phrase in phrases if phrase.number in known]
            out.skip("phrases without a box", len(phrases) - len(kept))
            if not kept:
                out.skip("captions without a box")
                continue
            with named(where):
                out.append(
                    _record(
                        f"{listed.stem}/{name}_{number}", f"{root}/{name}.jpg", text, kept, boxes
                    )
                )
    return out


def _check_count(where: object, count: int, what: str) -> None:
    if count > _MOST:
        raise ValueError(f"{where} has {count:,} {what}; expected at most {_MOST:,}")


def _record(
    key: str, image: str, text: str, phrases: list[Phrase], boxes: list[tuple[Box, frozenset[str]]]
) -> Record:
    # Indices of the phrases of each number, and of those of each box, in order.
    of_number: dict[str, list[int]] = {}
    for index, phrase in enumerate(phrases):
        of_number.setdefault(phrase.number, []).append(index)
    own = [
        sorted(index for number in numbers for index in of_number.get(number, ()))
        for _, numbers in boxes
    ]
    return Record(
        key=key,
        images=(image,),
        image_id=image,
        text=text,
        boxes_xyxy=tuple(box for (box, _), of in zip(boxes, own, strict=True) if of),
        char_spans=tuple(tuple(phrases[i].span for i in of) for of in own if of),
        box_labels=tuple(of[0] for of in own if of),
        labels=tuple(text[slice(*phrase.span)] for phrase in phrases),
        label_spans=tuple((phrase.span,) for phrase in phrases),
        label_groups=tuple(phrase.kind for phrase in phrases),
    )


def read_sentence(line: str, where: str) -> tuple[str, list[Phrase]]:
    """Parse a caption such as "[/EN#1/people The man] sits ." into its text and its phrases.

    Raises:
        ValueError: if a phrase is unclosed or empty, or has no id.
    """
    parts, length = list[str](), 0
    phrases, opened = list[Phrase](), None
    for token in line.split():
        if opened is None and token.startswith("[/"):
            number, *kinds = token[1:].split("/")[1:]
            if not number.startswith("EN#"):
                raise ValueError(
                    f"{where} has {shown(token)}; expected a phrase such as [/EN#1/people ...]"
                )
            start = length + (1 if length else 0)
            opened = (start, number.removeprefix("EN#"), "/".join(kinds))
            continue
        closes = opened is not None and token.endswith("]")
        parts.append((" " if length else "") + (token[:-1] if closes else token))
        length += len(parts[-1])
        if closes and opened is not None:
            start, number, kind = opened
            if start >= length:
                raise ValueError(f"{where} has an empty phrase: {shown(line)}")
            phrases.append(Phrase((start, length), number, kind))
            opened = None
    if opened is not None:
        raise ValueError(f"{where} has an unclosed phrase: {shown(line)}")
    return "".join(parts), phrases


def _read_boxes(path: Path, skipped: RecordList | None) -> list[tuple[Box, frozenset[str]]]:
    """Read the boxes of an image, each with the ids of its phrases.

    Objects without a box are ignored. Invalid objects are counted in `skipped`. If `skipped` is
    None, an invalid object raises ValueError.
    """
    try:
        tree = ElementTree.fromstring(read_text(path, KIND))
    except ElementTree.ParseError as problem:
        raise ValueError(f"{path} is not valid XML: {problem} (read as {KIND})") from None
    found = []
    objects = tree.findall("object")
    _check_count(path, len(objects), "objects")
    for number, entry in enumerate(objects):
        box = entry.find("bndbox")
        if box is None:
            continue
        numbers = frozenset(name.text or "" for name in entry.findall("name"))
        corners = [box.findtext(side, "") for side in _SIDES]
        sides = _numbers(corners)
        if sides and sides[0] <= sides[2] and sides[1] <= sides[3] and numbers:
            found.append((sides, numbers))
        elif skipped is None:
            raise ValueError(
                f"{path}: object {number} has names {shown_names(sorted(numbers))} and corners"
                f" {shown(corners)}; expected at least one name, and corners with xmin <= xmax and"
                " ymin <= ymax"
            )
        else:
            skipped.skip("objects whose box is none")
    return found


def _numbers(corners: list[str]) -> Box | None:
    """Return four coordinates, or None if they are not finite numbers of at most 2**53."""
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError:
        return None
    return (x0, y0, x1, y1) if all(abs(s) <= MAX_NUMBER for s in (x0, y0, x1, y1)) else None


def _images_root(folder: Path, list_folder: Path, split: str, images: AnyPath | None) -> Path:
    """Return the image folder; raise FileNotFoundError, listing all candidates, if none exists."""
    parents = dict.fromkeys((folder, list_folder, list_folder.parent))
    candidates = [parent / name.format(split=split) for name in IMAGE_FOLDERS for parent in parents]
    if images is not None:
        candidates = [Path(images)]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise FileNotFoundError(f"image folder not found; tried {', '.join(map(str, candidates))}")
    return found
