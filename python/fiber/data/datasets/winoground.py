"""Winoground: two images and two captions with swapped words per example."""

from __future__ import annotations

from pathlib import Path

from fiber.data.formats.annotation_file import (
    RecordList,
    annotation_path,
    images_folder,
    read_json_lines,
    without_garbage_collection,
)
from fiber.data.record import AnyPath


@without_garbage_collection()
def swapped(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read image-caption pairs with swapped words (Winoground), four records per example.

    The records are (image 0, caption 0), (0, 1), (1, 0) and (1, 1), so the scores of all records,
    reshaped to (examples, 2, 2), are indexed by [example, image, caption]. `truth` is True if the
    image and caption match; keys end in "/<image>/<caption>".

    Arguments and errors are as in `captions`; the default file is "winoground_<split>.jsonl".
    ".png" is appended to image names without an extension.
    """
    path = annotation_path(folder, split, "swapped", annotations)
    file, root = read_json_lines(path, "Winoground"), images_folder(folder, images)
    out = RecordList()
    for entry in file.walk("lines"):
        number = file.get(entry, "id", int, str)
        names = [file.file_name(entry, f"image_{i}") for i in (0, 1)]
        texts = [file.text(entry, f"caption_{i}") for i in (0, 1)]
        group = file.optional_text(entry, "tag")
        for i, name in enumerate(names):
            image = f"{root}/{name}" if Path(name).suffix else f"{root}/{name}.png"
            for j, text in enumerate(texts):
                key = f"{number}/{i}/{j}"
                out.append(file.record(key, image, text=text, truth=i == j, group=group))
    return out
