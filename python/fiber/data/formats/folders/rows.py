"""What readers of folders with a file for each image share: images, their sizes, bounded text."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from fiber import _core
from fiber.atomic_io import check_regular_file
from fiber.data.formats.json_values import parse_json
from fiber.data.formats.row_records import DataRow, RowSource
from fiber.data.image_file import ENDINGS
from fiber.data.prompts.classes import clean_class_name
from fiber.messages import printable, shown

#: Names of splits in other tools, with the names here.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
#: File with the names of all classes, in order, for formats that list only those of boxes.
CLASSES = "classes.json"
#: Maximum number of classes.
MAX_CLASSES = 100_000
#: Maximum number of bytes of the labels of one image, and of a description of a dataset.
MAX_FILE_BYTES = 1 << 22
#: Number of bytes in which the size of an image is looked for first.
_HEADER_BYTES = 1 << 16


class BoxFiles(RowSource):
    """Rows of boxes from a file for each image.

    `boxes` yields rows; `on_error` is "raise" or "skip", as in `box_records`.
    """

    # A bound method would make pickled records include the reader.
    image = staticmethod(os.fspath)  # type: ignore[assignment]

    def __init__(self, on_error: str) -> None:
        super().__init__()
        self.skips_errors = on_error == "skip"
        self._sizes: dict[Path, tuple[int, int] | str] = {}

    def rows(self, kind: str) -> Iterator[DataRow]:
        """Yield the rows; see `RowSource`."""
        yield from self.boxes()

    @abstractmethod
    def boxes(self) -> Iterator[DataRow]:
        """Yield a row for each image."""

    def size_of(self, image: Path) -> tuple[int, int]:
        """Return the (height, width) of an image, which is read once; see `size_of`."""
        if image not in self._sizes:
            try:
                self._sizes[image] = size_of(image)
            except ValueError as problem:
                self._sizes[image] = str(problem)
        found = self._sizes[image]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def refuse(self, error: Exception, counted: str) -> None:
        """Raise an error, or count it if errors are skipped."""
        if not self.skips_errors:
            raise error
        self.skip(counted)


def read_small(path: Path) -> str:
    """Read a UTF-8 file of at most `MAX_FILE_BYTES`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is longer, or is not UTF-8.
    """
    check_regular_file(path)
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {MAX_FILE_BYTES:,} bytes; expected fewer")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text: {problem}") from None


def size_of(path: Path) -> tuple[int, int]:
    """Return the stored (height, width) of an image file without decoding it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no image.
    """
    with path.open("rb") as file:
        content = file.read(_HEADER_BYTES)
        try:
            height, width, _ = _core.probe_image(content)
        except _core.DecodeError:
            try:
                height, width, _ = _core.probe_image(content + file.read())
            except _core.DecodeError as problem:
                raise ValueError(f"{path}: {problem}") from None
    return height, width


def files_in(folder: Path, endings: str | tuple[str, ...]) -> list[Path]:
    """Return the files in a folder, without its subfolders, whose names have an ending, sorted."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if each.name.lower().endswith(endings)]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder, without its subfolders, sorted by name."""
    return files_in(folder, ENDINGS)


def first_folder(folders: Iterable[Path]) -> Path | None:
    """Return the first of some folders that exists."""
    return next((folder for folder in folders if folder.is_dir()), None)


def tried(paths: Iterable[Path]) -> str:
    """Join paths for a message."""
    return ", ".join(printable(str(path), 200) for path in dict.fromkeys(paths))


def class_list(*folders: Path) -> list[str]:
    """Return the names in the first `classes.json` of some folders; [] if there is none.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no list of different names.
    """
    path = next((each / CLASSES for each in folders if (each / CLASSES).is_file()), None)
    if path is None:
        return []
    names = parse_json(read_small(path), path, list)
    if (
        len(names) > MAX_CLASSES
        or not all(isinstance(name, str) and clean_class_name(name).strip() for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(f"{path} has {shown(names)}; expected a list of different names")
    return names
