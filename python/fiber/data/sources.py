"""Readers of annotation files: one function per task, which returns a list of records.

For a folder written by `fiber data`, `(folder, split)` suffices; for a downloaded dataset, also
pass the annotation file and the image folder:

    captions("coco", "val", annotations="coco/annotations/captions_val2014.json",
             images="coco/val2014")

`fiber.data.open_source` chooses the reader based on the file names.

Unknown keys are ignored. A missing key, a wrong file format, or a box outside its image raises an
error that names the file, entry and key. Images are not opened. `image_id` is the image path, so
records of one image in different files share it. Record keys are "<file name>/<id of the entry>".
"""

from __future__ import annotations

from fiber.data.datasets.mdetr import label_boxes, phrases, referring
from fiber.data.datasets.nlvr2 import reasoning
from fiber.data.datasets.snli_ve import entailment
from fiber.data.datasets.vqa import questions
from fiber.data.datasets.winoground import swapped
from fiber.data.formats.coco import captions, detection, detection_records

__all__ = [
    "captions",
    "detection",
    "detection_records",
    "entailment",
    "label_boxes",
    "phrases",
    "questions",
    "reasoning",
    "referring",
    "swapped",
]
