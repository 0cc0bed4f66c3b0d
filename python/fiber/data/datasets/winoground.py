"""Winoground-style swapped pairs of images and captions."""

from __future__ import annotations

from pathlib import Path

from fiber.data.formats.annotation_file import (
    AnyPath,
    RecordList,
    annotation_file,
    images_folder,
    read_json_lines,
    without_garbage_collection,
)
from fiber.data.record import Record


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
