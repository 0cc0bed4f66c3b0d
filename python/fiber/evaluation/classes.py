"""The `classes` option of detection tasks: class names as a list, a mapping or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fiber.data.prompts.classes import ClassLike, ClassName, as_class, read_classes

#: Classes or a class file (see `read_classes`). For ODinW, classes by dataset, or a folder of class
#: files.
GivenClasses = (
    Sequence[ClassLike] | Mapping[str, Sequence[ClassLike]] | str | os.PathLike[str] | None
)


def listed_classes(given: GivenClasses) -> list[ClassName] | None:
    """Read the classes of one dataset.

    Raises:
        FileNotFoundError: if the file is missing.
        TypeError, ValueError: if an entry is invalid; the message gives its position.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        return read_classes(given)
    if isinstance(given, Mapping):
        raise TypeError("classes: got a mapping; expected a list of classes or a file")
    return [as_class(entry, number) for number, entry in enumerate(given)]


def classes_of_sets(given: GivenClasses) -> dict[str, list[ClassName]] | None:
    """Read the classes of the ODinW datasets as {dataset: classes}.

    Raises:
        FileNotFoundError: if the folder is missing or has no class files.
        TypeError, ValueError: if an entry is invalid; the message gives its position.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        files = sorted(Path(given).glob("*.json")) if Path(given).is_dir() else []
        if not files:
            raise FileNotFoundError(
                f"{given} is not a folder of class files; expected a folder with NAME.json for each"
                " dataset"
            )
        return {file.stem: read_classes(file) for file in files}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"classes: got {type(given).__name__}; expected a dict of class lists by dataset, or a"
            " folder"
        )
    return {name: listed_classes(own) or [] for name, own in given.items()}
