"""The classes that a measurement asks for, as a user names them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fiber.data.prompts.classes import ClassLike, ClassName, as_class, read_classes

#: A list of classes, or a file of them (`read_classes`); for ODinW such lists by the names of the
#: sets, or a folder with a file for each.
GivenClasses = (
    Sequence[ClassLike] | Mapping[str, Sequence[ClassLike]] | str | os.PathLike[str] | None
)


def listed_classes(given: GivenClasses) -> list[ClassName] | None:
    """Read the classes of a task that asks for one list of them.

    Raises:
        FileNotFoundError: if a file is missing.
        TypeError, ValueError: for what is no list of classes, by the place.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        return read_classes(given)
    if isinstance(given, Mapping):
        raise TypeError("classes are a mapping; expected one list of them, or a file")
    return [as_class(entry, number) for number, entry in enumerate(given)]


def classes_of_sets(given: GivenClasses) -> dict[str, list[ClassName]] | None:
    """Read the classes of several data sets: {name of the set: classes}.

    Raises:
        FileNotFoundError: if a folder is missing or holds no file of classes.
        TypeError, ValueError: for what is no list of classes, by the place.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        files = sorted(Path(given).glob("*.json")) if Path(given).is_dir() else []
        if not files:
            raise FileNotFoundError(
                f"{given} is no folder with files of classes; expected NAME.json for a data set"
            )
        return {file.stem: read_classes(file) for file in files}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"classes are a {type(given).__name__}; expected lists by the names of data sets, or a"
            " folder"
        )
    return {name: listed_classes(own) or [] for name, own in given.items()}
