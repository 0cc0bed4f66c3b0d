"""Readers of annotation files, one function a kind of data; each returns a list of records.

They read the folders that `fiber data` writes and the original data sets alike. For a folder of
`fiber data`, `(folder, split)` is enough; for an original data set, name the file and the folder of
its images:

    captions("coco", "val", annotations="coco/annotations/captions_val2014.json",
             images="coco/val2014")

`fiber.data.open_source` picks the reader by the file names.

Unknown keys are ignored. A missing key, a file of another format and a box outside its image are
errors that name the file, the entry and the key. Images are not opened here. `image_id` is the path
of the image, so records of different files that show the same image share it. A key is
"<file name>/<id of the entry>".
"""

from __future__ import annotations

from fiber.data.datasets.mdetr import label_boxes, phrases, referring
from fiber.data.datasets.nlvr2 import reasoning
from fiber.data.datasets.vqa import questions
from fiber.data.datasets.winoground import swapped
from fiber.data.formats.coco import captions, detection, detection_records

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
