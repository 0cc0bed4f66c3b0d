"""Files that list classes to look for."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from fiber.atomic_io import read_json
from fiber.data.prompts import ClassName, as_class


def read_classes(path: str | PathLike[str]) -> list[ClassName]:
    """Read the classes of a file.

    Args:
        path: a text file with one name a line, empty lines left out; or, where its name ends in
            ".json", a list of names or of objects with `name`, `prefix` and `suffix`, the last two
            only if a class has them (published: CAPTION_PROMPT of an ODinW data set).

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is nothing of the kind or lists nothing, with its name and the entry.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        try:
            # With or without a byte-order mark, which editors on Windows write.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path} is not text ({problem}); expected one class a line") from None
        found = [ClassName(line.strip()) for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{path}: expected one class a line, found none")
        return found
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else f"a {type(entries).__name__}"
        raise ValueError(
            f"{path} holds {what}; expected a list of class names or of objects with 'name',"
            " 'prefix' and 'suffix'"
        )
    try:
        return [as_class(entry, number) for number, entry in enumerate(entries)]
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{path}: {problem}") from None
