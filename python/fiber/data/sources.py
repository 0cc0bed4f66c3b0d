"""Readers of annotation files: one function for each kind of data, each gives a list of records.

They read the folders of `fiber data` and real data alike. For a folder of ours `(folder, split)` is
enough; for real data name the file and the folder of its pictures:

    captions("coco", "val", annotations="coco/annotations/captions_val2014.json",
             images="coco/val2014")

A user's own lines and other originals: `own_data`, `downloads`; tables and shards: `table_records`,
`webdataset_shards`; `opening` picks the reader by the names of the files.

Keys that a format does not need are ignored. A needed key that is missing, a file of another
format and a box outside its picture are errors that name file, entry and key. Pictures are not
opened here. `image_id` is the path of the picture, so that records of different files that show the
same picture have the same one. A key is "<name of the file>/<id of the entry>".
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.data.mdetr import label_boxes, phrases, referring
from fiber.data.prompts import class_prompt
from fiber.data.records import Record
from fiber.data.source_boxes import boxes_by_image, class_names, read_boxes, told_size
from fiber.data.source_files import (
    NO_VOTES,
    RecordList,
    SourceFile,
    Votes,
    annotation_file,
    images_folder,
    picture_folder,
    read_answers,
    read_json,
    read_json_lines,
    without_garbage_collection,
)
from fiber.data.true_objects import frequencies, true_objects

__all__ = [
    "captions",
    "detection",
    "detection_records",
    "label_boxes",
    "phrases",
    "questions",
    "reasoning",
    "referring",
    "swapped",
]

AnyPath = str | PathLike[str]


@without_garbage_collection
def captions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read captions (COCO style): one record for each caption.

    Pictures of the file that no caption is about are counted as "pictures without captions".

    Args:
        folder: a data folder.
        split: such as "train".
        annotations: the file, if it is not "captions_<split>.json" in the folder.
        images: where its file names start, if not "images" in the folder.

    Raises:
        FileNotFoundError: if the file or the folder of pictures is missing.
        ValueError: if an entry is not as expected, with file, entry and key.
    """
    path = annotation_file(folder, split, "captions", annotations)
    file = read_json(path, "COCO captions").having("images")
    root = images_folder(folder, images)
    pictures = {entry["id"]: entry for entry in file.pictures()}
    out, shown = RecordList(), set()
    for entry in file.walk("annotations"):
        picture = file.look_up(pictures, entry, "image_id", "images")
        shown.add(picture["id"])
        image = f"{root}/{picture['file_name']}"
        out.append(
            Record(
                key=f"{path.stem}/{file.get(entry, 'id', int, str)}",
                images=(image,),
                image_id=image,
                image_size=told_size(picture),
                text=file.text(entry, "caption"),
                group=entry.get("group", ""),
            )
        )
    out.add("pictures without captions", len(pictures) - len(shown))
    return out


@without_garbage_collection
def detection(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    objects: bool = False,
) -> RecordList:
    """Read boxes of classes (COCO instances): one record for each picture, with or without boxes.

    The text is the prompt with every class, by id: "circle. square. triangle". `labels` are the
    class names as the file has them. For training, `drawn_prompts.DrawnPrompts` gives every picture
    a text of its own.

    Args:
        folder: a data folder.
        split: such as "train".
        annotations: the file, if it is not "instances_<split>.json" in the folder.
        images: where its file names start, if not "images" in the folder.
        objects: for metrics: also give `Record.objects`, every box as the file has it.

    Raises:
        FileNotFoundError: if the file or the folder of pictures is missing.
        ValueError: if an entry is not as expected, with file, entry and key.
    """
    path = annotation_file(folder, split, "detection", annotations)
    file = read_json(path, "COCO instances").having("images")
    root = images_folder(folder, images)
    return detection_records(file, root, objects=objects)


def detection_records(file: SourceFile, root: str, *, objects: bool = False) -> RecordList:
    """Make the records of `detection` of a file that was read; its pictures are below `root`."""
    names, groups = class_names(file), frequencies(file)
    ids = sorted(names)
    prompt = class_prompt([names[category] for category in ids])
    places = {category: place for place, category in enumerate(ids)}
    # All records share these: files have thousands of classes.
    label_ids, label_groups = tuple(ids), tuple(groups[category] for category in ids)
    boxes = boxes_by_image(file)
    out = RecordList()
    out.classes = tuple(names[category] for category in ids)
    for entry in file.pictures():
        key = f"{file.path.stem}/{entry['id']}"
        # What training leaves out is among the objects.
        left_out = RecordList() if objects else out
        found = read_boxes(file, key, entry, boxes.get(entry["id"], []), left_out)
        own = []
        for _, box in found:
            file.at("annotations", box)
            file.look_up(names, box, "category_id", "categories")
            own.append(box["category_id"])
        image = f"{root}/{entry['file_name']}"
        out.append(
            Record(
                key=key,
                images=(image,),
                image_id=image,
                image_size=told_size(entry),
                text=prompt.text,
                boxes_xyxy=tuple(box for box, _ in found),
                char_spans=tuple(prompt.spans[places[category]] for category in own),
                box_labels=tuple(places[category] for category in own),
                labels=prompt.labels,
                label_spans=prompt.spans,
                label_ids=label_ids,
                label_groups=label_groups,
                objects=true_objects(file, entry, boxes, places) if objects else None,
            )
        )
    return out


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


@without_garbage_collection
def reasoning(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read statements about two pictures (NLVR2): one record with two pictures for each.

    An entry without `left_image` and `right_image` shows "<identifier without its last
    part>-img0.png" and "-img1.png", below its `directory` if it has one, as NLVR2 has it, in the
    folder of pictures or in the one there that has the identifier's first part as its name:
    "train", "dev", "test1".
    Arguments and errors are those of `captions`; the file is "nlvr2_<split>.jsonl" (the original
    train.json, dev.json and test1.json have the same lines).
    """
    path = annotation_file(folder, split, "reasoning", annotations)
    file = read_json_lines(path, "NLVR2")
    out, root, folders = RecordList(), "", {}
    for entry in file.walk("lines"):
        identifier = file.text(entry, "identifier")
        if "left_image" in entry:
            root = root or images_folder(folder, images)
            names = tuple(
                f"{root}/{file.text(entry, f'{side}_image')}" for side in ("left", "right")
            )
        else:
            part, start = identifier.partition("-")[0], identifier.rpartition("-")[0]
            if part not in folders:
                folders[part] = picture_folder(folder, images, part)
            below = f"{entry['directory']}/" if "directory" in entry else ""
            start = f"{folders[part]}/{below}{start}"
            names = (f"{start}-img0.png", f"{start}-img1.png")
        label = str(file.get(entry, "label", str, bool)).lower()
        if label not in ("true", "false"):
            raise file.error(f"has label {entry['label']!r}; expected True or False")
        out.append(
            Record(
                key=f"{path.stem}/{identifier}",
                images=names,
                text=file.text(entry, "sentence"),
                truth=label == "true",
                group=entry.get("group", ""),
            )
        )
    return out


@without_garbage_collection
def swapped(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read pairs of pictures and captions with swapped words (Winoground): four records a pair.

    Their order is (picture 0, caption 0), (0, 1), (1, 0), (1, 1), so that the scores of all records
    reshaped to (pairs, 2, 2) are indexed [pair, picture, caption]. `truth` tells whether the two
    belong together; keys end in "/<picture>/<caption>".
    Arguments and errors are those of `captions`; the file is "winoground_<split>.jsonl". A picture
    whose name has no suffix is a ".png".
    """
    path = annotation_file(folder, split, "swapped", annotations)
    file, root = read_json_lines(path, "Winoground"), images_folder(folder, images)
    out = RecordList()
    for entry in file.walk("lines"):
        number = file.get(entry, "id", int, str)
        names = [file.text(entry, f"image_{i}") for i in (0, 1)]
        paths = [f"{root}/{name}" if Path(name).suffix else f"{root}/{name}.png" for name in names]
        texts = [file.text(entry, f"caption_{i}") for i in (0, 1)]
        for picture in (0, 1):
            for caption in (0, 1):
                out.append(
                    Record(
                        key=f"{path.stem}/{number}/{picture}/{caption}",
                        images=(paths[picture],),
                        image_id=paths[picture],
                        text=texts[caption],
                        truth=picture == caption,
                        group=entry.get("tag", ""),
                    )
                )
    return out
