"""Write images atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fiber.atomic_io import check_target, write_file

if TYPE_CHECKING:
    from PIL.Image import Image


def save_image(draw: Callable[[], Image], path: str | os.PathLike[str]) -> None:
    """Write an image atomically.

    Args:
        draw: returns the image; called after `path` is checked.
        path: file to write; its suffix selects the Pillow format.

    Raises:
        ValueError: if Pillow cannot write this format.
        FileNotFoundError: if the parent folder does not exist.
        OSError: if `path` is not a regular file or cannot be written; no partial file remains.
    """
    path = Path(path)
    check_target(path)
    kind = _format(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    image = draw()
    write_file(path, lambda part: image.save(part, kind))


def _format(path: Path) -> str:
    """Look up the Pillow format of a suffix."""
    from PIL import Image

    # `registered_extensions` also fills Image.SAVE.
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(
            f"{path}: unknown suffix {path.suffix!r}; expected .png, .jpg, .jpeg, .webp or another"
            " format that Pillow can write"
        )
    return kind
