"""Reader of Flickr30k Entities as its authors give it.

    val.txt                       one number of a picture a line
    Sentences/1007129816.txt      five captions, phrases in brackets: [/EN#1/people The man] sits
    Annotations/1007129816.xml    boxes with the numbers of the phrases that they belong to

The files lie in the data folder or in "flickr30k_entities" or "flickr30k" there. A caption is its
words with single spaces, as in the published JSON files. Boxes are the corners as written: the
published evaluation takes them for half-open.

Source: Plummer et al. 2015.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from fiber.data.char_spans import CharSpan
from fiber.data.formats.annotation_file import RecordList, read_text, without_garbage_collection
from fiber.data.record import Record

AnyPath = str | PathLike[str]

KIND = "Flickr30k Entities, original files"
#: Folders below the data folder that may hold the files.
FOLDERS = ("", "flickr30k_entities", "flickr30k")
#: Folders of pictures below the data folder, beside the list of them or above it.
PICTURES = (
    *("flickr30k/flickr30k_images/{split}", "flickr30k_images/{split}", "images"),
    *("flickr30k-images", "flickr30k_images", "flickr30k/flickr30k_images"),
    "flickr30k/flickr30k-images",
)
LISTS = tuple(str(Path(name) / "{split}.txt") for name in FOLDERS)


class Phrase(NamedTuple):
    """A phrase of a caption."""

    span: CharSpan
    #: What boxes name it by; "0" for what is in no picture.
    number: str
    #: Such as "people"; several are joined by "/".
    kind: str


class _Box(NamedTuple):
    corners: tuple[float, float, float, float]
    numbers: frozenset[str]


@without_garbage_collection
def flickr_entities(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    on_error: str = "raise",
) -> RecordList:
    """Read captions with phrases and boxes: one record for each caption.

    As in the published evaluation, phrases without a box are left out, and captions without such a
    phrase. `labels` are the phrases, `label_groups` their kinds; a box has the spans of all phrases
    that name it.

    Args:
        folder: a data folder.
        split: "train", "val" or "test": the name of the list of pictures.
        annotations: that list, if it is elsewhere; its folder holds the other files.
        images: where pictures are, if in none of `PICTURES`.
        on_error: "raise", or "skip": objects whose corners are none are left out and counted.

    Raises:
        FileNotFoundError: if a file or the folder of pictures is missing.
        ValueError: if a file is not as expected, with its name, line or object.
    """
    listed = Path(annotations) if annotations is not None else _listed(Path(folder), split)
    names = read_text(listed, KIND).split()
    root = _pictures(Path(folder), listed.parent, split, images)
    out = RecordList()
    for name in names:
        skipped = out if on_error == "skip" else None
        boxes = read_boxes(listed.parent / "Annotations" / f"{name}.xml", skipped)
        lines = read_text(listed.parent / "Sentences" / f"{name}.txt", KIND).split("\n")
        path = f"{listed.parent / 'Sentences' / name}.txt"
        for number, line in enumerate(line for line in lines if line.strip()):
            text, phrases = read_sentence(line, f"{path}: caption {number}")
            known = {box_number for box in boxes for box_number in box.numbers}
            kept = [phrase for phrase in phrases if phrase.number in known]
            out.add("phrases without a box", len(phrases) - len(kept))
            if not kept:
                out.add("captions without a box")
                continue
            key = f"{listed.stem}/{name}_{number}"
            out.append(_record(key, f"{root}/{name}.jpg", text, kept, boxes))
    return out


def _record(key: str, image: str, text: str, phrases: list[Phrase], boxes: list[_Box]) -> Record:
    numbers = [phrase.number for phrase in phrases]
    shown = [box for box in boxes if box.numbers.intersection(numbers)]
    return Record(
        key=key,
        images=(image,),
        image_id=image,
        text=text,
        boxes_xyxy=tuple(box.corners for box in shown),
        char_spans=tuple(
            tuple(phrase.span for phrase in phrases if phrase.number in box.numbers)
            for box in shown
        ),
        box_labels=tuple(
            next(i for i, number in enumerate(numbers) if number in box.numbers) for box in shown
        ),
        labels=tuple(text[slice(*phrase.span)] for phrase in phrases),
        label_spans=tuple((phrase.span,) for phrase in phrases),
        label_groups=tuple(phrase.kind for phrase in phrases),
    )


def read_sentence(line: str, where: str) -> tuple[str, list[Phrase]]:
    """Take the brackets out of a caption: its words, and its phrases in order.

    Args:
        line: "[/EN#1/people The man] sits ."
        where: the caption in words, for messages.

    Raises:
        ValueError: for a phrase that is not closed or has no number or words.
    """
    text, phrases, opened = "", [], None
    for token in line.split():
        if opened is None and token.startswith("[/"):
            number, *kinds = token[1:].split("/")[1:]
            if not number.startswith("EN#"):
                raise ValueError(f"{where} has {token!r}; expected a phrase as [/EN#1/people ...]")
            start = len(text) + (1 if text else 0)
            opened = (start, number.removeprefix("EN#"), "/".join(kinds))
            continue
        closes = opened is not None and token.endswith("]")
        word = token[:-1] if closes else token
        text += (" " if text else "") + word
        if closes and opened is not None:
            start, number, kind = opened
            if start >= len(text):
                raise ValueError(f"{where} has a phrase without words: {line[:60]!r}")
            phrases.append(Phrase((start, len(text)), number, kind))
            opened = None
    if opened is not None:
        raise ValueError(f"{where} has a phrase that is not closed: {line[:60]!r}")
    return text, phrases


def read_boxes(path: Path, skipped: RecordList | None = None) -> list[_Box]:
    """Read the boxes of a picture; objects without one are left out.

    Args:
        path: of the XML file.
        skipped: counts objects that are not as expected; None: they are errors.

    Raises:
        ValueError: if the file is no XML or an object lacks a part, with its number.
    """
    try:
        tree = ElementTree.fromstring(read_text(path, KIND))
    except ElementTree.ParseError as problem:
        raise ValueError(f"{path} is no XML ({problem}); expected {KIND}") from None
    found = []
    for number, entry in enumerate(tree.findall("object")):
        box = entry.find("bndbox")
        if box is None:
            continue
        try:
            found.append(_box(entry, box))
        except ValueError as problem:
            if skipped is None:
                raise ValueError(f"{path}: object {number} {problem}") from None
            skipped.add("objects whose box is none")
    return found


def _box(entry: ElementTree.Element, box: ElementTree.Element) -> _Box:
    names = frozenset(name.text or "" for name in entry.findall("name"))
    try:
        x0, y0, x1, y1 = (float(box.findtext(side, "")) for side in _SIDES)
    except ValueError:
        raise ValueError(f"has no number in one of {', '.join(_SIDES)}") from None
    if not (x0 <= x1 and y0 <= y1 and names):
        raise ValueError(
            f"has the names {sorted(names)} and the corners {(x0, y0, x1, y1)}; expected a name,"
            " and xmin <= xmax and ymin <= ymax"
        )
    return _Box((x0, y0, x1, y1), names)


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _listed(folder: Path, split: str) -> Path:
    """The list of a split's pictures: the first that has annotations beside it."""
    places = [folder / name / f"{split}.txt" for name in FOLDERS]
    whole = (path for path in places if path.is_file() and (path.parent / "Annotations").is_dir())
    return next(whole, places[0])


def _pictures(folder: Path, beside: Path, split: str, images: AnyPath | None) -> Path:
    """Find the folder of the pictures.

    Raises:
        FileNotFoundError: if there is none, with those that were looked for.
    """
    tops = dict.fromkeys((folder, beside, beside.parent))
    places = [top / name.format(split=split) for name in PICTURES for top in tops]
    if images is not None:
        places = [Path(images)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"none of {', '.join(map(str, places))} is a folder; expected the pictures there"
        )
    return found
