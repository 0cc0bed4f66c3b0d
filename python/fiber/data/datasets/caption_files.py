"""Code shared by the caption readers of named datasets.

Each reader returns one record per caption. Captions of the same image are adjacent. Images without
captions, empty captions and repeated captions of an image are skipped and counted. The published
training code also drops repeated captions, but does not always keep the first one. For datasets
distributed as lists of URLs, missing images are also skipped and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    named,
    read_json_array,
)
from fiber.data.formats.json_values import file_name_problem
from fiber.data.record import AnyPath, Record
from fiber.messages import shown, shown_names

_MISSING = "pictures that are missing"


class ImageFinder:
    """Find images in `images` or, by default, in the data folder and its "images" subfolder.

    The given `subfolders` of these folders are also searched. Each folder is listed only once.
    """

    def __init__(
        self, folder: AnyPath, images: AnyPath | None, subfolders: Sequence[str] = ()
    ) -> None:
        roots = [Path(images)] if images is not None else [Path(folder) / "images", Path(folder)]
        self._folders = [root / name for root in roots for name in ("", *subfolders)]
        #: Names in a folder, and the same by its real path: "a" and "b/../a" are one folder.
        self._listed: dict[Path, set[str]] = {}
        self._real: dict[str, set[str]] = {}

    def find(self, *names: str) -> str | None:
        """Return the path of the first of `names` that exists in any of the folders, or None."""
        for path in (folder / name for name in names for folder in self._folders):
            parent = path.parent
            if parent not in self._listed:
                self._listed[parent] = self._names_in(parent)
            if path.name in self._listed[parent]:
                return str(path)
        return None

    def _names_in(self, folder: Path) -> set[str]:
        real = os.path.realpath(folder)
        if real not in self._real:
            try:
                self._real[real] = {entry.name for entry in Path(real).iterdir()}
            except (FileNotFoundError, NotADirectoryError):
                self._real[real] = set()
        return self._real[real]

    def require(self, file: AnnotationFile, name: str) -> str:
        """Return the path of an image; raise FileNotFoundError if it does not exist."""
        path = self.find(name)
        if path is None:
            raise FileNotFoundError(
                f"{file.where}: image {shown(name)} not found in"
                f" {', '.join(map(str, self._folders))}"
            )
        return path


def add_captions(
    out: RecordList, stem: str, image: str, found: Sequence[tuple[Any, str]], where: str
) -> None:
    """Append a record to `out` for each caption of an image.

    `found` has (id, text) pairs; `where` is their location in errors.
    """
    if not found:
        out.skip("pictures without captions")
    seen = set()
    for number, text in found:
        if not text.strip():
            out.skip("empty captions")
        elif text in seen:
            out.skip("repeated captions")
        else:
            seen.add(text)
            with named(where):
                record = Record(key=f"{stem}/{number}", images=(image,), image_id=image, text=text)
            out.append(record)


def caption_rows(
    path: Path, rows: Iterable[tuple[tuple[str, ...], Any]], images: ImageFinder
) -> RecordList:
    """Create records from rows of (candidate image file names, caption).

    Rows whose image is missing are skipped and counted.

    Raises:
        FileNotFoundError: if all images are missing.
        ValueError: if a caption is not a string.
    """
    out, total, example = RecordList(), 0, ""
    for row, (names, caption) in enumerate(rows):
        total += 1
        if not isinstance(caption, str):
            raise ValueError(f"{path}: caption {row} must be a string, got {shown(caption)}")
        for name in names:
            if (problem := file_name_problem(name)) is not None:
                raise ValueError(f"{path}: the image of caption {row} is {problem}")
        image = images.find(*names)
        if image is None:
            out.skip(_MISSING)
            example = example or names[-1]
        else:
            add_captions(out, path.stem, image, [(row, caption)], f"{path}: caption {row}:")
    if total and out.counts.get(_MISSING) == total:
        raise FileNotFoundError(
            f"{path}: none of the {total} images exist (example: {shown(example)}); check `images`"
        )
    return out


def path_rows(path: Path, kind: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and caption of each [path, caption] pair in a JSON list."""
    for index, pair in enumerate(read_json_array(path, kind).data["entries"]):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)
        ):
            raise ValueError(
                f"{path}: entry {index} must be a [path, caption] pair, got {shown(pair)}"
            )
        yield (pair[0],), pair[1]


def row_name(row: int) -> str:
    """Return the file name that img2dataset gives to the image of a row."""
    return f"{row // 10_000:05d}/{row:09d}.jpg"


def check_split(path: Path, split: str, splits: Iterable[str]) -> None:
    """Raise ValueError, listing the available splits, if a dataset lacks `split`."""
    if split not in splits:
        have = shown_names(sorted(splits))
        raise ValueError(f"{path} has no split {shown(split)}; available splits: {have}")
