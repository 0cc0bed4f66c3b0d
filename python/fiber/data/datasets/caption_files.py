"""Shared code of the caption readers of named data sets.

Each reader returns one record per caption, with those of an image together. Known defects of a
download are skipped and counted: images without captions, empty captions, repeated captions of an
image (as in published training; the first one is kept, so that the order is deterministic), and,
for data sets that are lists of URLs, images that could not be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import AnnotationFile, RecordList
from fiber.data.record import AnyPath, Record

#: Images per folder of img2dataset.
_ROWS_PER_FOLDER = 10_000
_MISSING = "pictures that are missing"


class ImageFinder:
    """Find the images of a data set; each folder is listed once.

    Args:
        folder: data folder; searched with "images" in it.
        images: folder of images, searched instead.
        subfolders: names of subfolders to search as well.
    """

    def __init__(
        self, folder: AnyPath, images: AnyPath | None, subfolders: Sequence[str] = ()
    ) -> None:
        roots = [Path(images)] if images is not None else [Path(folder) / "images", Path(folder)]
        self._folders = [root / name for root in roots for name in ("", *subfolders)]
        self._listed: dict[Path, set[str]] = {}

    def find(self, *names: str) -> str | None:
        """Return the path of the first of these relative file names that exists."""
        for name in names:
            for folder in self._folders:
                path = folder / name
                if path.name in self._list(path.parent):
                    return str(path)
        return None

    def require(self, file: AnnotationFile, name: str) -> str:
        """Return the path of an image that must exist."""
        path = self.find(name)
        if path is None:
            tried = ", ".join(map(str, self._folders))
            raise FileNotFoundError(
                f"{file.path}: {file.where} has image {name!r}, which is in none of {tried}"
            )
        return path

    def _list(self, folder: Path) -> set[str]:
        if folder not in self._listed:
            entries = folder.iterdir() if folder.is_dir() else ()
            self._listed[folder] = {entry.name for entry in entries}
        return self._listed[folder]


def add_captions(out: RecordList, stem: str, image: str, found: Sequence[tuple[Any, str]]) -> None:
    """Add the captions of one image, as (id, text)."""
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
            out.append(Record(key=f"{stem}/{number}", images=(image,), image_id=image, text=text))


def caption_rows(
    path: Path, rows: Iterable[tuple[tuple[str, ...], Any]], images: ImageFinder
) -> RecordList:
    """Make records of rows with one caption each, whose images may be missing.

    Args:
        path: annotation file, for keys and messages.
        rows: possible file names of the image, and its caption.
        images: finds the images.

    Raises:
        FileNotFoundError: if all images are missing.
        ValueError: if a caption is not a text.
    """
    out, total, example = RecordList(), 0, ""
    for row, (names, caption) in enumerate(rows):
        total += 1
        if not isinstance(caption, str):
            raise ValueError(f"{path}: caption {row} is {str(caption)[:40]!r}; expected a text")
        image = images.find(*names)
        if image is None:
            out.skip(_MISSING)
            example = example or names[-1]
        else:
            add_captions(out, path.stem, image, [(row, caption)])
    if total and out.count(_MISSING) == total:
        raise FileNotFoundError(
            f"{path}: none of the {total} images exists, the first would be {example!r};"
            " name their folder with `images`"
        )
    return out


def path_rows(file: AnnotationFile) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield path and caption of a list of [path, caption]."""
    for index, pair in enumerate(file.data["entries"]):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)
        ):
            raise ValueError(
                f"{file.path}: entry {index} is {str(pair)[:40]!r}; expected [path, caption]"
            )
        yield (pair[0],), pair[1]


def row_name(row: int) -> str:
    """Return the file name that img2dataset gives to the image of a row."""
    return f"{row // _ROWS_PER_FOLDER:05d}/{row:09d}.jpg"


def first_file(folder: AnyPath, given: AnyPath | None, names: Sequence[str]) -> Path:
    """Return `given`, or the first of the names that exists, or the first name."""
    if given is not None:
        return Path(given)
    paths = [Path(folder) / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def check_split(path: Path, split: str, splits: Iterable[str]) -> None:
    """Check that a data set has a split.

    Raises:
        ValueError: with the splits that it has.
    """
    if split not in splits:
        have = ", ".join(map(repr, sorted(splits))) or "none"
        raise ValueError(f"{path} has no split {split!r}; its splits are {have}")
