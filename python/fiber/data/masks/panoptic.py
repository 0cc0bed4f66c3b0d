"""COCO's panoptic segmentation: a JSON file of segments, and a PNG of their ids for each image.

panoptic_train.json                    panoptic_train/000000.png           images/...
annotations/panoptic_train2017.json    annotations/panoptic_train2017/...  train2017/...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_boxes import annotated_size, sorted_categories
from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    find_images_folder,
    read_json,
    without_garbage_collection,
)
from fiber.data.formats.json_values import id_key
from fiber.data.masks.mask import IdMap
from fiber.data.masks.segmentation import by_image, image_root
from fiber.data.record import AnyPath
from fiber.messages import shown

KIND = "COCO panoptic"
#: Groups of classes: countable objects, and regions such as the sky.
THING, STUFF = "thing", "stuff"
_MAX_ID = 2**24 - 1


@without_garbage_collection()
def panoptic(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read COCO panoptic annotations, one record per image with segments.

    `masks` is the map of an image, `labels` are all classes in order of their ids, `label_groups`
    are "thing" and "stuff", and `text` is empty. Segments of crowds are in `mask_crowd`. Images
    without an annotation are counted as "pictures without segments".

    Args:
        folder: data folder.
        split: split name, such as "train".
        annotations: annotation file; default: "panoptic_<split>.json" in the folder. The maps are
            in a folder of this name without its extension.
        images: image folder; default: "images", or one named like COCO's.

    Raises:
        FileNotFoundError: if the file or a folder is missing.
        ValueError: if an entry is invalid; the error names the file, entry and key.
    """
    path = Path(folder) / f"panoptic_{split}.json" if annotations is None else Path(annotations)
    file = read_json(path, KIND).require_list("images")
    categories = sorted_categories(file)
    label_index = {id_key(entry["id"]): index for index, entry in enumerate(categories)}
    out = RecordList()
    out.classes = tuple(entry["name"] for entry in categories)
    classes: dict[str, Any] = {
        "labels": out.classes,
        "label_ids": tuple(entry["id"] for entry in categories),
        "label_groups": tuple(_group(file, entry) for entry in categories),
    }
    segments = by_image(file)
    root, maps = image_root(file, folder, images), _maps_folder(file, folder)
    for entry in file.images():
        own = segments.get(id_key(entry["id"]), [])
        if not own:
            out.skip("pictures without segments")
            continue
        if len(own) > 1:
            file.at("annotations", own[1][1], own[1][0])
            raise file.error(
                f"has image_id {shown(entry['id'])}, as annotations[{own[0][0]}]; expected one"
                " entry an image"
            )
        index, annotation = own[0]
        file.at("annotations", annotation, index)
        fields = _segments(file, annotation, label_index, maps)
        file.at("images", entry)
        out.append(
            file.record(
                entry["id"],
                f"{root}/{entry['file_name']}",
                image_size=annotated_size(file, entry),
                text="",
                **classes,
                **fields,
            )
        )
    return out


def _group(file: AnnotationFile, category: dict[str, Any]) -> str:
    is_thing = category.get("isthing")
    if is_thing not in (0, 1):
        file.at("categories", category)
        raise file.error(f"has 'isthing' {shown(is_thing)}; expected 1 (thing) or 0 (stuff)")
    return THING if is_thing else STUFF


def _maps_folder(file: AnnotationFile, folder: AnyPath) -> Path:
    """Return the folder of the maps; raise FileNotFoundError if there is none."""
    names = [file.file_name(entry, "file_name") for entry in file.walk("annotations")]
    stem = file.path.stem
    candidates = [file.path.parent / stem, Path(folder) / stem, Path(folder) / "annotations" / stem]
    found = find_images_folder(names, candidates)
    if found is None and names:
        raise FileNotFoundError(
            f"{file.path}: no folder found for the {len(names)} maps, such as {shown(names[0])};"
            f" tried {', '.join(map(str, dict.fromkeys(candidates)))}"
        )
    return found or candidates[0]


def _segments(
    file: AnnotationFile, annotation: dict[str, Any], label_index: dict[Any, int], maps: Path
) -> dict[str, Any]:
    """Return the map of an annotation as fields of `Record`."""
    seen: set[Any] = set()
    ids, labels, crowd = [], [], []
    for segment in file.objects(annotation, "segments_info"):
        number = file.get(segment, "id", int)
        if not 0 < number <= _MAX_ID:
            raise file.error(f"has a segment with id {number}; expected 1 to {_MAX_ID}")
        if (key := id_key(number)) in seen:
            raise file.error(f"has two segments with id {number}; expected an id for each")
        seen.add(key)
        ids.append(number)
        labels.append(file.look_up(label_index, segment, "category_id", "categories"))
        crowd.append(bool(segment.get("iscrowd")))
    return {
        "masks": IdMap(f"{maps}/{annotation['file_name']}", tuple(ids)),
        "mask_labels": tuple(labels),
        "mask_crowd": tuple(crowd) if any(crowd) else (),
    }
