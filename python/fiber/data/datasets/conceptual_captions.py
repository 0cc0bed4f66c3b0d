"""Conceptual Captions (CC3M).

Source: Sharma et al. 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fiber.data.datasets.caption_files import ImageFinder, caption_rows, path_rows, row_name
from fiber.data.formats.annotation_file import RecordList, read_text
from fiber.data.formats.line_reader import COLUMN_NAMES
from fiber.data.record import AnyPath
from fiber.messages import shown_names

#: File type in messages.
KIND = "Conceptual Captions"
#: Content of a TSV file, for messages.
_EXPECTED = (
    "expected 2 columns, a caption and a URL or path, separated by a tab; a table with names of"
    " columns is a .csv file with commas"
)


def conceptual_captions(
    folder: AnyPath, split: str, *, annotations: AnyPath, images: AnyPath | None = None
) -> RecordList:
    """Read captions from a TSV file of captions and URLs, or from <split>_annot.json.

    The TSV file has one "caption<tab>url" line per image. The image of row n (zero-based) has the
    name that img2dataset gives it, such as "00012/000120345.jpg" for n = 120345. If the second
    column is not a URL, it is the path of the image. The JSON file is a list of [path, caption]
    pairs.

    Arguments and errors are as in `karpathy.coco_karpathy`, but each file contains a single split.
    Many URLs are dead, so missing images are skipped and counted; an error is raised only if all
    images are missing.
    """
    path = Path(annotations)
    rows = path_rows(path, KIND) if path.suffix == ".json" else _tsv_rows(path)
    return caption_rows(path, rows, ImageFinder(folder, images))


def _tsv_rows(path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the candidate image file names and the caption of each line."""
    lines = read_text(path, KIND).split("\n")
    header = int(lines[0].strip() == "caption\turl")
    names = [name.strip() for name in lines[0].lower().split("\t")]
    if not header and len(names) > 1 and COLUMN_NAMES.issuperset(names):
        raise ValueError(f"{path}: line 1 has names of columns, {shown_names(names)}; {_EXPECTED}")
    for row, line in enumerate(lines[header:]):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 2:
            where = f"{path}: line {row + header + 1}"
            raise ValueError(f"{where} has {len(columns)} columns; {_EXPECTED}")
        caption, location = columns
        yield ((row_name(row),) if "://" in location else (location,)), caption
