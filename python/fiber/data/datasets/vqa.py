"""VQAv2: questions with the answers of ten annotators."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    annotation_path,
    images_folder,
    read_json,
    without_garbage_collection,
)
from fiber.data.formats.json_values import id_key, split_problem
from fiber.data.formats.rows import ANSWER_SCORES
from fiber.data.record import AnyPath
from fiber.messages import shown


@without_garbage_collection()
def questions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    answers: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read questions with soft scores for their answers (VQAv2), one record per question.

    Args:
        folder: data folder.
        split: split name, such as "train". Answers are optional if it starts with "test".
        annotations: question file; default: "vqa_questions_<split>.json" in the folder.
        answers: answer file; default: "vqa_annotations_<split>.json" in the folder. For a question
            file in the original layout, the default is the matching file in its folder, such as
            "v2_mscoco_train2014_annotations.json".
        images: image folder; default: "images" in the folder. A question without `image` uses
            "COCO_<data_subtype>_<12-digit image_id>.jpg" in the image folder or in the subfolder
            "<data_subtype>" of the image or data folder. "test-dev2015" uses the images of
            "test2015".

    Raises:
        FileNotFoundError: if a file or the image folder is missing.
        ValueError: if an entry is invalid; the error names the file, entry and key.
    """
    path = annotation_path(folder, split, "questions", annotations)
    file = read_json(path, "VQAv2 questions")
    answers_path = annotation_path(folder, split, "answers", answers)
    original = re.fullmatch(r"(.*)OpenEnded_(.+)_questions\.json", path.name)
    if answers is None and original:
        answers_path = path.with_name("{}{}_annotations.json".format(*original.groups()))
    answers_of: dict[Any, dict[str, Any]] | None = None
    if answers is not None or answers_path.exists() or not split.startswith("test"):
        answers_of = _read_answers(read_json(answers_path, "VQAv2 annotations"))
    subtype = split
    if "data_subtype" in file.data:
        subtype = file.text(file.data, "data_subtype").replace("test-dev", "test")
        if (problem := split_problem(subtype)) is not None:
            raise file.error(f"has 'data_subtype' {problem}")
    numbered, root = images_folder(folder, images, subtype), ""
    out, seen = RecordList(), set()
    for entry in file.walk("questions"):
        number = file.get(entry, "question_id", int, str)
        if (key := id_key(number)) in seen:
            raise file.error(f"has duplicate question_id {shown(number)}; expected unique ids")
        seen.add(key)
        if "image" in entry:
            root = root or images_folder(folder, images)
            image = f"{root}/{file.file_name(entry, 'image')}"
        else:
            image = f"{numbered}/COCO_{subtype}_{file.get(entry, 'image_id', int):012d}.jpg"
        fields = {}
        if answers_of is not None:
            fields = file.look_up(answers_of, entry, "question_id", answers_path)
        out.append(file.record(number, image, text=file.text(entry, "question"), **fields))
    return out


def _read_answers(file: AnnotationFile) -> dict[Any, dict[str, Any]]:
    """Return a dict from the `id_key` of each question_id to the record fields of its answers."""
    found = {}
    # A few thousand distinct answers occur millions of times.
    interned: dict[str, str] = {}
    for entry in file.walk("annotations"):
        number, given = file.id_key(entry, "question_id"), list[str]()
        if number in found:
            raise file.error(
                f"has duplicate question_id {shown(entry['question_id'])}; expected unique ids"
            )
        for one in file.get(entry, "answers", list):
            if not isinstance(one, dict) or not isinstance(one.get("answer"), str):
                raise file.error(
                    f"has {shown(one)} in 'answers'; expected an object with a string 'answer'"
                )
            given.append(interned.setdefault(one["answer"], one["answer"]))
        scores = {answer: ANSWER_SCORES[min(n, 4)] for answer, n in Counter(given).items()}
        group = file.optional_text(entry, "question_type")
        found[number] = {"answers": scores, "human_answers": tuple(given), "group": group}
    return found
