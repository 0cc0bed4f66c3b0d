"""Annotations of generated images, and the files they are written to.

The files have the formats of public datasets (COCO, Flickr30k Entities and RefCOCO in MDETR's
format, VQAv2, NLVR2, Winoground), so `fiber.data.sources` reads them like public data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.char_spans import CharSpan
from fiber.data.datasets.registry import FILES
from fiber.synthetic.panoptic import (
    VisibleSegment,
    panoptic_entry,
    phrase_entries,
    segmentations,
)

# Number of annotators per question in VQAv2.
_NUM_ANSWERS = 10
# The ids of an image's entries start at a multiple of the image id, so they do not depend on other
# images.
_PER_IMAGE = 100
#: Lists in each JSON file; the other files are in JSON Lines format.
_LISTS = {
    **dict.fromkeys(("captions", "phrases", "referring", "detection"), ("images", "annotations")),
    **dict.fromkeys(("panoptic", "expression_masks"), ("images", "annotations")),
    "questions": ("questions",),
    "answers": ("annotations",),
}
_SECTIONS = [f"{kind}.{name}" for kind, names in _LISTS.items() for name in names]
#: JSON objects in each list of each file, by section.
_Entries = dict[str, list[dict[str, Any]]]


class Phrased(NamedTuple):
    """A text with phrases that name objects in an image."""

    text: str
    #: For each phrase, its half-open span of code points.
    spans: tuple[CharSpan, ...]
    #: For each phrase, the indices of the objects that it names.
    things: tuple[tuple[int, ...], ...]
    group: str = ""


class Question(NamedTuple):
    """A question and its answer."""

    text: str
    answer: str
    group: str


class Statement(NamedTuple):
    """A statement about two images."""

    text: str
    truth: bool
    group: str
    #: (color, noun) that both images or only one image shows, according to the statement. None if
    #: the statement names the left or the right image.
    pair: tuple[str, str] | None = None
    #: (left, right) file names of another pair with the opposite truth value. A statement without
    #: such a pair is not written, since its words alone would determine its truth.
    opposite: tuple[str, str] | None = None


@dataclass
class AnnotatedImage:
    """One image with all its annotations."""

    image_id: int
    #: Path relative to the image folder, with forward slashes.
    file_name: str
    #: (height, width) in pixels.
    image_size: tuple[int, int]
    #: Box (x0, y0, x1, y1) of each object in half-open integer pixel coordinates.
    boxes_xyxy: list[tuple[int, int, int, int]]
    #: Class id of each object, from 1.
    category_ids: list[int]
    #: Visible objects and stuff.
    segments: list[VisibleSegment] = field(default_factory=list)
    #: Name of each segment of stuff that phrases name, by its id.
    stuff: dict[int, str] = field(default_factory=dict)
    captions: list[Phrased] = field(default_factory=list)
    #: Referring expressions; the first span names the referent.
    expressions: list[Phrased] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    #: File name of the left image in `statements` and the first image in `swapped_captions`.
    partner: str = ""
    statements: list[Statement] = field(default_factory=list)
    #: (caption of the partner, caption of this image, group), or None.
    swapped_captions: tuple[str, str, str] | None = None

    @property
    def named_segments(self) -> list[tuple[str, tuple[int, ...]]]:
        """Phrases with the ids of the segments that they name: expressions first."""
        found = [(each.text, each.things[0]) for each in self.expressions]
        for text, spans, things, _ in self.captions:
            found += [
                (text[start:end], named) for (start, end), named in zip(spans, things, strict=True)
            ]
        ids = {segment.thing: segment.id for segment in self.segments if segment.thing >= 0}
        phrases = [(text, tuple(ids.get(each, 0) for each in named)) for text, named in found]
        return phrases + [(f"the {name}", (number,)) for number, name in self.stuff.items()]

    @property
    def texts(self) -> list[str]:
        """All texts, for training a tokenizer."""
        entries = [*self.captions, *self.expressions, *self.questions, *self.statements]
        return [entry.text for entry in entries]


def join_pieces(pieces: Iterable[str | tuple[str, tuple[int, ...]]], group: str = "") -> Phrased:
    """Join pieces into a text. Pieces with object indices become phrases."""
    text = ""
    spans, things = [], []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            spans.append((len(text), len(text) + len(piece[0])))
            things.append(piece[1])
            text += piece[0]
    return Phrased(text, tuple(spans), tuple(things), group)


def encode(images: Iterable[AnnotatedImage], split: str) -> dict[str, list[str]]:
    """Encode annotations as JSON.

    Returns:
        A dict from the name of each list to its entries, each encoded as a JSON object. Lists in
        JSON files are named "file.list", such as "captions.annotations". A JSON Lines file has one
        list, named after the file, such as "reasoning".
    """
    out: _Entries = {section: [] for section in (*_SECTIONS, "reasoning", "swapped")}
    for image in images:
        _add_image(out, image, split)
    return {section: [json.dumps(entry) for entry in entries] for section, entries in out.items()}


def _add_image(out: _Entries, image: AnnotatedImage, split: str) -> None:
    image_id, name, (height, width) = image.image_id, image.file_name, image.image_size
    first_id, pair_id = image_id * _PER_IMAGE, image_id // 2
    entry = {"id": image_id, "file_name": name, "height": height, "width": width}
    out["captions.images"].append(entry)
    out["detection.images"].append(entry)
    boxes = zip(image.boxes_xyxy, image.category_ids, strict=True)
    masks = segmentations(image.segments, image.image_size)
    out["detection.annotations"] += [
        _box_entry(first_id + number, image_id, box, category) | masks.get(number, {})
        for number, (box, category) in enumerate(boxes)
    ]
    out["panoptic.images"].append(entry)
    out["panoptic.annotations"].append(panoptic_entry(image_id, name, image.segments))
    out["expression_masks.images"].append(entry)
    size, phrases = image.image_size, image.named_segments
    out["expression_masks.annotations"] += phrase_entries(
        image_id, size, image.segments, phrases, first_id
    )
    for number, (text, _, _, group) in enumerate(image.captions):
        caption = {"id": first_id + number, "image_id": image_id, "caption": text, "group": group}
        out["captions.annotations"].append(caption)
        _add_phrased(out, "phrases", image, entry, number, image.captions[number])
    for number, expression in enumerate(image.expressions):
        _add_phrased(out, "referring", image, entry, number, expression)
    for number, (text, answer, group) in enumerate(image.questions):
        ids = {"question_id": first_id + number, "image_id": image_id}
        out["questions.questions"].append({**ids, "image": name, "question": text})
        out["answers.annotations"].append(
            {
                **ids,
                "question_type": group,
                "answer_type": "yes/no" if answer in ("yes", "no") else "other",
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_id": i + 1} for i in range(_NUM_ANSWERS)],
            }
        )
    for number, (text, truth, group, _, opposite) in enumerate(image.statements):
        if opposite is None:
            continue
        pairs = ((image.partner, name, truth), (*opposite, not truth))
        for pair, (left, right, label) in enumerate(pairs):
            out["reasoning"].append(
                {
                    # As in NLVR2: split, set, pair of images, sentence.
                    "identifier": f"{split}-{pair_id}-{pair}-{number}",
                    "left_image": left,
                    "right_image": right,
                    "sentence": text,
                    "label": str(label),
                    "group": group,
                }
            )
    if image.swapped_captions is not None:
        caption_0, caption_1, tag = image.swapped_captions
        names = {"id": pair_id, "image_0": image.partner, "image_1": name}
        texts = {"caption_0": caption_0, "caption_1": caption_1, "tag": tag}
        out["swapped"].append({**names, **texts})


def _box_entry(
    entry_id: int, image_id: int, box: tuple[int, int, int, int], category_id: int
) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "id": entry_id,
        "image_id": image_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "category_id": category_id,
    }


def _add_phrased(
    out: _Entries,
    kind: str,
    image: AnnotatedImage,
    image_entry: dict[str, Any],
    number: int,
    phrased: Phrased,
) -> None:
    """Add an image entry for a text, and an annotation for each (phrase, object) pair."""
    text_id = image.image_id * _PER_IMAGE + number
    spans = [[list(span)] for span in phrased.spans]
    if kind == "referring":
        spans = spans[:1]
    out[f"{kind}.images"].append(
        {
            **image_entry,
            "id": text_id,
            "caption": phrased.text,
            "tokens_positive_eval": spans,
            "original_img_id": image.image_id,
            "sentence_id": number,
            "group": phrased.group,
        }
    )
    masks = segmentations(image.segments, image.image_size)
    named = [
        (span, thing)
        for span, things in zip(spans, phrased.things, strict=False)
        for thing in things
    ]
    for box_number, (span, thing) in enumerate(named):
        box = image.boxes_xyxy[thing]
        entry = _box_entry(text_id * _PER_IMAGE + box_number, text_id, box, 1)
        entry |= {"tokens_positive": span, **masks.get(thing, {})}
        out[f"{kind}.annotations"].append(entry)


def write_split(
    folder: Path,
    split: str,
    sections: dict[str, list[str]],
    class_names: Sequence[str],
    info: str,
    stuff_names: Sequence[str] = (),
) -> None:
    """Write the annotation files of one split to a data folder.

    Args:
        folder: data folder.
        split: name of the split.
        sections: JSON objects of all images in order, as returned by `encode`.
        class_names: names of classes 1, 2, ...
        info: one-line description of the data's origin.
        stuff_names: names of the classes after these, of stuff.
    """
    head = {"info": {"description": info}}
    phrases = {**head, "categories": [{"id": 1, "name": "object"}]}
    kind = {"task_type": "Open-Ended", "data_type": "generated", "data_subtype": split}
    questions = {**head, **kind}
    classes = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    segments = [
        {"id": number, "name": name, "isthing": int(number <= len(class_names))}
        for number, name in enumerate([*class_names, *stuff_names], 1)
    ]
    heads = {
        "panoptic": {**head, "categories": segments},
        "expression_masks": {**head, "categories": segments},
        "captions": head,
        "phrases": phrases,
        "referring": phrases,
        "questions": questions,
        "answers": questions,
        "detection": {**head, "categories": classes},
    }
    for source in (*_LISTS, "reasoning", "swapped"):
        path = folder / FILES[source].format(split=split)
        with path.open("w", encoding="utf-8") as file:
            if source not in _LISTS:
                file.writelines(line + "\n" for line in sections[source])
                continue
            file.write(json.dumps(heads[source])[:-1])
            for key in _LISTS[source]:
                entries = ",\n".join(sections[f"{source}.{key}"])
                file.write(f', "{key}": [\n{entries}\n]')
            file.write("}\n")
