"""VQAv2 questions and answers."""

from __future__ import annotations

import re
from typing import Any

from fiber.data.formats.annotation_file import (
    NO_VOTES,
    AnyPath,
    RecordList,
    Votes,
    annotation_file,
    images_folder,
    picture_folder,
    read_answers,
    read_json,
    without_garbage_collection,
)
from fiber.data.record import Record


@without_garbage_collection
def questions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    answers: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read questions with soft scores of their answers (VQAv2): one record for each question.

    Args:
        folder: a data folder.
        split: such as "train"; splits whose names start with "test" need no file of answers.
        annotations: file of questions, if it is not "vqa_questions_<split>.json" in the folder.
        answers: file of answers, if it is not "vqa_annotations_<split>.json" in the folder; for
            "v2_OpenEnded_mscoco_train2014_questions.json" it is the original
            "v2_mscoco_train2014_annotations.json" beside it.
        images: where file names start, if not "images" in the folder, or the folder. A question
            without `image` shows "COCO_<data_subtype>_<image_id with 12 digits>.jpg" there or in
            "<data_subtype>" there; the pictures of "test-dev2015" are those of "test2015".

    Raises:
        FileNotFoundError: if a file or the folder of pictures is missing.
        ValueError: if an entry is not as expected, with file, entry and key.
    """
    path = annotation_file(folder, split, "questions", annotations)
    file = read_json(path, "VQAv2 questions")
    answers_path = annotation_file(folder, split, "answers", answers)
    original = re.fullmatch(r"(.*)OpenEnded_(.+)_questions\.json", path.name)
    if answers is None and original:
        answers_path = path.with_name("{}{}_annotations.json".format(*original.groups()))
    votes: dict[Any, Votes] | None = None
    if answers is not None or answers_path.exists() or not split.startswith("test"):
        votes = read_answers(read_json(answers_path, "VQAv2 annotations"))
    subtype = str(file.data.get("data_subtype", split)).replace("test-dev", "test")
    numbered, root = picture_folder(folder, images, subtype), ""
    out = RecordList()
    for entry in file.walk("questions"):
        number = file.get(entry, "question_id", int, str)
        if "image" in entry:
            root = root or images_folder(folder, images)
            image = f"{root}/{file.text(entry, 'image')}"
        else:
            image = f"{numbered}/COCO_{subtype}_{file.get(entry, 'image_id', int):012d}.jpg"
        own = NO_VOTES
        if votes is not None:
            own = file.look_up(votes, entry, "question_id", answers_path)
        out.append(
            Record(
                key=f"{path.stem}/{number}",
                images=(image,),
                image_id=image,
                text=file.text(entry, "question"),
                answers=own.scores,
                human_answers=own.answers,
                group=own.question_type,
            )
        )
    return out
