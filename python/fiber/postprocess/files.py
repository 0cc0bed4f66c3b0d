"""Drawn pictures on disk: whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fiber.atomic_io import check_target, write_file

if TYPE_CHECKING:
    from PIL.Image import Image


def save_picture(draw: Callable[[], Image], path: str | os.PathLike[str]) -> None:
    """Write a picture under a temporary name and rename it when it is whole.

    Args:
        draw: makes the picture; called only if its file may be written.
        path: its ending says in which of Pillow's formats.

    Raises:
        ValueError: for an ending of no format.
        FileNotFoundError: if the folder is missing.
        OSError: if the name is that of something else than a regular file, or the file cannot be
            written; nothing of it is left then.
    """
    path = Path(path)
    check_target(path)
    kind = _format(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    image = draw()
    write_file(path, lambda part: image.save(part, kind))


def _format(path: Path) -> str:
    """Name the format of an ending."""
    from PIL import Image

    # Fills the table, and Image.SAVE with it.
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(
            f"{path}: unknown ending {path.suffix!r}; expected .png, .jpg, .jpeg, .webp or another"
            " that Pillow writes"
        )
    return kind
