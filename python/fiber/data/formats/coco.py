"""COCO captions and COCO instances: one annotation file and one image folder."""

from __future__ import annotations

from typing import Any

from fiber.data.formats.annotation_boxes import (
    annotated_size,
    boxes_by_image,
    read_boxes,
    sorted_categories,
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
from fiber.data.formats.json_values import id_key
from fiber.data.masks.segmentation import masks_of
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import AnyPath


@without_garbage_collection()
def captions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read COCO captions, one record per caption.

    Images without a caption are counted as "pictures without captions".

    Args:
        folder: data folder.
        split: split name, such as "train".
        annotations: annotation file; default: "captions_<split>.json" in the folder.
        images: image folder, to which file names are relative; default: "images" in the folder.

    Raises:
        FileNotFoundError: if the file or the image folder is missing.
        ValueError: if an entry is invalid; the error names the file, entry and key.
    """
    path = annotation_path(folder, split, "captions", annotations)
    file = read_json(path, "COCO captions").require_list("images")
    root = images_folder(folder, images)
    # The path and the size of each image, which its captions share.
    by_id: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    for entry in file.images():
        path_and_size = f"{root}/{entry['file_name']}", annotated_size(file, entry)
        by_id[id_key(entry["id"])] = path_and_size
    out, captioned = RecordList(), set()
    for entry in file.walk("annotations"):
        image, size = file.look_up(by_id, entry, "image_id", "images")
        captioned.add(id_key(entry["image_id"]))
        out.append(
            file.record(
                file.get(entry, "id", int, str),
                image,
                image_size=size,
                text=file.text(entry, "caption"),
                group=file.optional_text(entry, "group"),
            )
        )
    out.skip("pictures without captions", len(by_id) - len(captioned))
    return out


@without_garbage_collection()
def detection(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    objects: bool = False,
    masks: bool = False,
) -> RecordList:
    """Read COCO instances, one record per image, including images without boxes.

    `text` is the prompt of all classes in order of their ids, such as "circle. square. triangle".
    `labels` contains the class names. For training, `fiber.data.prompts.sampling.SampledPrompts`
    samples a prompt for each image.

    Arguments and errors are as in `captions`; the default file is "instances_<split>.json". If
    `objects` is True, `Record.objects` contains all boxes, including dropped ones, for metrics. If
    `masks` is True, `Record.masks` contains the masks of all objects that have one, including
    crowds, and `Record.box_masks` those of boxes.
    """
    path = annotation_path(folder, split, "detection", annotations)
    file = read_json(path, "COCO instances").require_list("images")
    return detection_records(file, images_folder(folder, images), objects=objects, masks=masks)


def detection_records(
    file: AnnotationFile, root: str, *, objects: bool = False, masks: bool = False
) -> RecordList:
    """Create the records of `detection` from a file whose images are in the folder `root`."""
    categories = sorted_categories(file)
    label_index = {id_key(entry["id"]): index for index, entry in enumerate(categories)}
    out = RecordList()
    out.classes = tuple(entry["name"] for entry in categories)
    prompt = class_prompt(out.classes)
    # Shared by all records: files have thousands of classes.
    label_ids = tuple(entry["id"] for entry in categories)
    # In LVIS, "r" (rare), "c" (common) or "f" (frequent).
    label_groups = tuple(map(_frequency, categories))
    boxes = boxes_by_image(file)
    without = RecordList()
    for entry in file.images():
        own = boxes.get(id_key(entry["id"]), [])
        # With `objects`, dropped boxes are kept in `Record.objects` and not counted.
        found = read_boxes(file, entry, own, RecordList() if objects else out)
        labels = []
        for _, box in found:
            file.at("annotations", box)
            labels.append(file.look_up(label_index, box, "category_id", "categories"))
        own_masks = masks_of(file, own, label_index, without, found) if masks else {}
        file.at("images", entry)
        out.append(
            file.record(
                entry["id"],
                f"{root}/{entry['file_name']}",
                image_size=annotated_size(file, entry),
                **own_masks,
                label_ids=label_ids,
                label_groups=label_groups,
                objects=true_objects(file, entry, own, label_index) if objects else None,
                **prompt.record_fields((box for box, _ in found), labels),
            )
        )
    if any(record.masks for record in out):
        # A file of boxes has no masks at all.
        out.add_report(without)
    return out


def _frequency(category: dict[str, Any]) -> str:
    frequency = category.get("frequency")
    return frequency if frequency in ("r", "c", "f") else ""
