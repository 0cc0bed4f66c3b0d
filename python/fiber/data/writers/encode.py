"""Boxes as other tools write them: COCO, YOLO, Pascal VOC, image folders and Label Studio.

Boxes are (x0, y0, x1, y1), half-open, in pixels; an image size is (height, width) in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from fiber.data.formats.annotation_boxes import Box

#: Digits after the decimal point of numbers in pixels, and of fractions of an image.
_PIXEL_DIGITS, _FRACTION_DIGITS = 3, 6


def x_y_width_height(box: Sequence[float]) -> list[float]:
    """Return a box as [x, y, width, height]."""
    x0, y0, x1, y1 = (float(side) for side in box)
    return [round(side, _PIXEL_DIGITS) for side in (x0, y0, x1 - x0, y1 - y0)]


def coco_file(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """Return the content of a file in COCO format. Ids of classes are 1, 2, ... in their order."""
    return {
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
    }


def coco_image(number: int, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return an entry of `images`."""
    return {"id": number, "file_name": name, "width": size[1], "height": size[0]}


def coco_box(number: int, image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    """Return an entry of `annotations`; `label` is the index of the class."""
    bbox = x_y_width_height(box)
    area = round(bbox[2] * bbox[3], _PIXEL_DIGITS)
    about = {"id": number, "image_id": image, "category_id": label + 1}
    return {**about, "bbox": bbox, "area": area, "iscrowd": 0}


def yolo_lines(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], size: tuple[int, int]
) -> str:
    """Return the label file of an image: class, and x and y of the center, width, height."""
    height, width = size
    lines = []
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        fractions = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width
        numbers = (*fractions, (y1 - y0) / height)
        lines.append(" ".join([str(label), *(f"{n:.{_FRACTION_DIGITS}f}" for n in numbers)]))
    return "".join(f"{line}\n" for line in lines)


def yolo_description(names: Sequence[str], folders: dict[str, str]) -> str:
    """Return the content of data.yaml; `folders` are those of the images by split."""
    content: dict[str, Any] = {**folders, "nc": len(names), "names": list(names)}
    # JSON values are YAML, and so is any name in them.
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items())
    return "".join(lines)


def voc_xml(
    name: str,
    folder: str,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    size: tuple[int, int],
) -> str:
    """Return the annotation of an image: whole pixels that count from 1, the last one included."""
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = None if text is None else str(text)
        return child

    add(root, "folder", folder)
    add(root, "filename", name)
    sides = add(root, "size")
    for tag, value in (("width", size[1]), ("height", size[0]), ("depth", 3)):
        add(sides, tag, value)
    add(root, "segmented", 0)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        entry = add(root, "object")
        add(entry, "name", label)
        for tag in ("pose", "truncated", "difficult"):
            add(entry, tag, "Unspecified" if tag == "pose" else 0)
        box = add(entry, "bndbox")
        edges = {"xmin": round(x0) + 1, "ymin": round(y0) + 1, "xmax": round(x1), "ymax": round(y1)}
        for tag, value in edges.items():
            add(box, tag, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def metadata_row(
    name: str, boxes: Sequence[Sequence[float]], labels: Sequence[str], size: tuple[int, int]
) -> dict[str, Any]:
    """Return a line of the metadata of an image folder."""
    objects = {"bbox": [x_y_width_height(box) for box in boxes], "categories": list(labels)}
    return {"file_name": name, "width": size[1], "height": size[0], "objects": objects}


def label_studio_task(
    image: str,
    boxes: Sequence[Box] | Sequence[Sequence[float]],
    labels: Sequence[str],
    size: tuple[int, int],
    scores: Sequence[float] | None = None,
    model: str = "",
) -> dict[str, Any]:
    """Return a task: an annotation, or a prediction of a model if the boxes have scores."""
    height, width = size
    results = []
    for number, ((x0, y0, x1, y1), label) in enumerate(zip(boxes, labels, strict=True)):
        percent = {
            "x": 100 * float(x0) / width,
            "y": 100 * float(y0) / height,
            "width": 100 * float(x1 - x0) / width,
            "height": 100 * float(y1 - y0) / height,
        }
        value = {name: round(side, _FRACTION_DIGITS) for name, side in percent.items()}
        results.append(
            {
                "id": f"box-{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, "rotation": 0, "rectanglelabels": [label]},
            }
        )
        if scores is not None:
            results[-1]["score"] = float(scores[number])
    if scores is None:
        return {"data": {"image": image}, "annotations": [{"result": results}]}
    best = max(map(float, scores), default=0.0)
    prediction = {"model_version": model, "score": best, "result": results}
    return {"data": {"image": image}, "predictions": [prediction]}


def label_studio_config(names: Sequence[str]) -> str:
    """Return the labeling config of the tasks, for the settings of a project."""
    root = ElementTree.Element("View")
    ElementTree.SubElement(root, "Image", name="image", value="$image")
    labels = ElementTree.SubElement(root, "RectangleLabels", name="label", toName="image")
    for name in names:
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
