"""What a generated picture is annotated with, and how that is written to files.

The files have the formats of public data sets (COCO, Flickr30k Entities and RefCOCO as MDETR wrote
them, VQAv2, NLVR2, Winoground), so that `fiber.data.sources` reads ours and theirs alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.char_spans import CharSpan
from fiber.data.formats.annotation_file import FILES

#: Annotators of a VQAv2 question.
NUM_ANSWERS = 10
# Ids are a multiple of the picture's id, so that they do not depend on other pictures.
_PER_PICTURE = 100


class Phrased(NamedTuple):
    """A text whose phrases name things in a picture."""

    text: str
    #: Half-open range of characters of each phrase.
    spans: tuple[CharSpan, ...]
    #: For each phrase, the indices of the things that it names.
    things: tuple[tuple[int, ...], ...]
    group: str = ""


class Question(NamedTuple):
    """A question with its one right answer."""

    text: str
    answer: str
    group: str


class Statement(NamedTuple):
    """A statement about two pictures."""

    text: str
    truth: bool
    group: str
    #: The left and the right picture of another pair, of which the opposite is true. A statement
    #: without one is not written: its words alone would tell its truth.
    opposite: tuple[str, str] | None = None


@dataclass
class Picture:
    """One picture with everything that is said about it."""

    image_id: int
    #: Path below the folder of pictures, with forward slashes.
    file_name: str
    #: (height, width) in pixels.
    image_size: tuple[int, int]
    #: (x0, y0, x1, y1) in whole pixels, half-open, of each thing.
    boxes_xyxy: list[tuple[int, int, int, int]]
    #: Class id of each thing, from 1.
    category_ids: list[int]
    captions: list[Phrased] = field(default_factory=list)
    #: Referring expressions; the first span names the one thing that is meant.
    expressions: list[Phrased] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    #: The picture that stands left of this one in `statements` and first in `swapped_captions`.
    partner: str = ""
    statements: list[Statement] = field(default_factory=list)
    #: (caption of the partner, caption of this picture, group), or None.
    swapped_captions: tuple[str, str, str] | None = None


def join_pieces(pieces: Iterable[str | tuple[str, tuple[int, ...]]], group: str = "") -> Phrased:
    """Join pieces of text; a piece with indices of things becomes a phrase."""
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


def encode(pictures: Iterable[Picture], split: str) -> dict[str, list[str]]:
    """Write the annotations of some pictures as JSON objects.

    Returns:
        For each list of each file, such as "captions.annotations", its JSON objects in order.
    """
    out: dict[str, list[dict[str, Any]]] = {section: [] for section in _SECTIONS}
    for picture in pictures:
        height, width = picture.image_size
        image = {
            "id": picture.image_id,
            "file_name": picture.file_name,
            "height": height,
            "width": width,
        }
        first_id = picture.image_id * _PER_PICTURE
        out["captions.images"].append(image)
        out["detection.images"].append(image)
        for number, (box, category) in enumerate(
            zip(picture.boxes_xyxy, picture.category_ids, strict=True)
        ):
            out["detection.annotations"].append(
                _box_entry(first_id + number, picture.image_id, box, category)
            )
        for number, caption in enumerate(picture.captions):
            out["captions.annotations"].append(
                {
                    "id": first_id + number,
                    "image_id": picture.image_id,
                    "caption": caption.text,
                    "group": caption.group,
                }
            )
            _add_phrased(out, "phrases", picture, image, number, caption, len(caption.spans))
        for number, expression in enumerate(picture.expressions):
            _add_phrased(out, "referring", picture, image, number, expression, 1)
        for number, question in enumerate(picture.questions):
            _add_question(out, picture, first_id + number, question)
        identifier = f"{split}-{picture.image_id // 2}"
        for number, statement in enumerate(picture.statements):
            if statement.opposite is None:
                continue
            own = (picture.partner, picture.file_name)
            pairs = ((own, statement.truth), (statement.opposite, not statement.truth))
            for pair, ((left, right), truth) in enumerate(pairs):
                out["reasoning"].append(
                    {
                        # As in NLVR2: split, set, pair of pictures, sentence.
                        "identifier": f"{identifier}-{pair}-{number}",
                        "left_image": left,
                        "right_image": right,
                        "sentence": statement.text,
                        "label": str(truth),
                        "group": statement.group,
                    }
                )
        if picture.swapped_captions is not None:
            caption_0, caption_1, group = picture.swapped_captions
            out["swapped"].append(
                {
                    "id": picture.image_id // 2,
                    "image_0": picture.partner,
                    "image_1": picture.file_name,
                    "caption_0": caption_0,
                    "caption_1": caption_1,
                    "tag": group,
                }
            )
    return {section: [json.dumps(entry) for entry in entries] for section, entries in out.items()}


_SECTIONS = (
    "captions.images",
    "captions.annotations",
    "phrases.images",
    "phrases.annotations",
    "referring.images",
    "referring.annotations",
    "questions.questions",
    "answers.annotations",
    "detection.images",
    "detection.annotations",
    "reasoning",
    "swapped",
)


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
    out: dict[str, list[dict[str, Any]]],
    kind: str,
    picture: Picture,
    image: dict[str, Any],
    number: int,
    phrased: Phrased,
    num_phrases: int,
) -> None:
    """Add one image entry for a text, and one annotation for each (phrase, thing)."""
    text_id = picture.image_id * _PER_PICTURE + number
    spans = [[list(span)] for span in phrased.spans[:num_phrases]]
    out[f"{kind}.images"].append(
        {
            **image,
            "id": text_id,
            "caption": phrased.text,
            "tokens_positive_eval": spans,
            "original_img_id": picture.image_id,
            "sentence_id": number,
            "group": phrased.group,
        }
    )
    box_number = 0
    for span, things in zip(spans, phrased.things, strict=False):
        for thing in things:
            box = picture.boxes_xyxy[thing]
            entry = _box_entry(text_id * _PER_PICTURE + box_number, text_id, box, 1)
            entry["tokens_positive"] = span
            out[f"{kind}.annotations"].append(entry)
            box_number += 1


def _add_question(
    out: dict[str, list[dict[str, Any]]], picture: Picture, question_id: int, question: Question
) -> None:
    out["questions.questions"].append(
        {
            "question_id": question_id,
            "image_id": picture.image_id,
            "image": picture.file_name,
            "question": question.text,
        }
    )
    out["answers.annotations"].append(
        {
            "question_id": question_id,
            "image_id": picture.image_id,
            "question_type": question.group,
            "answer_type": "yes/no" if question.answer in ("yes", "no") else "other",
            "multiple_choice_answer": question.answer,
            "answers": [
                {"answer": question.answer, "answer_id": i + 1} for i in range(NUM_ANSWERS)
            ],
        }
    )


def write_split(
    folder: Path, split: str, sections: dict[str, list[str]], class_names: Sequence[str], info: str
) -> None:
    """Write the annotation files of one split.

    Args:
        folder: where.
        split: its name, which becomes a part of the files' names.
        sections: the JSON objects of `encode`, of all pictures in order.
        class_names: names of the classes 1, 2, ...
        info: one line on where the data come from.
    """
    head = {"info": {"description": info}}
    classes = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    phrase = [{"id": 1, "name": "object"}]
    questions = {"task_type": "Open-Ended", "data_type": "generated", "data_subtype": split}
    extra = {
        "captions": head,
        "phrases": {**head, "categories": phrase},
        "referring": {**head, "categories": phrase},
        "questions": {**head, **questions},
        "answers": {**head, **questions},
        "detection": {**head, "categories": classes},
    }
    for kind, name in FILES.items():
        with (folder / name.format(split=split)).open("w", encoding="utf-8") as file:
            if kind not in extra:
                file.writelines(line + "\n" for line in sections[kind])
                continue
            file.write(json.dumps(extra[kind])[:-1])
            for section, entries in sections.items():
                if section.startswith(kind + "."):
                    file.write(f', "{section.split(".")[1]}": [\n')
                    file.write(",\n".join(entries))
                    file.write("\n]")
            file.write("}\n")
