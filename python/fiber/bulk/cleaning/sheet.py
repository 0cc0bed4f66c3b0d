"""Contact sheets of what would go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.data import load_image
from fiber.messages import printable
from fiber.visualize import Color, add_caption, make_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

#: Height and width of an image in pixels, images in a row, and maximum number of rows.
SIDE, COLUMNS, ROWS = 200, 5, 16
#: Colors of the texts of what stays, and of what goes.
STAYS: Color = (0, 110, 0)
GOES: Color = (180, 0, 0)
BLACK: Color = (0, 0, 0)
#: Lines of a text, and its maximum number of characters.
_LINES, _MAX_TEXT = 3, 200


@dataclass(frozen=True)
class SheetImage:
    """An image with texts and their colors."""

    #: As stored: a path, or bytes; None for an empty place.
    image: Any
    texts: tuple[tuple[str, Color], ...] = ()

    def draw(self) -> Image:
        """Draw it; an image that cannot be read is replaced by the reason."""
        from PIL import Image as PilImage
        from PIL import ImageOps

        square = PilImage.new("RGB", (SIDE, SIDE), "white")
        texts = [(printable(text, _MAX_TEXT), color) for text, color in self.texts]
        if self.image is not None:
            try:
                image = PilImage.fromarray(load_image(self.image))
                image = ImageOps.contain(image, (SIDE, SIDE))
                square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
            except (OSError, ValueError) as error:
                texts.insert(0, (printable(str(error), _MAX_TEXT), GOES))
        return add_caption(square, texts, size=13, max_lines=_LINES)


def save_sheet(
    path: Path, title: str, rows: Sequence[Sequence[SheetImage]], columns: int = COLUMNS
) -> None:
    """Draw rows of images under a title to a file.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if Pillow cannot write files with its suffix.
    """
    from fiber.postprocess.files import save_image

    def draw() -> Image:
        empty = SheetImage(None)
        tiles = [tile.draw() for row in rows for tile in [*row, *[empty] * columns][:columns]]
        return add_caption(
            make_sheet(tiles or [empty.draw()], columns), [(title, BLACK)], size=16, above=True
        )

    save_image(draw, path)


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count` at regular distances."""
    return sorted({number * count // most for number in range(most)}) if count else []
