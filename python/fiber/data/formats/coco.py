"""COCO captions and COCO instances: one annotation file and one folder of images."""

from __future__ import annotations

from fiber.data.formats.annotation_boxes import (
    annotated_size,
    boxes_by_image,
    class_names,
    frequencies,
    read_boxes,
    true_objects,
)
from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    annotation_path,
    images_folder,
    read_json,
    without_garbage_collection,
)
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import AnyPath, Record


@without_garbage_collection
def captions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read captions (COCO captions): one record per caption.

    Images without a caption are counted as "pictures without captions".

    Args:
        folder: data folder.
        split: such as "train".
        annotations: annotation file; default: "captions_<split>.json" in the folder.
        images: folder that file names are relative to; default: "images" in the folder.

    Raises:
        FileNotFoundError: if the file or the folder of images is missing.
        ValueError: for an invalid entry, with file, entry and key.
    """
    path = annotation_path(folder, split, "captions", annotations)
    file = read_json(path, "COCO captions").require_list("images")
    root = images_folder(folder, images)
    by_id = {entry["id"]: entry for entry in file.images()}
    out, shown = RecordList(), set()
    for entry in file.walk("annotations"):
        annotated = file.look_up(by_id, entry, "image_id", "images")
        shown.add(annotated["id"])
        image = f"{root}/{annotated['file_name']}"
        out.append(
            Record(
                key=f"{path.stem}/{file.get(entry, 'id', int, str)}",
                images=(image,),
                image_id=image,
                image_size=annotated_size(annotated),
                text=file.text(entry, "caption"),
                group=entry.get("group", ""),
            )
        )
    out.skip("pictures without captions", len(by_id) - len(shown))
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
    """Read boxes of classes (COCO instances): one record per image, with or without boxes.

    The text is the prompt of all classes, by id: "circle. square. triangle". `labels` are the class
    names of the file. For training, `fiber.data.prompts.sampling.SampledPrompts` samples a prompt
    for each image.

    Arguments and errors as in `captions`; the file is "instances_<split>.json". With `objects`,
    `Record.objects` is also set, to all boxes, for metrics.
    """
    path = annotation_path(folder, split, "detection", annotations)
    file = read_json(path, "COCO instances").require_list("images")
    root = images_folder(folder, images)
    return detection_records(file, root, objects=objects)


def detection_records(file: AnnotationFile, root: str, *, objects: bool = False) -> RecordList:
    """Make the records of `detection` from a file whose images are in the folder `root`."""
    names, groups = class_names(file), frequencies(file)
    ids = sorted(names)
    prompt = class_prompt([names[category] for category in ids])
    label_index = {category: index for index, category in enumerate(ids)}
    # Shared by all records: files have thousands of classes.
    label_ids, label_groups = tuple(ids), tuple(groups[category] for category in ids)
    boxes = boxes_by_image(file)
    out = RecordList()
    out.classes = tuple(names[category] for category in ids)
    for entry in file.images():
        key = f"{file.path.stem}/{entry['id']}"
        # With `objects`, dropped boxes are kept there and not counted.
        report = RecordList() if objects else out
        found = read_boxes(file, key, entry, boxes.get(entry["id"], []), report)
        categories = []
        for _, box in found:
            file.at("annotations", box)
            file.look_up(names, box, "category_id", "categories")
            categories.append(box["category_id"])
        image = f"{root}/{entry['file_name']}"
        out.append(
            Record(
                key=key,
                images=(image,),
                image_id=image,
                image_size=annotated_size(entry),
                text=prompt.text,
                boxes_xyxy=tuple(box for box, _ in found),
                char_spans=tuple(prompt.spans[label_index[category]] for category in categories),
                box_labels=tuple(label_index[category] for category in categories),
                labels=prompt.labels,
                label_spans=prompt.spans,
                label_ids=label_ids,
                label_groups=label_groups,
                objects=true_objects(file, entry, boxes, label_index) if objects else None,
            )
        )
    return out
