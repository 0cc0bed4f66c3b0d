"""Flickr30k Entities in its original files.

    val.txt                       one image number per line
    Sentences/1007129816.txt      five captions, phrases in brackets: [/EN#1/people The man] sits
    Annotations/1007129816.xml    boxes with the numbers of their phrases

The files are in the data folder, or in "flickr30k_entities" or "flickr30k" in it. Caption text is
its words with single spaces, as in the published JSON files. Boxes are unchanged: the published
evaluation treats them as half-open.

Source: Plummer et al. 2015.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from fiber.data.char_spans import CharSpan
from fiber.data.formats.annotation_file import RecordList, read_text, without_garbage_collection
from fiber.data.record import AnyPath, Record

#: Kind of file in messages.
KIND = "Flickr30k Entities, original files"
#: Subfolders of the data folder that may have the files.
FOLDERS = ("", "flickr30k_entities", "flickr30k")
#: Folders of images, relative to the data folder, the folder of the list or its parent.
IMAGE_FOLDERS = (
    *("flickr30k/flickr30k_images/{split}", "flickr30k_images/{split}", "images"),
    *("flickr30k-images", "flickr30k_images", "flickr30k/flickr30k_images"),
    "flickr30k/flickr30k-images",
)
LISTS = tuple(str(Path(name) / "{split}.txt") for name in FOLDERS)


class Phrase(NamedTuple):
    """A phrase of a caption."""

    span: CharSpan
    #: Number that boxes refer to; "0" for phrases without one.
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
    """Read captions with phrases and boxes: one record per caption.

    As in the published evaluation, phrases without a box are dropped, and so are captions without
    such a phrase. `labels` are the phrases, `label_groups` their kinds; a box has the spans of all
    its phrases.

    Args:
        folder: data folder.
        split: "train", "val" or "test": name of the list of images.
        annotations: that list, if elsewhere; the other files are in its folder.
        images: folder of images; default: the first of `IMAGE_FOLDERS` that exists.
        on_error: "raise", or "skip": drop and count objects with an invalid box.

    Raises:
        FileNotFoundError: if a file or the folder of images is missing.
        ValueError: for an invalid file, with its name and the line or object.
    """
    listed = Path(annotations) if annotations is not None else _listed(Path(folder), split)
    names = read_text(listed, KIND).split()
    root = _images_root(Path(folder), listed.parent, split, images)
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
            out.skip("phrases without a box", len(phrases) - len(kept))
            if not kept:
                out.skip("captions without a box")
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
    """Parse a caption with brackets into its text and its phrases, in order.

    Args:
        line: "[/EN#1/people The man] sits ."
        where: name of the caption in messages.

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
    """Read the boxes of an image; objects without a box are ignored.

    Args:
        path: path of the XML file.
        skipped: counts invalid objects; None: they are errors.

    Raises:
        ValueError: for invalid XML or an invalid object, with its number.
    """
    try:
        tree = ElementTree.fromstring(read_text(path, KIND))
    except ElementTree.ParseError as problem:
        raise ValueError(f"{path} is not valid XML ({problem}); expected {KIND}") from None
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
            skipped.skip("objects whose box is none")
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
    """Return the list of a split's images; one with a folder of annotations has priority."""
    lists = [folder / name / f"{split}.txt" for name in FOLDERS]
    complete = (path for path in lists if path.is_file() and (path.parent / "Annotations").is_dir())
    return next(complete, lists[0])


def _images_root(folder: Path, list_folder: Path, split: str, images: AnyPath | None) -> Path:
    """Find the folder of images; raise FileNotFoundError with the candidates if there is none."""
    tops = dict.fromkeys((folder, list_folder, list_folder.parent))
    candidates = [top / name.format(split=split) for name in IMAGE_FOLDERS for top in tops]
    if images is not None:
        candidates = [Path(images)]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"none of {', '.join(map(str, candidates))} is a folder; expected the images there"
        )
    return found
