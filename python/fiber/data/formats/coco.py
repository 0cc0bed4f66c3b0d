"""TODO"""

from __future__ import annotations

from fiber.data.formats.annotation_boxes import (
    boxes_by_image,
    class_names,
    frequencies,
    read_boxes,
    told_size,
    true_objects,
)
from fiber.data.formats.annotation_file import (
    AnyPath,
    RecordList,
    SourceFile,
    annotation_file,
    images_folder,
    read_json,
    without_garbage_collection,
)
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import Record


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
